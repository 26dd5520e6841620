"""The payments service over HTTP: merchants open payments, the bank tells results."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy import Connection, text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from outbox.clock import utc_now
from outbox.database import earlier_now
from outbox.errors import Refused
from outbox.http.app import Database, HttpError, note_authenticated, read_body, service, usable_secret
from outbox.settings import Settings
from producers.payments.balance import confirm_payment
from producers.payments.orders import (
    LimitExceeded,
    NoAccount,
    OpenedPayment,
    OrderConflict,
    PaymentRequest,
    expire_payments,
    find_payment,
    open_payment,
)
from producers.payments.settlement import REFUSED, Answer, receive_notification
from schemas.bank import PaymentLink, link_address, read_link
from schemas.signature import ID, is_fresh, signed_at

EXPIRY_S = 1.0

log = logging.getLogger(__name__)

_MERCHANT = text("SELECT merchant_no, secret FROM merchant WHERE api_key = :key")

_PAYER = text("SELECT secret FROM payment JOIN account USING (payer_no) WHERE payment_no = :payment_no")


def create_app(settings: Settings) -> Starlette:
    """Return the payments service."""
    database = Database(settings.dsn_of("payments"), name="payments")
    zone, ttl = ZoneInfo(settings.zone), timedelta(seconds=settings.order_ttl_s)
    executed_age_max = timedelta(days=settings.bank_executed_days)
    bank_secret = usable_secret("PAYRELAY_BANK_NOTIFY_SECRET", settings.bank_notify_secret)
    link_secret = usable_secret("PAYRELAY_BANK_LINK_SECRET", settings.bank_link_secret)

    def expire_some(connection: Connection) -> int:
        return expire_payments(connection, now=earlier_now(connection, utc_now()))

    async def expire() -> None:
        while True:
            await asyncio.sleep(EXPIRY_S)
            try:
                while await database.transact(expire_some):
                    pass
            except Exception as error:  # noqa: BLE001 - the next round tries again
                log.warning("expired orders cannot be closed now, and are tried again: %r", error)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        expiry = asyncio.create_task(expire())
        yield
        expiry.cancel()
        database.close()

    async def post_payment(request: Request) -> Response:
        """Open a payment. Same order number and body: the first answer again."""
        body = await read_body(request)

        def opened(connection: Connection) -> JSONResponse:
            merchant_no = _merchant_of(connection, request, body, decoy=link_secret)
            payment = _open(connection, merchant_no, body, now=utc_now(), zone=zone, ttl=ttl)
            return JSONResponse(_invitation(payment, settings, link_secret), status_code=201)

        return await database.transact(opened)

    async def confirm(request: Request) -> Response:
        """Confirm a balance payment, as the payer, who has signed it. Same link: the status as it is by then."""
        body = await read_body(request)
        query = request.query_params
        link = read_link(link_secret, query.get("link", ""), query.get("signature", ""), method="balance")
        if link is None:
            raise HttpError(403, "bad_link", "the payment link is not this service's: open the payment again")

        def confirmed(connection: Connection) -> JSONResponse:
            _require_payer(connection, request, body, link.payment_no, decoy=link_secret)
            try:
                status = confirm_payment(connection, link.payment_no, now=utc_now())
            except Refused as error:
                raise HttpError(409, "expired", str(error)) from error
            return JSONResponse({"payment_no": link.payment_no, "status": status})

        return await database.transact(confirmed)

    async def get_payment(request: Request) -> Response:
        """Show a merchant's own payment. Signed like a request with an empty body."""
        payment_no = request.path_params["payment_no"]

        def read(connection: Connection) -> JSONResponse:
            row = find_payment(connection, _merchant_of(connection, request, b"", decoy=link_secret), payment_no)
            if row is None:
                raise HttpError(404, "no_payment", f"you have no payment {payment_no!r}")
            return JSONResponse(row)

        return await database.transact(read)

    async def post_notification(request: Request) -> Response:
        """Take in the bank's result of a payment."""
        body = await read_body(request)
        webhook_id = request.headers.get(ID, "")
        at = signed_at(bank_secret, request.headers, body)
        if at is None or not 1 <= len(webhook_id) <= 128:
            return _plain(REFUSED)
        if is_fresh(at, utc_now()):
            note_authenticated(request)

        def received(connection: Connection) -> Answer:
            return receive_notification(
                connection,
                webhook_id=webhook_id,
                signed_at=at,
                body=body,
                now=utc_now(),
                executed_age_max=executed_age_max,
            )

        return _plain(await database.transact(received))

    routes = [
        Route("/payments", post_payment, methods=["POST"]),
        Route("/payments/{payment_no}", get_payment),
        Route("/pay", confirm, methods=["POST"]),
        Route("/bank/notifications", post_notification, methods=["POST"]),
    ]
    return service("payments", routes, lifespan)


def _merchant_of(connection: Connection, request: Request, body: bytes, *, decoy: str) -> str:
    """Return the merchant that signed the request; raises HttpError 401, whichever check failed."""
    row = connection.execute(_MERCHANT, {"key": request.headers.get("merchant-key", "")}).first()
    # An unknown key costs as much as a wrong signature.
    at = signed_at(row.secret if row is not None else decoy, request.headers, body)
    if row is None or at is None or not is_fresh(at, utc_now()):
        raise HttpError(401, "unauthorized", "the key, the signature or the time is wrong: docs/reference/http.md")
    note_authenticated(request)
    return str(row.merchant_no)


def _require_payer(connection: Connection, request: Request, body: bytes, payment_no: str, *, decoy: str) -> None:
    """The payer has signed the request, for this payment; raises HttpError 401 otherwise, whichever check failed."""
    secret = connection.execute(_PAYER, {"payment_no": payment_no}).scalar()
    at = signed_at(secret or decoy, request.headers, body)
    is_for_this = request.headers.get(ID) == payment_no
    if secret is None or not is_for_this or at is None or not is_fresh(at, utc_now()):
        raise HttpError(401, "unauthorized", "the payer has not signed this payment: docs/reference/http.md")
    note_authenticated(request)


def _open(
    connection: Connection, merchant_no: str, body: bytes, *, now: datetime, zone: ZoneInfo, ttl: timedelta
) -> OpenedPayment:
    """Return the payment that a merchant's body asks for, opened; raises HttpError."""
    try:
        payment_request = msgspec.json.decode(body, type=PaymentRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, "bad_request", str(error)) from error
    try:
        return open_payment(connection, merchant_no, payment_request, now=now, zone=zone, ttl=ttl)
    except OrderConflict as error:
        raise HttpError(409, "order_conflict", str(error)) from error
    except NoAccount as error:
        raise HttpError(404, "no_account", str(error)) from error
    except LimitExceeded as error:
        raise HttpError(422, "limit_exceeded", str(error)) from error


def _invitation(payment: OpenedPayment, settings: Settings, secret: str) -> dict[str, str]:
    """Return what a merchant is answered: where the payer pays, at the bank or with us."""
    by_bank = payment.method == "bank_card"
    link = PaymentLink(
        payment_no=payment.payment_no,
        account_no=payment.account_no,
        amount_fen=payment.amount_fen,
        currency=payment.currency,
        expires_at=int(payment.expires_at.timestamp()),
    )
    url = settings.bank_url if by_bank else settings.payments_url
    return {
        "payment_no": payment.payment_no,
        "bank_address" if by_bank else "confirm_address": link_address(url, secret, link, method=payment.method),
        "expires_at": payment.expires_at.isoformat(),
    }


def _plain(answer: Answer) -> PlainTextResponse:
    return PlainTextResponse(answer.text, status_code=answer.status)
