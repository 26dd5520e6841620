"""The payments service over HTTP: merchants open payments, the bank tells results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TypeVar
from zoneinfo import ZoneInfo

import msgspec
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from sqlalchemy import Connection, select
from sqlalchemy.exc import SQLAlchemyError

from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.settings import Settings
from producers.http import HttpError, read_body, service
from producers.payments.orders import (
    LimitExceeded,
    NoAccount,
    OrderConflict,
    PaymentRequest,
    expire_payments,
    find_payment,
    open_payment,
)
from producers.payments.settlement import REFUSED, Answer, receive_notification
from producers.payments.tables import merchant
from schemas.bank import PaymentLink, link_address
from schemas.signature import ID, is_fresh, signed_at

EXPIRY_S = 1.0
POOL = 20

log = logging.getLogger(__name__)

T = TypeVar("T")


def create_app(settings: Settings) -> FastAPI:
    """Return the payments service."""
    engine = engine_for(settings.dsn_of("payments"), name="service payments", pool_size=POOL)
    zone, ttl = ZoneInfo(settings.zone), timedelta(seconds=settings.order_ttl_s)
    bank_secret = settings.bank_notify_secret.get_secret_value()
    link_secret = settings.bank_link_secret.get_secret_value()

    async def transact(act: Callable[[Connection], T]) -> T:
        def whole() -> T:
            with engine.begin() as connection:
                return act(connection)

        try:
            return await run_in_threadpool(whole)
        except SQLAlchemyError as error:
            log.warning("transaction failed: %s", type(error).__name__)
            raise HttpError(
                503, "unavailable", "the database does not answer; ask again, with the same order"
            ) from error

    def merchant_of(connection: Connection, request: Request, body: bytes) -> str:
        """Return the merchant that signed the request; raises HttpError 401, whichever check failed."""
        key = request.headers.get("merchant-key", "")
        row = connection.execute(select(merchant).where(merchant.c.api_key == key)).first()
        # An unknown key costs as much as a wrong signature.
        secret = row.secret if row is not None else link_secret
        at = signed_at(secret, request.headers, body)
        if row is None or at is None or not is_fresh(at, utc_now()):
            raise HttpError(401, "unauthorized", "key, signature or time is wrong: docs/reference/http.md")
        return str(row.merchant_no)

    async def expire() -> None:
        while True:
            await asyncio.sleep(EXPIRY_S)
            with contextlib.suppress(HttpError):  # the next round tries again
                while await transact(lambda connection: expire_payments(connection, now=utc_now())):
                    pass

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        expiry = asyncio.create_task(expire())
        yield
        expiry.cancel()
        engine.dispose()

    app = service("payrelay payments")
    app.router.lifespan_context = lifespan

    @app.post("/payments", status_code=201)
    async def post_payment(request: Request) -> Response:
        """Open a payment. Same order number and body: the first answer again."""
        body = await read_body(request)

        def opened(connection: Connection) -> JSONResponse:
            merchant_no = merchant_of(connection, request, body)
            try:
                asked = msgspec.json.decode(body, type=PaymentRequest)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise HttpError(400, "bad_request", str(error)) from error
            try:
                found = open_payment(connection, merchant_no, asked, now=utc_now(), zone=zone, ttl=ttl)
            except OrderConflict as error:
                raise HttpError(409, "order_conflict", str(error)) from error
            except NoAccount as error:
                raise HttpError(404, "no_account", str(error)) from error
            except LimitExceeded as error:
                raise HttpError(422, "limit_exceeded", str(error)) from error
            link = PaymentLink(
                payment_no=found.payment_no,
                account_no=found.account_no,
                amount_fen=found.amount_fen,
                currency=found.currency,
                expires_at=int(found.expires_at.timestamp()),
            )
            content = {
                "payment_no": found.payment_no,
                "bank_address": link_address(settings.bank_url, link_secret, link),
                "expires_at": found.expires_at.isoformat(),
            }
            return JSONResponse(content, status_code=201)

        return await transact(opened)

    @app.get("/payments/{payment_no}")
    async def get_payment(payment_no: str, request: Request) -> Response:
        """Show a merchant's own payment. Signed like a request with an empty body."""

        def found(connection: Connection) -> JSONResponse:
            row = find_payment(connection, merchant_of(connection, request, b""), payment_no)
            if row is None:
                raise HttpError(404, "no_payment", f"no payment {payment_no!r} of yours")
            return JSONResponse(row)

        return await transact(found)

    @app.post("/bank/notifications")
    async def post_notification(request: Request) -> Response:
        """Take in the bank's result of a payment."""
        body = await read_body(request)
        webhook_id = request.headers.get(ID, "")
        at = signed_at(bank_secret, request.headers, body)
        if at is None or not 1 <= len(webhook_id) <= 128:
            return _plain(REFUSED)

        def received(connection: Connection) -> Answer:
            return receive_notification(connection, webhook_id=webhook_id, signed_at=at, body=body, now=utc_now())

        return _plain(await transact(received))

    return app


def _plain(answer: Answer) -> PlainTextResponse:
    return PlainTextResponse(answer.text, status_code=answer.status)
