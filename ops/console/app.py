"""The console: one ASGI application of pages that the server renders; no build step, nothing from elsewhere."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address

import uvloop
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from ops.console import acts, notifications, overview, receivers, sign_in
from ops.console.edge import STATIC, Console, Headers, SignInFirst, go, page
from ops.console.runner import Runner
from ops.console.users import User
from ops.notifications.operations import NOTIFYING_SERVICES
from outbox.errors import Misused, Refused
from outbox.http.app import Database, HttpError, Server
from outbox.http.limits import Connections, limits_of
from outbox.http.protocol import server_config
from outbox.settings import READER, Settings

REQUESTS_MAX = 200
"""In work at once, live streams among them."""

ROUTERS = (sign_in.router, overview.router, notifications.router, receivers.router, acts.router)


def create_app(settings: Settings, users: Mapping[str, User]) -> FastAPI:
    """Return the application. It reads as `ops`, and acts by the services' own functions as the service."""
    services = {name: Database(settings.dsn_of(name), name=f"console {name}") for name in NOTIFYING_SERVICES}
    console = Console(
        settings=settings,
        users=dict(users),
        reader=Database(settings.dsn_of(READER), name="console reader"),
        services=services,
        runner=Runner(services),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        running = asyncio.create_task(console.runner.run())
        yield
        running.cancel()
        for database in (console.reader, *services.values()):
            database.close()

    app = FastAPI(title="payrelay console", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.console = console
    app.state.overview = overview.Overview()
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_middleware(Headers, https=settings.console_https)
    _answer_errors(app)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "up"})

    return app


def _answer_errors(app: FastAPI) -> None:
    """What goes wrong has a page that says what to do."""

    @app.exception_handler(SignInFirst)
    async def to_the_door(request: Request, _: Exception) -> Response:
        answer = go("/sign-in")
        if request.headers.get("hx-request"):  # htmx would put the sign-in form into a part of the page
            answer = Response(status_code=401, headers={"hx-redirect": "/sign-in"})
        return answer

    @app.exception_handler(HttpError)
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HttpError)
        return page(request, "error.html", status=error.status, what=error.code, why=error.message)

    @app.exception_handler(Refused)
    async def not_done(request: Request, error: Exception) -> Response:
        return page(request, "error.html", status=400, what="refused", why=str(error))

    @app.exception_handler(RequestValidationError)
    async def not_understood(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        why = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
        return page(request, "error.html", status=400, what="not understood", why=why)

    @app.exception_handler(HTTPException)
    async def not_here(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return page(request, "error.html", status=error.status_code, what=str(error.detail), why="")


def listen(settings: Settings) -> socket.socket:
    """Return the console's listening socket; raises Refused where passwords would cross a network in the clear."""
    try:
        loopback = ip_address(settings.console_host).is_loopback
    except ValueError:
        loopback = settings.console_host == "localhost"
    if not loopback and not settings.console_https:
        raise Misused(
            "the console speaks HTTP and listens beyond this machine only behind a proxy that speaks HTTPS: "
            "set PAYRELAY_CONSOLE_HTTPS=true where there is one"
        )
    try:
        family = socket.AF_INET6 if ":" in settings.console_host else socket.AF_INET
        return socket.create_server((settings.console_host, settings.console_port), family=family)
    except OSError as error:
        raise Refused(
            f"the console cannot listen on port {settings.console_port}: {error.strerror}. Set PAYRELAY_CONSOLE_PORT to a free one"
        ) from error


def serve(settings: Settings, users: Mapping[str, User], listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve the console until SIGTERM or Ctrl-C; live streams end at once, open requests are answered."""
    app = create_app(settings, users)
    server = Server(
        server_config(
            app,
            Connections(limits_of(settings, requests=REQUESTS_MAX)),
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
    )

    console: Console = app.state.console

    def end() -> None:
        console.feed.end()
        server.should_exit = True

    async def until_ended() -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, end)
        ready()
        await server.serve(sockets=[listening])

    uvloop.run(until_ended())
