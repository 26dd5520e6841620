"""Whether everything runs that should run: a group member per processor, a database session per notifier, an answer per service."""

from __future__ import annotations

import time
from collections.abc import Sequence
from http.client import HTTPException

import requests
from sqlalchemy import text
from urllib3.exceptions import HTTPError

from connect.deadline import session
from consumers.notification.queues import QUEUES
from ops.delivery.registry import known_processors
from ops.kafka.groups import members_of
from ops.pipeline.health import reader_engine
from ops.stack.processes import HTTP_SERVICES
from ops.stack.state import StackFolder
from outbox.settings import Settings

ANSWER_S = 3.0
"""A service that has not answered its health route by then does not run."""
SETTLE_S = 5.0
"""A group is without members for a moment while its workers start or rebalance."""
POLL_S = 0.2


def idle_processors(settings: Settings) -> list[str]:
    """Return the processors whose consumer group has no member, by name. Looks again for five seconds. Raises Unreachable."""
    consumers = known_processors(settings)
    deadline = time.monotonic() + SETTLE_S
    while True:
        members = members_of(settings, list(consumers))
        idle = [processor.name for consumer, processor in consumers.items() if not members[consumer]]
        if not idle or time.monotonic() > deadline:
            return idle
        time.sleep(POLL_S)


def idle_queues(settings: Settings) -> list[str]:
    """Return the notification queues that no notifier serves: those without a session of it in the database."""
    with reader_engine(settings).connect() as connection:
        # Of this database: another one of the same server may belong to another payrelay.
        sessions = text("SELECT application_name FROM pg_stat_activity WHERE datname = current_database()")
        names = set(connection.execute(sessions).scalars())
    return [queue for queue in QUEUES if f"payrelay notifier {queue}" not in names]


def silent_services(settings: Settings) -> list[str]:
    """Return the HTTP services that do not answer their health route at the address that the settings name."""
    addresses = {
        name: service.url(settings) or f"http://{_reachable(settings.host)}:{service.port(settings)}"
        for name, service in HTTP_SERVICES.items()
    }
    return [name for name, address in addresses.items() if not _answers(f"{address.rstrip('/')}/health")]


def stopped_parts(folder: StackFolder) -> list[str]:
    """Return the parts of the local stack that do not run, by name."""
    return [state.name for state in folder.states() if state.state != "running"]


def parts_of(folder: StackFolder, names: Sequence[str]) -> list[str]:
    """Return the local stack's parts that run these processors, notifiers or services."""
    return [state.name for state in folder.states() if state.name.partition(":")[2] in names]


def _reachable(host: str) -> str:
    """Return the address at which a server that listens on `host` answers on this machine."""
    return "127.0.0.1" if host in ("0.0.0.0", "") else host  # noqa: S104 - compared, not bound


def _answers(url: str) -> bool:
    with session() as client:
        try:
            with client.get(
                url, timeout=ANSWER_S, allow_redirects=False, stream=True
            ) as answer:  # its body is not read
                return answer.ok
        except (requests.RequestException, HTTPError, HTTPException, OSError):
            return False
