"""The parking lot as an operator reads it, counts first, then the events, then one of them whole; and its ways out.

`ops` reads; retry and skip act with the DSN of the service whose events they are.
"""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

import consumers.delivery.retry as out
from consumers.delivery.loop import Delivery
from ops.delivery.registry import processor_of
from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.errors import Misused, UnknownName
from outbox.parking import Act
from outbox.settings import SERVICES, Settings
from schemas.numeric import parse_whole


@dataclass(frozen=True, kw_only=True)
class ParkedFilter:
    """Which parked events are meant; what is empty leaves all in."""

    identity: str = ""
    """As `payrelay parked list --events` shows it."""
    consumer: str = ""
    key: str = ""
    type: str = ""
    cause: str = ""
    begin: datetime | None = None
    """Parked from then on."""
    end: datetime | None = None
    """Parked before then."""


@dataclass(frozen=True, kw_only=True)
class ParkedCount:
    """Parked events of one kind; those that wait behind their key's are counted with their cause BEHIND_PARKED."""

    consumer: str
    cause: str
    type: str
    events: int
    keys: int
    oldest: datetime


@dataclass(frozen=True, kw_only=True)
class ParkedRow:
    """A parked event in a list."""

    id: str
    """The service and its number there: what `payrelay parked show` takes."""
    consumer: str
    cause: str
    type: str
    key: str
    place: str
    parked_at: datetime
    attempts: int
    error: str


@dataclass(frozen=True, kw_only=True)
class ParkedQueue:
    """A parked key with all that waits behind its first event, or one event without a key."""

    id: str
    """The first event's."""
    consumer: str
    key: bytes | None
    events: int
    cause: str
    type: str
    error: str

    @property
    def legible_key(self) -> str:
        return _legible(self.key)


"""Of the number in an event's id; a bigint holds it."""

_WHERE = """
    WHERE (:identity = '' OR '{service}:' || id = :identity) AND (:consumer = '' OR consumer = :consumer) AND (:key = '' OR key = convert_to(:key, 'UTF8'))
      AND (:type = '' OR type = :type) AND (:cause = '' OR cause = :cause)
      AND (CAST(:begin AS timestamptz) IS NULL OR parked_at >= :begin)
      AND (CAST(:end AS timestamptz) IS NULL OR parked_at < :end)"""


def counts(connection: Connection, wanted: ParkedFilter) -> list[ParkedCount]:
    """Return how many events are parked, by consumer, cause and type, the most first."""
    groups = [
        ParkedCount(**row._mapping)
        for row in _rows(
            connection,
            f"""SELECT consumer, cause, coalesce(type, '') AS type, count(*) AS events, count(DISTINCT key) AS keys,
                       min(parked_at) AS oldest
                FROM {{service}}.parked {_WHERE} GROUP BY consumer, cause, type""",  # noqa: S608
            wanted,
        )
    ]
    return sorted(groups, key=lambda group: -group.events)


def events(connection: Connection, wanted: ParkedFilter, *, limit: int) -> list[ParkedRow]:
    """Return parked events, the oldest first, at most so many."""
    rows = _rows(
        connection,
        f"""SELECT '{{service}}:' || id AS id, consumer, cause, coalesce(type, '') AS type, key,
                   topic || '/' || partition || '@' || "offset" AS place, parked_at, attempts, error
            FROM {{service}}.parked {_WHERE} ORDER BY parked_at, id LIMIT :limit""",  # noqa: S608
        wanted,
        limit=limit,
    )
    listed = [ParkedRow(**{**row._mapping, "key": _legible(row.key), "error": row.error[:200]}) for row in rows]
    return sorted(listed, key=lambda row: row.parked_at)[:limit]


def event(connection: Connection, identity: str) -> dict[str, Any]:
    """Return everything of one parked event; raises Refused for an unknown id."""
    service, number = place_of(identity)
    row = connection.execute(
        text(f"SELECT * FROM {service}.parked WHERE id = :id"), {"id": number}  # noqa: S608 - a schema of ours
    ).first()  # fmt: skip
    if row is None:
        raise UnknownName(f"no event {identity} is parked. Parked events are shown by: payrelay parked list --events")
    return {**row._mapping, "id": identity, "key": _legible(row.key), "value": _legible(row.value)}


