"""The parking lot: events that a consumer could not apply, and the later events of their keys behind them, in order.

Other keys flow. This is the dead-letter queue that keeps order, which a dead-letter topic breaks.

The live stream and whoever takes something out (retry, skip) meet at an advisory lock per consumer and key. So does whoever hands
events over again, who neither parks nor takes out: consumers/delivery/redeliver.py.

- Who takes out locks the key first and then reads what is parked of it, in one transaction per event. It only removes, or
  leaves as it was.
- The live stream parks behind what is parked, or lets flow. It may do either only under the lock, held to its commit: else a
  retry could take out the last row of the key while an event parks behind it, or see an empty lot and let the key flow
  past an event that is parked a moment later. So it looks which of its keys are parked, locks those, and looks again: the
  second statement sees what a retry has committed while the lock was waited for (READ COMMITTED), and decides.
- A key that was not parked at the first look needs no lock: nobody but its own stream can park it, and of one log, one
  transaction claims at a time. Nor does the poison that opens a key's queue: until its commit nobody knows of it.
- Locks are taken after the claim of progress and before the handler's rows, in the order of their numbers, and who takes out
  holds one: no two wait on each other for them. Roll-back frees them with everything else undone.
- Of a consumer of several topics, a key's events in one may flow past what is parked of it in another: order is promised within
  a topic.
- A topic made again: the old log's last records may be in one worker's hands while another reads the new log. Keys are the
  consumer's, whatever the log, so the lock and the lot are the same; `begin_log` sees to it that the new log looks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from outbox.inbox import Log, note_parked

ERROR_LENGTH_MAX = 2_000


class Cause(StrEnum):
    """Why an event is parked."""

    UNDECODABLE = "UNDECODABLE"
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    UNKNOWN_VERSION = "UNKNOWN_VERSION"
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


# The same event is known by its id, the same record by its place and its content. The place alone says nothing: a log that was
# cut off and grew again has another record there. Whoever parks holds the log's progress, so nobody parks the record beside us.
_PARK = text("""
    INSERT INTO parked (consumer, event_id, topic, topic_id, partition, "offset", key, type, version, headers, value,
                        cause, error, attempts)
    SELECT :consumer, CAST(:event_id AS uuid), :topic, :topic_id, :partition, :offset, fresh.key, :type, CAST(:version AS bigint),
           fresh.headers, fresh.value, :cause, :error, :attempts
    FROM (SELECT CAST(:key AS bytea) AS key, CAST(:headers AS jsonb) AS headers, CAST(:value AS bytea) AS value) AS fresh
    WHERE NOT EXISTS (
      SELECT FROM parked
      WHERE consumer = :consumer AND topic_id = :topic_id AND partition = :partition AND "offset" = :offset
        AND parked.key IS NOT DISTINCT FROM fresh.key AND parked.value IS NOT DISTINCT FROM fresh.value
        AND parked.headers = fresh.headers)
    ON CONFLICT (consumer, event_id) DO NOTHING""")


def park(connection: Connection, consumer: str, events: Mapping[Log, Sequence[Parked]]) -> None:
    """Each log's events are in the parking lot, each once, and claims look for them, if the caller commits. Repeatable.

    Transaction: the caller's, which has claimed the logs' progress.
    """
    rows = [_row(consumer, log, event) for log, parked in events.items() for event in parked]
    if rows:
        note_parked(connection, consumer, [log for log, parked in events.items() if parked])
        connection.execute(_PARK, rows)


def _row(consumer: str, log: Log, event: Parked) -> dict[str, Any]:
    return {
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


# From key to key by the index, however many events wait behind each.
_LOT_KEYS = text("""
    WITH RECURSIVE lot AS (
      (SELECT sha256(key) AS digest, key FROM parked
       WHERE consumer = :consumer AND sha256(key) IS NOT NULL ORDER BY sha256(key) LIMIT 1)
      UNION ALL
      SELECT later.digest, later.key FROM lot CROSS JOIN LATERAL (
        SELECT sha256(parked.key) AS digest, parked.key FROM parked
        WHERE consumer = :consumer AND sha256(parked.key) > lot.digest ORDER BY sha256(parked.key) LIMIT 1) AS later)
    SELECT key FROM lot LIMIT :limit""")

# LIMIT keeps it at one probe a key.
_PARKED_KEYS = text("""
    SELECT wanted.key FROM unnest(CAST(:keys AS bytea[])) AS wanted (key) CROSS JOIN LATERAL (
      SELECT FROM parked WHERE consumer = :consumer AND sha256(parked.key) = sha256(wanted.key) LIMIT 1) AS found""")

_LOCK_KEYS = text("""
    SELECT pg_advisory_xact_lock(number)
    FROM (SELECT DISTINCT hashtextextended('parked ' || CAST(:consumer AS text) || encode(sha256(wanted.key), 'hex'), 0)
                 AS number
          FROM unnest(CAST(:keys AS bytea[])) AS wanted (key) ORDER BY number) AS ordered""")

_PARKED_FROM = text("""
    SELECT parked.key, parked.topic, min(coalesce(parked.version, 0)) AS version
    FROM (SELECT DISTINCT key FROM unnest(CAST(:keys AS bytea[])) AS wanted (key)) AS wanted
    JOIN parked ON parked.consumer = :consumer AND sha256(parked.key) = sha256(wanted.key)
    GROUP BY parked.key, parked.topic""")

_HELD = """
    SELECT id, event_id, topic, topic_id, partition, "offset", key, headers, value FROM parked WHERE consumer = :consumer"""

_HEAD = text(f"{_HELD} AND sha256(key) = sha256(:key) ORDER BY id LIMIT 1")

_HELD_BY_ID = text(f"{_HELD} AND id = :id")

# Whole where it leaves the lot; where it stays, it is there to be seen.
_AUDIT = text("""
    INSERT INTO parked_audit (action, outcome, error, reason, actor, event)
    SELECT :action, :outcome, :error, :reason, :actor,
           CASE WHEN :leaves THEN to_jsonb(parked) ELSE to_jsonb(parked) - 'value' - 'headers' END
    FROM parked WHERE id = :id""")

_REMOVE = text("DELETE FROM parked WHERE id = :id")

_FAILED_AGAIN = text("UPDATE parked SET cause = :cause, error = :error, attempts = attempts + 1 WHERE id = :id")


def parked_keys(connection: Connection, consumer: str, keys: Collection[bytes]) -> set[bytes]:
    """Return which of the keys have an event in the consumer's parking lot: looked up from the side that has fewer keys."""
    lot = set(connection.execute(_LOT_KEYS, {"consumer": consumer, "limit": len(keys) + 1}).scalars())
    if len(lot) <= len(keys):
        return lot.intersection(keys)
    return set(connection.execute(_PARKED_KEYS, {"consumer": consumer, "keys": list(keys)}).scalars())


