"""The bank over HTTP: payers follow the platform's signed link; results are posted to the platform until answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from outbox.clock import utc_now
from outbox.settings import Settings
from producers.bank.transactions import Due, claim_notifications, execute_transaction, mark
from producers.http import Database, HttpError, service, usable_secret
from schemas.bank import read_link
from schemas.signature import signed_headers

IN_FLIGHT_MAX = 20
IDLE_S = 0.5
GATHER_S = 0.01
"""What falls due within it is claimed and marked together."""
TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)

log = logging.getLogger(__name__)


def create_app(settings: Settings) -> Starlette:
    """Return the bank."""
    database = Database(settings.dsn_of("bank"), name="bank")
    notify_secret = usable_secret("PAYRELAY_BANK_NOTIFY_SECRET", settings.bank_notify_secret)
    link_secret = usable_secret("PAYRELAY_BANK_LINK_SECRET", settings.bank_link_secret)
    address = f"{settings.payments_url}/bank/notifications"
    due = asyncio.Event()

    async def post(session: aiohttp.ClientSession, one: Due) -> bool:
        """Return whether the platform has answered that it has the notification."""
        body = one.body.encode()
        headers = signed_headers(notify_secret, message_id=one.transaction_no, at=utc_now(), body=body)
        try:
            async with session.post(address, data=body, headers=headers, allow_redirects=False) as answer:
                return answer.status == 200 and (await answer.content.read(64)).strip() == b"success"
        except (aiohttp.ClientError, TimeoutError) as error:
            log.info("notification %s: %r", one.transaction_no, error)
            return False

    async def notify_due(session: aiohttp.ClientSession) -> int:
        claimed = await database.transact(lambda connection: claim_notifications(connection, limit=IN_FLIGHT_MAX))
        if claimed:
            answers = await asyncio.gather(*(post(session, one) for one in claimed))
            results = list(zip(claimed, answers, strict=True))
            await database.transact(lambda connection: mark(connection, results, now=utc_now()))
        return len(claimed)

    async def notify() -> None:
        async with aiohttp.ClientSession(timeout=TIMEOUT, trust_env=False) as session:
            while True:
                due.clear()
                try:
                    sent = await notify_due(session)
                except Exception as error:  # noqa: BLE001 - what was claimed is due again when its lease ends
                    log.warning("notifications wait: %r", error)
                    sent = 0
                if not sent:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(due.wait(), IDLE_S)
                await asyncio.sleep(GATHER_S)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        notifier = asyncio.create_task(notify())
        yield
        notifier.cancel()
        database.close()

    async def pay(request: Request) -> Response:
        """Execute the payment that the platform's link asks for. Same link: the same result."""
        query = request.query_params
        wanted = read_link(link_secret, query.get("link", ""), query.get("signature", ""))
        if wanted is None:
            raise HttpError(403, "bad_link", "the payment link is not the platform's: open the payment again")
        result = await database.transact(lambda connection: execute_transaction(connection, wanted, now=utc_now()))
        due.set()
        return JSONResponse(msgspec.to_builtins(result))

    return service("bank", [Route("/pay", pay, methods=["POST"])], lifespan)