def place_of(identity: str) -> tuple[str, int]:
    """Return the service of a parked event and its number there; raises Refused for an unknown id."""
    service, _, number = identity.partition(":")
    try:
        if service in SERVICES:
            return service, parse_whole(number)
    except ValueError:
        pass
    raise Misused(
        f"{identity[:80]!r} is no id of a parked event, e.g. accounting:12. The ids are shown by: payrelay parked list --events"
    )


def queues(connection: Connection, wanted: ParkedFilter, *, limit: int) -> list[ParkedQueue]:
    """Return what a retry of the wanted events tries, oldest first: of an event with a key, the whole key from its head."""
    rows = _rows(
        connection,
        f"""SELECT '{{service}}:' || min(lot.id) AS id, lot.consumer, lot.key, count(*) AS events,
                   (array_agg(lot.cause ORDER BY lot.id))[1] AS cause,
                   (array_agg(coalesce(lot.type, '') ORDER BY lot.id))[1] AS type,
                   (array_agg(left(lot.error, 200) ORDER BY lot.id))[1] AS error
            FROM {{service}}.parked AS lot
            WHERE (lot.consumer, sha256(lot.key)) IN (SELECT consumer, sha256(key) FROM {{service}}.parked {_WHERE})
               OR lot.key IS NULL AND lot.id IN (SELECT id FROM {{service}}.parked {_WHERE})
            GROUP BY lot.consumer, lot.key, CASE WHEN lot.key IS NULL THEN lot.id END
            ORDER BY min(lot.id) LIMIT :limit""",  # noqa: S608 - schemas of ours
        wanted,
        limit=limit,
    )
    return [ParkedQueue(**row._mapping) for row in rows][:limit]


def retry(settings: Settings, chosen: Sequence[ParkedQueue], act: Act) -> Iterator[tuple[ParkedQueue, out.Drained]]:
    """Each queue is empty and its key flows, or its first event still fails with the others behind it; gives which, and why.

    Own transactions, one an event, as the service. May be repeated and cut off anywhere. Raises Refused before anything is
    done if a consumer is none of this version's.
    """
    processors = {queue.consumer: processor_of(settings, queue.consumer) for queue in chosen}
    with _engines(settings) as engine_of:
        for queue in chosen:
            engine = engine_of(processors[queue.consumer].service)
            delivery = Delivery(processors[queue.consumer], engine, consumer=queue.consumer, clock=utc_now)
            if queue.key is not None:
                yield queue, out.retry_key(engine, delivery, queue.key, act)
            else:
                yield queue, out.retry_keyless(engine, delivery, place_of(queue.id)[1], act)
        for consumer, processor in processors.items():
            out.settle_lot(engine_of(processor.service), consumer)


def skip(settings: Settings, chosen: Sequence[ParkedRow], act: Act) -> int:
    """The events are no longer parked, will not be applied, and are kept whole in the audit table; returns how many were parked.

    Own transactions, one an event, as the service. May be repeated and cut off anywhere.
    """
    skipped = 0
    with _engines(settings) as engine_of:
        for row in chosen:
            service, number = place_of(row.id)
            skipped += out.skip(engine_of(service), row.consumer, number, act)
        for service, consumer in {(place_of(row.id)[0], row.consumer) for row in chosen}:
            out.settle_lot(engine_of(service), consumer)
    return skipped


def operator() -> str:
    """Return who runs this process, as the operating system knows it."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


@contextmanager
def _engines(settings: Settings) -> Iterator[Callable[[str], Engine]]:
    """Give one engine per service; disposed of afterwards."""
    made: dict[str, Engine] = {}

    def engine_of(service: str) -> Engine:
        if service not in made:
            made[service] = engine_for(settings.dsn_of(service), name=f"parked {service}", pool_size=1)
        return made[service]

    try:
        yield engine_of
    finally:
        for engine in made.values():
            engine.dispose()


def _rows(connection: Connection, statement: str, wanted: ParkedFilter, **more: int) -> Iterator[Any]:
    if wanted.identity:
        place_of(wanted.identity)
    for service in SERVICES:
        yield from connection.execute(text(statement.format(service=service)), {**vars(wanted), **more})


def _legible(content: bytes | None) -> str:
    return "" if content is None else bytes(content).decode(errors="backslashreplace")
