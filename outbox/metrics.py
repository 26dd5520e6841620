"""Metrics of this process, for Prometheus: one small endpoint, on the loopback unless told otherwise.

Each module declares what it counts beside what it does; docs/reference/metrics.md lists them all.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from threading import BoundedSemaphore, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import disable_created_metrics, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from outbox.errors import Refused
from outbox.settings import Settings

PATH = "/metrics"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of all duration histograms, so that they can be laid over each other."""

SCRAPES_MAX = 4
"""At once; further connections are closed."""
IDLE_S = 5.0
"""How long a connection may take to send its request or to read on."""

disable_created_metrics()  # type: ignore[no-untyped-call]

Start = Callable[..., Any]


def serve_metrics(settings: Settings) -> bool:
    """This process's metrics are at http://METRICS_HOST:METRICS_PORT/metrics until it ends; returns whether they are wanted.

    Threads of their own, which end with the process. Raises Refused where the address is not to be had.
    """
    host, port = settings.metrics_host, settings.metrics_port
    if not port:
        return False
    try:
        family, _, _, _, _ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        kind = type("_Server", (_Server,), {"address_family": family})
        server: WSGIServer = make_server(host, port, _app, kind, _Handler)
    except OSError as error:
        raise Refused(
            f"no metrics at {host}:{port} ({error.strerror}): PAYRELAY_METRICS_HOST and PAYRELAY_METRICS_PORT name an "
            "address of this process alone; port 0 turns them off"
        ) from error
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return True


class _Server(ThreadingWSGIServer):
    """A thread for each request, and a bounded number of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._free = BoundedSemaphore(SCRAPES_MAX)
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or was too slow is nobody's error."""


class _Handler(WSGIRequestHandler):
    timeout = IDLE_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the handler's own name for it
        """Scrapes are not logged."""


_exposed = make_wsgi_app()


def _app(environment: dict[str, Any], start: Start) -> Iterable[bytes]:
    if environment.get("PATH_INFO") == PATH:
        answer: Iterable[bytes] = _exposed(environment, start)
        return answer
    start("404 Not Found", [("Content-Type", "text/plain")])
    return [f"metrics are at {PATH}\n".encode()]
