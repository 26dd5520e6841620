"""The bank over HTTP: payers follow the platform's signed link; what the bank tells the platform of it goes out by its notifier."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from outbox.clock import utc_now
from outbox.settings import Settings
from producers.bank.transactions import execute_transaction
from producers.http import Database, HttpError, service, usable_secret
from schemas.bank import read_link


def create_app(settings: Settings) -> Starlette:
    """Return the bank."""
    database = Database(settings.dsn_of("bank"), name="bank")
    link_secret = usable_secret("PAYRELAY_BANK_LINK_SECRET", settings.bank_link_secret)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        yield
        database.close()

    async def pay(request: Request) -> Response:
        """Execute the payment that the platform's link asks for. Same link: the same result."""
        query = request.query_params
        wanted = read_link(link_secret, query.get("link", ""), query.get("signature", ""))
        if wanted is None:
            raise HttpError(403, "bad_link", "the payment link is not the platform's: open the payment again")
        result = await database.transact(lambda connection: execute_transaction(connection, wanted, now=utc_now()))
        return JSONResponse(msgspec.to_builtins(result))

    return service("bank", [Route("/pay", pay, methods=["POST"])], lifespan)
