"""The table of this version's processes. `serve`, `worker`, `status`, the local stack, its ports and its metrics all read it.

A process is named as `payrelay status` shows it: `service:NAME`, `worker:NAME` with what `payrelay worker` takes, `exporter`.
Nothing heavy is imported: consumers and services are named here, and imported by the process that runs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consumers.notification.queues import QUEUES
from consumers.processors import PROCESSORS
from outbox.errors import Misused

if TYPE_CHECKING:  # `payrelay status` needs no settings
    from outbox.settings import Settings

INFRASTRUCTURE = ("postgres", "kafka", "connect")
"""What all processes stand on: the embedded stack's servers, and docker-compose.yml's services."""

GATES = (*INFRASTRUCTURE, "schema", "topics", "connector")
"""What a process may need before it starts: a server that answers, or a step that the supervisor has done."""


@dataclass(frozen=True, kw_only=True)
class HttpService:
    """A service that answers over HTTP, as `payrelay serve` takes it. Its port is the setting `<name>_port`."""

    name: str
    app: str
    """Where the function is that makes its application of settings."""
    has_url: bool = False
    """Whether others are sent to it, at the setting `<name>_url`."""

    def port(self, settings: Settings) -> int:
        """Return the port at which it listens."""
        return int(getattr(settings, f"{self.name}_port"))

    def url(self, settings: Settings) -> str | None:
        """Return the address that others are given; None where there is none."""
        return str(getattr(settings, f"{self.name}_url")) if self.has_url else None


HTTP_SERVICES = {
    service.name: service
    for service in (
        HttpService(name="payments", app="producers.payments.api:create_app", has_url=True),
        HttpService(name="bank", app="producers.bank.api:create_app", has_url=True),
        HttpService(name="notification", app="consumers.notification.api:create_app"),
    )
}

NOTIFIER = "notifier"
NOTIFIERS = {f"{NOTIFIER}:{queue}": {queue: service} for queue, service in QUEUES.items()}
"""Each queue's notifier as `payrelay worker` takes it, with the queue's name and service."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process that one payrelay command runs. Each serves metrics on a port of its own."""

    name: str
    arguments: tuple[str, ...]
    """Of the payrelay command."""
    needs: tuple[str, ...]
    """The gates that must be open before it starts."""
    serves_http: bool = False

    @property
    def metrics(self) -> str:
        """Return what the port of its metrics is called."""
        return f"metrics:{self.name}"


def processes() -> list[Process]:
    """Return every process, in the order of `payrelay status`."""
    return [
        *(
            Process(name=f"service:{name}", arguments=("serve", name), needs=("schema",), serves_http=True)
            for name in HTTP_SERVICES
        ),
        *(
            Process(name=f"worker:{name}", arguments=("worker", name), needs=("schema", "topics"))
            for name in PROCESSORS
        ),
        *(Process(name=f"worker:{name}", arguments=("worker", name), needs=("schema",)) for name in NOTIFIERS),
        # Last: it shares the processors' cores and does no payment's work.
        Process(name="exporter", arguments=("exporter",), needs=("connector",)),
    ]


def is_worker(name: str) -> bool:
    """Return whether a process is a worker: it tells its supervisor how it is."""
    return name.startswith("worker:")


def port_names() -> list[str]:
    """Return what each port of a local stack is called."""
    table = processes()
    http = [process.name for process in table if process.serves_http]
    return ["postgres", "kafka", "controller", "connect", *http, *(process.metrics for process in table)]


def require_gates(name: str, needs: Iterable[str]) -> None:
    """Return if the supervisor opens every gate that a process needs; raises Misused: it would wait for ever."""
    if unknown := [gate for gate in needs if gate not in GATES]:
        raise Misused(
            f"{name} needs {', '.join(unknown)}, which nothing opens: ops/stack/processes.py has {', '.join(GATES)}"
        )
