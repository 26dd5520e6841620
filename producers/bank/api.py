"""The bank over HTTP: payers follow the platform's signed link; results are posted to the platform until answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import aiohttp
import msgspec
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.settings import Settings
from producers.bank.transactions import Due, claim_notifications, execute_transaction, mark_answered, postpone
from producers.http import HttpError, service
from schemas.bank import read_link
from schemas.signature import signed_headers

IN_FLIGHT_MAX = 20
IDLE_S = 0.5
TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)
POOL = 20

log = logging.getLogger(__name__)

T = TypeVar("T")


def create_app(settings: Settings) -> FastAPI:
    """Return the bank."""
    engine = engine_for(settings.dsn_of("bank"), name="service bank", pool_size=POOL)
    notify_secret = settings.bank_notify_secret.get_secret_value()
    link_secret = settings.bank_link_secret.get_secret_value()
    address = f"{settings.payments_url}/bank/notifications"
    due = asyncio.Event()

    def transact(act: Callable[[Connection], T]) -> T:
        with engine.begin() as connection:
            return act(connection)

    async def post(session: aiohttp.ClientSession, one: Due) -> None:
        body = one.body.encode()
        headers = signed_headers(notify_secret, message_id=one.transaction_no, at=utc_now(), body=body)
        try:
            async with session.post(address, data=body, headers=headers, allow_redirects=False) as answer:
                answered = answer.status == 200 and (await answer.content.read(64)).strip() == b"success"
        except (aiohttp.ClientError, TimeoutError) as error:
            log.info("notification %s: %r", one.transaction_no, error)
            answered = False
        act = (
            (lambda connection: mark_answered(connection, one.transaction_no, now=utc_now()))
            if answered
            else (lambda connection: postpone(connection, one, now=utc_now()))
        )
        await run_in_threadpool(transact, act)

    async def notify() -> None:
        async with aiohttp.ClientSession(timeout=TIMEOUT, trust_env=False) as session:
            while True:
                due.clear()
                try:
                    claimed = await run_in_threadpool(
                        transact, lambda connection: claim_notifications(connection, limit=IN_FLIGHT_MAX)
                    )
                    await asyncio.gather(*(post(session, one) for one in claimed))
                except SQLAlchemyError as error:  # what was claimed is due again when its lease ends
                    log.warning("notifications wait for the database: %s", type(error).__name__)
                    claimed = []
                if not claimed:
                    try:
                        await asyncio.wait_for(due.wait(), IDLE_S)
                    except TimeoutError:
                        continue

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        notifier = asyncio.create_task(notify())
        yield
        notifier.cancel()
        engine.dispose()

    app = service("payrelay bank")
    app.router.lifespan_context = lifespan

    @app.post("/pay")
    async def pay(link: str = "", signature: str = "") -> Response:
        """Execute the payment that the platform's link asks for. Same link: the same result."""
        wanted = read_link(link_secret, link, signature)
        if wanted is None:
            raise HttpError(403, "bad_link", "the payment link is not the platform's: open the payment again")
        try:
            result = await run_in_threadpool(
                transact, lambda connection: execute_transaction(connection, wanted, now=utc_now())
            )
        except SQLAlchemyError as error:
            raise HttpError(503, "unavailable", "the bank's database does not answer; follow the link again") from error
        due.set()
        return JSONResponse(msgspec.to_builtins(result))

    return app
