"""Merchants list their notifications over HTTP. Requests are signed like a notification, with the receiver's secret."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from threading import Lock
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Connection
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from consumers.notification.notifier.merchant_reads import FEED_MAX, feed, notification_of, of_order, secrets_of
from outbox.clock import first_id_at, utc_now
from outbox.http.app import Database, HttpError, note_authenticated, service
from outbox.settings import Settings
from schemas.numeric import parse_whole
from schemas.signature import is_fresh, signed_at

RATE = 10.0
"""Requests a second of one merchant, in the long run."""
BURST = 20.0
MERCHANTS_MAX = 10_000
"""Merchants whose rates are remembered; who asked longest ago is forgotten first."""
DECOY = "whsec_" + "bm9ib2R5" * 5

PARAMETERS = {"order_no", "after", "since", "missed", "limit"}


class Rates:
    """How often each merchant has asked lately: a bucket of 20 that fills by 10 a second."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, merchant_no: str) -> bool:
        """Return whether a merchant may ask again now; the request is then counted."""
        with self._lock:
            left, at = self._buckets.pop(merchant_no, (BURST, self._now()))
            left = min(BURST, left + (self._now() - at) * RATE)
            allowed = left >= 1
            self._buckets[merchant_no] = (left - 1 if allowed else left, self._now())
            if len(self._buckets) > MERCHANTS_MAX:
                self._buckets.popitem(last=False)
            return allowed


def create_app(settings: Settings) -> Starlette:
    """Return the notification service."""
    database = Database(settings.dsn_of("notification"), name="notification")
    rates = Rates()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        yield
        database.close()

    async def answer(request: Request, act: Callable[[Connection, str], Any]) -> Response:
        """Answer a merchant that has signed its request, and not asked too often."""

        def answered(connection: Connection) -> Any:
            merchant_no = merchant_of(connection, request, now=utc_now())
            if not rates.allows(merchant_no):
                raise HttpError(429, "too_often", f"more than {RATE:.0f} requests a second: ask again in a second")
            return act(connection, merchant_no)

        content = msgspec.json.encode(await database.transact(answered))
        return Response(content, media_type="application/json", headers={"cache-control": "no-store"})

    async def get_one(request: Request) -> Response:
        """Show a merchant's own notification."""
        identity = _uuid(request.path_params["id"])

        def read(connection: Connection, merchant_no: str) -> Any:
            row = notification_of(connection, merchant_no, identity)
            if row is None:
                raise HttpError(404, "no_notification", f"you have no notification {identity}")
            return _shown(row)

        return await answer(request, read)

    async def get_several(request: Request) -> Response:
        """Show a merchant's own notifications, of an order or from a cursor on."""
        query = _query(request)

        def read(connection: Connection, merchant_no: str) -> Any:
            if (order_no := query.get("order_no")) is not None:
                return {"notifications": [_shown(row) for row in of_order(connection, merchant_no, order_no)]}
            rows, cursor = feed(
                connection,
                merchant_no,
                after=_after(query),
                is_cursor="after" in query,
                missed=query.get("missed") == "true",
                limit=_limit(query),
                now=utc_now(),
            )
            return {"notifications": [_shown(row) for row in rows], "after": cursor}

        return await answer(request, read)

    routes = [Route("/notifications", get_several), Route("/notifications/{id}", get_one)]
    return service("notification", routes, lifespan)


def merchant_of(connection: Connection, request: Request, *, now: datetime) -> str:
    """Return the merchant that signed the request's target; raises HttpError 401, whichever check failed."""
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    secrets = secrets_of(connection, request.headers.get("merchant-no", ""))
    candidates = [DECOY] if secrets is None else [secrets.secret, secrets.old_secret or secrets.secret]
    times = [signed_at(secret, request.headers, target.encode()) for secret in candidates]
    if secrets is None or not any(at is not None and is_fresh(at, now) for at in times):
        raise HttpError(
            401,
            "unauthorized",
            "the merchant number, the signature or the time is wrong: sign as docs/reference/http.md says",
        )
    note_authenticated(request)
    return secrets.merchant_no


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "body": msgspec.Raw(row["body"].encode())}


def _query(request: Request) -> dict[str, str]:
    pairs = request.query_params.multi_items()
    query = dict(pairs)
    if len(query) != len(pairs) or not query.keys() <= PARAMETERS:
        raise HttpError(
            400,
            "bad_request",
            f"unknown or repeated parameter: the parameters are {', '.join(sorted(PARAMETERS))}, each once at most",
        )
    if "order_no" in query and len(query) > 1:
        raise HttpError(400, "bad_request", "order_no cannot be combined with other parameters: send it alone")
    if query.get("missed", "false") not in ("true", "false"):
        raise HttpError(400, "bad_request", "missed must be true or false")
    return query


def _after(query: dict[str, str]) -> UUID:
    if ("after" in query) == ("since" in query):
        raise HttpError(
            400,
            "bad_request",
            "the request does not say what to list: give order_no, after (a cursor) or since (a time with its zone)",
        )
    if "after" in query:
        return _uuid(query["after"])
    try:
        since = datetime.fromisoformat(query["since"])
    except ValueError as error:
        raise HttpError(400, "bad_request", f"since is not a time: {error}; write e.g. 2026-01-31T08:00:00Z") from error
    if since.tzinfo is None:
        raise HttpError(400, "bad_request", "since has no zone: write 2026-01-31T08:00:00Z, or +08:00 as %2B08:00")
    return UUID(int=max(0, first_id_at(max(since, datetime.fromisoformat("1970-01-01T00:00:00Z"))).int - 1))


def _limit(query: dict[str, str]) -> int:
    try:
        return parse_whole(query.get("limit", "100"), low=1, high=FEED_MAX)
    except ValueError as error:
        raise HttpError(400, "bad_request", f"limit: {error}") from error


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise HttpError(400, "bad_request", f"{text[:40]!r} is not a notification's id, which is a UUID") from error
