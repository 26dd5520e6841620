"""What the HTTP services share at their edge: bounded bodies, plain errors, a health page, one server loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import uvicorn
import uvloop
from prometheus_client import Counter, Histogram
from pydantic import SecretStr
from sqlalchemy import Connection
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from outbox.database import engine_for
from outbox.errors import AheadOfClock, Misused, Refused
from outbox.http.limits import Connections, limits_of
from outbox.http.protocol import server_config
from outbox.metrics import SECONDS, serve_metrics
from outbox.settings import Settings
from schemas.signature import SECRET_FORM, can_sign

BODY_BYTES_MAX = 64 * 1024
THREADS = 8
"""Transactions at once, each with a connection of its own."""

SWITCH_S = 0.0005
"""Python's 5 ms would make a request wait for other threads at each of its round trips to the database."""

REQUESTS = Counter(
    "http_requests",
    "Requests answered, by service, route as it is declared, and status.",
    ["service", "route", "status"],
)
REQUEST = Histogram(
    "http_request_seconds",
    "Duration of requests, from their first bytes to the end of the answer.",
    ["service", "route"],
    buckets=SECONDS,
)
NO_ROUTE = "none"

log = logging.getLogger(__name__)

T = TypeVar("T")


class HttpError(Exception):
    """An answer that is not a success, with what the caller can do about it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class _Counted:
    """Counts requests by the route that took them: a path that no route takes has no name of its own."""

    def __init__(self, app: ASGIApp, name: str, routes: Sequence[Route]) -> None:
        self._app = app
        self._name = name
        self._paths: dict[object, str] = {route.endpoint: route.path for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = self._paths.get(scope.get("endpoint"), NO_ROUTE)
            REQUESTS.labels(self._name, route, status).inc()
            REQUEST.labels(self._name, route).observe(time.monotonic() - began)


def service(name: str, routes: Sequence[Route], lifespan: Lifespan[Starlette]) -> Starlette:
    """Return an application with these routes, a health page, the answers to errors, and its requests counted."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "up"})

    every = [*routes, Route("/health", health)]
    app = Starlette(
        routes=every,
        lifespan=lifespan,
        exception_handlers={HttpError: _answer_error, HTTPException: _answer_no_route, Exception: _answer_fault},
        middleware=[Middleware(_Counted, name=name, routes=every)],
    )
    app.router.redirect_slashes = False  # a signature is good for the path that was signed
    return app


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": code, "message": message}, status_code=status, headers=headers)


async def _answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return _error(error.status, error.code, error.message)


async def _answer_no_route(request: Request, error: Exception) -> Response:
    """Starlette's own errors look like every other: 404 for a path, 405 for a method that no route has."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow", "")
        message = f"{request.method} is not possible here, but {allowed} is: docs/reference/http.md"
        return _error(405, "method_not_allowed", message, error.headers)
    if error.status_code == 404:
        return _error(404, "no_route", "nothing is at this path: docs/reference/http.md lists what there is")
    return _error(error.status_code, "bad_request", str(error.detail), error.headers)


async def _answer_fault(_: Request, __: Exception) -> Response:
    return _error(
        500, "internal", "the service failed; send the same request again, and tell its operator if that fails too"
    )


class Database:
    """Whole transactions on a few threads of their own, so that the event loop never waits for the database."""

    def __init__(self, dsn: str, *, name: str) -> None:
        self._engine = engine_for(dsn, name=f"service {name}", pool_size=THREADS)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=name)

    async def transact(self, act: Callable[[Connection], T]) -> T:
        """Return what the act returns, committed. An error of the database becomes HttpError 503: asking again is safe.

        A value that no column takes becomes HttpError 400. A session whose ids are ahead of the clock is replaced by a new one.
        """

        def once() -> T:
            with self._engine.begin() as connection:
                return act(connection)

        def whole() -> T:
            try:
                return once()
            except AheadOfClock as error:
                log.warning("a database session is closed, since its clock was set back: %s", error)
                return once()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, whole)
        except DataError as error:  # a value that no column takes, such as text with a NUL
            raise HttpError(
                400, "bad_request", f"a value of the request is not acceptable: {error.orig}".splitlines()[0]
            ) from error
        except (SQLAlchemyError, AheadOfClock) as error:
            log.warning("transaction failed: %s %s", type(error).__name__, getattr(error, "orig", ""))
            raise HttpError(503, "unavailable", "the database does not answer: send the same request again") from error

    def close(self) -> None:
        """Open transactions are finished, connections closed."""
        self._threads.shutdown()
        self._engine.dispose()


def usable_secret(name: str, secret: SecretStr) -> str:
    """Return a signing secret; raises Refused naming the setting if none can be signed with."""
    if not can_sign(secret.get_secret_value()):
        raise Misused(f"{name} is not set as this service needs it: set it to {SECRET_FORM}")
    return secret.get_secret_value()


async def read_body(request: Request) -> bytes:
    """Return a request's raw body; raises HttpError 413 above 64 KiB, 408 where the client goes away or is too slow."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                raise HttpError(
                    413, "body_too_large", f"the body is too large: it may have {BODY_BYTES_MAX} bytes at most"
                )
    except ClientDisconnect as error:
        raise HttpError(
            408, "too_slow", "the request's body did not arrive whole in time: send the request again"
        ) from error
    return bytes(body)


def note_authenticated(request: Request) -> None:
    """The client has proved who it is, by a signature or a session: its connection counts for no address. Any thread."""
    if (connection := request.scope.get("state", {}).get("connection")) is not None:
        connection.authenticated = True


class Server(uvicorn.Server):
    """A server whose process takes the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the process's, not one server's."""
        yield


def listen(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets, one for each address that the host has. Raises Refused where one is not to be had."""
    try:
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return [socket.create_server(place[:2], family=family) for family, _, _, _, place in dict.fromkeys(places)]
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Refused(
            f"a service cannot listen at {host}:{port} ({why}): set PAYRELAY_HOST and the service's port to a free address"
        ) from error


def serve(apps: Sequence[tuple[Starlette, str, int]], settings: Settings) -> None:
    """Serve applications at their hosts and ports in one process, until SIGTERM or Ctrl-C; open requests are answered.

    The process's metrics are at an address of their own, not at a public one. Raises Refused where an address is not to be had.
    """

    connections = Connections(limits_of(settings))
    sockets = [listen(host, port) for _, host, port in apps]

    async def until_ended() -> None:
        servers = [
            Server(
                server_config(app, connections, host=host, port=port, log_level="warning", timeout_graceful_shutdown=10)
            )
            for app, host, port in apps
        ]

        def end() -> None:
            for server in servers:
                server.should_exit = True

        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, end)
        await asyncio.gather(*(server.serve(own) for server, own in zip(servers, sockets, strict=True)))

    serve_metrics(settings)
    sys.setswitchinterval(SWITCH_S)
    uvloop.run(until_ended())