def lock_keys(connection: Connection, consumer: str, keys: Collection[bytes]) -> None:
    """Nobody else parks behind these keys or takes out anything of theirs until the caller's transaction ends."""
    connection.execute(_LOCK_KEYS, {"consumer": consumer, "keys": list(keys)})


def blocked_keys(connection: Connection, consumer: str, keys: Collection[bytes]) -> set[bytes]:
    """Return which of the keys must not flow; they stay so, and the others free, until the caller's transaction ends."""
    parked = parked_keys(connection, consumer, keys)
    if not parked:
        return parked
    lock_keys(connection, consumer, parked)
    return parked_keys(connection, consumer, parked)


def parked_from(connection: Connection, consumer: str, keys: Collection[bytes]) -> dict[tuple[str, bytes], int]:
    """Return of each topic and key with something parked the smallest version that is; 0 where one of them shows none.

    What has this version or a later one lies in the parking lot or belongs behind it. The caller has locked the keys, or the
    answer may be old.
    """
    parked = parked_keys(connection, consumer, keys)
    if not parked:
        return {}
    rows = connection.execute(_PARKED_FROM, {"consumer": consumer, "keys": list(parked)})
    return {(row.topic, bytes(row.key)): row.version for row in rows}


@dataclass(slots=True, kw_only=True)
class Held:
    """An event as it lies in the parking lot: a record again."""

    id: int
    event_id: UUID | None
    log: Log
    offset: int
    key: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    value: bytes | None


def head_of(connection: Connection, consumer: str, key: bytes) -> Held | None:
    """Return the first event of a key, which the caller has locked; None once nothing of it is parked."""
    return _held(connection.execute(_HEAD, {"consumer": consumer, "key": key}).first())


def held(connection: Connection, consumer: str, number: int) -> Held | None:
    """Return one event, its key locked by this call (or, without one, all that have none); None if it is parked no more."""
    wanted = {"consumer": consumer, "id": number}
    event = _held(connection.execute(_HELD_BY_ID, wanted).first())
    if event is not None:
        lock_keys(connection, consumer, [event.key or b""])
        event = _held(connection.execute(_HELD_BY_ID, wanted).first())
    return event


class Action(StrEnum):
    """What is done about a parked event."""

    RETRY = "RETRY"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """Something done about parked events: what, by whom, why. The database adds its role and the time."""

    action: Action
    actor: str
    reason: str = ""


def take_out(connection: Connection, event: Held, act: Act, *, outcome: str) -> None:
    """The event is no longer parked, and the audit table keeps it whole, if the caller commits."""
    _audit(connection, event, act, outcome=outcome, error="", leaves=True)
    connection.execute(_REMOVE, {"id": event.id})


def note_failure(connection: Connection, event: Held, act: Act, *, cause: Cause, error: str) -> None:
    """The event stays where it is, with one attempt more and what it fails at now, if the caller commits."""
    error = _storable(error)[:ERROR_LENGTH_MAX]
    _audit(connection, event, act, outcome=cause.value, error=error, leaves=False)
    connection.execute(_FAILED_AGAIN, {"id": event.id, "cause": cause.value, "error": error})


def _audit(connection: Connection, event: Held, act: Act, *, outcome: str, error: str, leaves: bool) -> None:
    parameters = {"outcome": outcome, "error": error, "leaves": leaves, "id": event.id}
    values = {"action": act.action.value, "actor": act.actor, "reason": _storable(act.reason)}
    connection.execute(_AUDIT, parameters | values)


def _held(row: Row[Any] | None) -> Held | None:
    if row is None:
        return None
    return Held(
        id=row.id,
        event_id=row.event_id,
        # Which cluster it came from is not kept; topics have ids of their own.
        log=Log(cluster_id="", topic=row.topic, topic_id=row.topic_id, partition=row.partition),
        offset=row.offset,
        key=row.key,
        headers=[(name, value.encode()) for name, value in row.headers.items()],
        value=row.value,
    )


def _storable(content: str) -> str:
    """Return text as PostgreSQL can hold it."""
    return content.replace("\0", "\ufffd")
