"""The parking lot: events that a consumer could not apply, and the later events of their keys behind them, in order.

Other keys flow. This is the dead-letter queue that keeps order, which a dead-letter topic breaks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Connection, text

from outbox.inbox import Log, note_parked

ERROR_LENGTH_MAX = 2_000


class Cause(StrEnum):
    """Why an event is parked."""

    UNDECODABLE = "UNDECODABLE"
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    AHEAD_OF_CLOCK = "AHEAD_OF_CLOCK"
    BEHIND_HORIZON = "BEHIND_HORIZON"
    DUPLICATE_FACT = "DUPLICATE_FACT"
    REJECTED = "REJECTED"
    BEHIND_PARKED = "BEHIND_PARKED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """An event for the parking lot, whole."""

    offset: int
    event_id: UUID | None
    key: bytes | None
    type: str | None
    version: int | None
    headers: Mapping[str, str]
    value: bytes | None
    cause: Cause
    error: str


_PARK = text("""
    INSERT INTO parked (consumer, event_id, topic, topic_id, partition, "offset", key, type, version, headers, value,
                        cause, error, attempts)
    VALUES (:consumer, :event_id, :topic, :topic_id, :partition, :offset, :key, :type, :version,
            CAST(:headers AS jsonb), :value, :cause, :error, :attempts)
    ON CONFLICT DO NOTHING""")


def park(connection: Connection, consumer: str, log: Log, events: Sequence[Parked]) -> None:
    """The events are in the parking lot, each once, and the log is known to have some, if the caller commits. Repeatable."""
    if not events:
        return
    note_parked(connection, consumer, log)
    connection.execute(
        _PARK,
        [
            {
                "consumer": consumer,
                "event_id": event.event_id,
                "topic": log.topic,
                "topic_id": log.topic_id,
                "partition": log.partition,
                "offset": event.offset,
                "key": event.key,
                "type": _storable(event.type) if event.type else None,
                "version": event.version,
                "headers": json.dumps(dict(event.headers)).replace("\\u0000", "\\ufffd"),
                "value": event.value,
                "cause": event.cause.value,
                "error": _storable(event.error)[:ERROR_LENGTH_MAX],
                "attempts": 0 if event.cause is Cause.BEHIND_PARKED else 1,
            }
            for event in events
        ],
    )


def parked_keys(connection: Connection, consumer: str, keys: Collection[bytes]) -> set[bytes]:
    """Return which of the keys have an event in the consumer's parking lot."""
    rows = connection.execute(
        text("""SELECT DISTINCT key FROM parked
                WHERE consumer = :consumer
                  AND sha256(key) IN (SELECT sha256(wanted) FROM unnest(CAST(:keys AS bytea[])) AS wanted)"""),
        {"consumer": consumer, "keys": list(keys)},
    )
    return {bytes(row.key) for row in rows}


def _storable(told: str) -> str:
    """Return text as PostgreSQL can hold it."""
    return told.replace("\0", "\ufffd")
