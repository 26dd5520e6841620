"""Metrics of this process, for Prometheus: one small endpoint, on the loopback unless a setting says otherwise.

Each module declares what it counts beside what it does; docs/reference/metrics.md lists them all.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client import REGISTRY, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from outbox.errors import Refused
from outbox.status import Condition

if TYPE_CHECKING:
    from outbox.http.limits import Connections
    from outbox.settings import Settings

PATH = "/metrics"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of all duration histograms, so that they can be laid over each other."""

SCRAPES_MAX = 4
"""At once; further ones are refused."""
CONNECTIONS_MAX = 64
"""Far more than scrapers have; the one that waits longest for its client makes room."""

CONDITION = "worker_condition_seconds"
CONDITION_HELP = (
    "Seconds for which a subject (a consumer, one of its logs, the notifier) is braked, waiting for its database, stopped at a "
    "hole in its log, or has another problem; no series while it has none."
)
CONDITION_LABELS = ("about", "condition")

disable_created_metrics()  # type: ignore[no-untyped-call]


def serve_metrics(settings: Settings) -> bool:
    """This process's metrics are at http://METRICS_HOST:METRICS_PORT/metrics until it ends; returns whether they are wanted.

    Threads of their own, which end with the process. Raises Refused where the address is not to be had.
    """
    host, port = settings.metrics_host, settings.metrics_port
    if not port:
        return False
    from outbox.http.limits import Connections, limits_of  # a process without metrics starts without a server

    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(place[:2], family=family)
    except OSError as error:
        raise Refused(
            f"no metrics at {host}:{port} ({error.strerror}): set PAYRELAY_METRICS_HOST and PAYRELAY_METRICS_PORT to an "
            "address of this process alone; port 0 turns them off"
        ) from error
    own = settings.model_copy(update={"http_connections_max": min(CONNECTIONS_MAX, settings.http_connections_max)})
    connections = Connections(limits_of(own, requests=SCRAPES_MAX))
    Thread(target=asyncio.run, args=(_serve(listening, connections),), name="metrics", daemon=True).start()
    return True


class ConditionMetrics:
    """The condition of this process, as `payrelay status` shows it."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition

    def collect(self) -> Iterator[Metric]:
        """Give for how long each subject has had a problem."""
        family = GaugeMetricFamily(CONDITION, CONDITION_HELP, labels=CONDITION_LABELS)
        for (about, kind), age_s in self._condition.ages().items():
            family.add_metric([about, kind], age_s)
        yield family


def expose_condition(condition: Condition) -> None:
    """This process's condition is among its metrics. Once a process."""
    REGISTRY.register(ConditionMetrics(condition))


async def _serve(listening: socket.socket, connections: Connections) -> None:
    from uvicorn.server import ServerState

    from outbox.http.protocol import server_config

    loop = asyncio.get_running_loop()
    config = server_config(_Exposition(), connections, lifespan="off", log_config=None)
    config.load()
    state = ServerState()

    def connection() -> asyncio.Protocol:
        made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=state, app_state={}, _loop=loop
        )
        return made

    server = await loop.create_server(connection, sock=listening, backlog=config.backlog)
    await server.serve_forever()


class _Exposition:
    """The application: one path. A collector may take its time, so it does not hold up the loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(SCRAPES_MAX, thread_name_prefix="scrape")

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        status, content_type, body = 404, "application/json", _NOT_FOUND
        if scope["path"] == PATH:
            accepted = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")
            encode, content_type = choose_encoder(accepted)
            status, body = 200, await asyncio.get_running_loop().run_in_executor(self._threads, encode, REGISTRY)
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


_NOT_FOUND = msgspec.json.encode({"error": "no_route", "message": f"metrics are at {PATH}"})
