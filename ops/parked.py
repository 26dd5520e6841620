"""The parking lot as an operator reads it: counts first, then the events, then one of them whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from outbox.errors import Refused
from outbox.settings import SERVICES


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which parked events are meant; what is empty leaves all in."""

    consumer: str = ""
    key: str = ""
    type: str = ""
    cause: str = ""
    begin: datetime | None = None
    """Parked from then on."""
    end: datetime | None = None
    """Parked before then."""


@dataclass(frozen=True, kw_only=True)
class Count:
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


_WHERE = """
    WHERE (:consumer = '' OR consumer = :consumer) AND (:key = '' OR key = convert_to(:key, 'UTF8'))
      AND (:type = '' OR type = :type) AND (:cause = '' OR cause = :cause)
      AND (CAST(:begin AS timestamptz) IS NULL OR parked_at >= :begin)
      AND (CAST(:end AS timestamptz) IS NULL OR parked_at < :end)"""


def counts(connection: Connection, wanted: Filter) -> list[Count]:
    """Return how many events are parked, by consumer, cause and type, the most first."""
    found = [
        Count(**row._mapping)
        for row in _rows(
            connection,
            f"""SELECT consumer, cause, coalesce(type, '') AS type, count(*) AS events, count(DISTINCT key) AS keys,
                       min(parked_at) AS oldest
                FROM {{service}}.parked {_WHERE} GROUP BY consumer, cause, type""",  # noqa: S608
            wanted,
        )
    ]
    return sorted(found, key=lambda one: -one.events)


def events(connection: Connection, wanted: Filter, *, limit: int) -> list[ParkedRow]:
    """Return parked events, the oldest first, at most so many."""
    rows = _rows(
        connection,
        f"""SELECT '{{service}}:' || id AS id, consumer, cause, coalesce(type, '') AS type, key,
                   topic || '/' || partition || '@' || "offset" AS place, parked_at, attempts, error
            FROM {{service}}.parked {_WHERE} ORDER BY parked_at, id LIMIT :limit""",  # noqa: S608
        wanted,
        limit=limit,
    )
    found = [ParkedRow(**{**row._mapping, "key": _legible(row.key), "error": row.error[:200]}) for row in rows]
    return sorted(found, key=lambda one: one.parked_at)[:limit]


def event(connection: Connection, identity: str) -> dict[str, Any]:
    """Return everything of one parked event; raises Refused for an id that is none."""
    service, _, number = identity.partition(":")
    if service not in SERVICES or not number.isdecimal():
        raise Refused(f"{identity!r} is no id of a parked event: payrelay parked list shows them, e.g. accounting:12")
    row = connection.execute(
        text(f"SELECT * FROM {service}.parked WHERE id = :id"), {"id": int(number)}  # noqa: S608 - a schema of ours
    ).first()  # fmt: skip
    if row is None:
        raise Refused(f"no event {identity} is parked")
    return {**row._mapping, "id": identity, "key": _legible(row.key), "value": _legible(row.value)}


def _rows(connection: Connection, statement: str, wanted: Filter, **more: int) -> Iterator[Any]:
    for service in SERVICES:
        yield from connection.execute(text(statement.format(service=service)), {**vars(wanted), **more})


def _legible(content: bytes | None) -> str:
    return "" if content is None else bytes(content).decode(errors="backslashreplace")
