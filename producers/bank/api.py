"""The bank over HTTP: payers follow the platform's signed link; its notifier tells the platform what came of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from outbox.clock import utc_now
from outbox.http.app import Database, HttpError, note_authenticated, service, usable_secret
from outbox.settings import Settings
from producers.bank.pages import HEADERS, confirm_page, refused_page, result_page, wants_page
from producers.bank.transactions import execute_transaction
from schemas.bank import PaymentLink, read_link

BAD_LINK = "the payment link is not the platform's: open the payment again"


def create_app(settings: Settings) -> Starlette:
    """Return the bank."""
    database = Database(settings.dsn_of("bank"), name="bank")
    link_secret = usable_secret("PAYRELAY_BANK_LINK_SECRET", settings.bank_link_secret)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        yield
        database.close()

    def link_of(request: Request) -> PaymentLink | None:
        query = request.query_params
        link = read_link(link_secret, query.get("link", ""), query.get("signature", ""))
        if link is not None:
            note_authenticated(request)
        return link

    async def show(request: Request) -> Response:
        """Show the payer what the link pays, and a button that does it. Nothing is executed."""
        link = link_of(request)
        if link is None:
            return _page(refused_page(f"{BAD_LINK}."), status=403)
        return _page(confirm_page(link, now_s=utc_now().timestamp()))

    async def pay(request: Request) -> Response:
        """Execute the payment that the platform's link asks for. Same link: the same result."""
        link = link_of(request)
        if link is None:
            raise HttpError(403, "bad_link", BAD_LINK)
        result = await database.transact(lambda connection: execute_transaction(connection, link, now=utc_now()))
        return _page(result_page(result)) if wants_page(request.headers) else JSONResponse(msgspec.to_builtins(result))

    async def follow(request: Request) -> Response:
        return await (pay if request.method == "POST" else show)(request)

    return service("bank", [Route("/pay", follow, methods=["GET", "POST"])], lifespan)


def _page(content: str, *, status: int = 200) -> Response:
    return HTMLResponse(content, status_code=status, headers=HEADERS)
