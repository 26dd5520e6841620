"""What the HTTP services share at their edge: bounded bodies, plain errors, a health page, one server loop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Generator, Sequence

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

BODY_BYTES_MAX = 64 * 1024


class HttpError(Exception):
    """An answer that is not a success, with what the caller can do about it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def service(title: str) -> FastAPI:
    """Return an application with a health page and the answers to errors."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "up"}

    @app.exception_handler(HttpError)
    async def told(_: Request, error: HttpError) -> JSONResponse:
        return JSONResponse({"error": error.code, "message": error.message}, status_code=error.status)

    return app


async def read_body(request: Request) -> bytes:
    """Return a request's raw body; raises HttpError 413 above 64 KiB."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise HttpError(413, "body_too_large", f"the body may have {BODY_BYTES_MAX} bytes at most")
    return bytes(body)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the process's, not one server's."""
        yield


def serve(apps: Sequence[tuple[FastAPI, str, int]]) -> None:
    """Serve applications at their hosts and ports in one process, until SIGTERM or Ctrl-C; open requests are answered."""

    async def until_told() -> None:
        servers = [
            _Server(
                uvicorn.Config(
                    app,
                    host=host,
                    port=port,
                    log_level="warning",
                    access_log=False,
                    server_header=False,
                    timeout_graceful_shutdown=10,
                    limit_concurrency=500,
                    backlog=2048,
                )
            )
            for app, host, port in apps
        ]

        def end() -> None:
            for server in servers:
                server.should_exit = True

        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, end)
        await asyncio.gather(*(server.serve() for server in servers))

    asyncio.run(until_told())
