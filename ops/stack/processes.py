"""The table of this version's processes: `serve`, `worker`, the local stack, its ports and its metrics all read it.

A process is named as `payrelay status` shows it: `service:NAME`, `worker:NAME` with what `payrelay worker` takes, `exporter`.
"""

from __future__ import annotations

from dataclasses import dataclass

from consumers.notification.queues import QUEUES

SERVICES = ("payments", "bank", "notification")
"""HTTP services, as `payrelay serve` takes them."""

PROCESSORS = ("funds", "points", "accounting", "notification", "settlement", "bank_notification")
"""The names in consumers/processors.py, spelled again: to import it would double the start-up time of each command."""

NOTIFIER = "notifier"
NOTIFIERS = {f"{NOTIFIER}:{queue}": {queue: service} for queue, service in QUEUES.items()}
"""Each queue's notifier as `payrelay worker` takes it, with the queue's name and service."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process that one payrelay command runs."""

    name: str
    arguments: tuple[str, ...]
    """Of the payrelay command."""
    needs: tuple[str, ...]
    """What must be there before it starts: gates of the local stack's supervisor."""
    serves_http: bool = False


PROCESSES = (
    *(
        Process(name=f"service:{name}", arguments=("serve", name), needs=("schema",), serves_http=True)
        for name in SERVICES
    ),
    *(Process(name=f"worker:{name}", arguments=("worker", name), needs=("schema", "topics")) for name in PROCESSORS),
    *(Process(name=f"worker:{name}", arguments=("worker", name), needs=("schema",)) for name in NOTIFIERS),
    # Last: it shares the processors' cores and does no payment's work.
    Process(name="exporter", arguments=("exporter",), needs=("connector",)),
)
"""In the order of `payrelay status`; each serves metrics on a port of its own."""

HTTP = tuple(process.name for process in PROCESSES if process.serves_http)
METERED = tuple(process.name for process in PROCESSES)
