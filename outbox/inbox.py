"""The way in: how far a consumer has come, and which events it has applied. Both in the transaction of the effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import Connection, text

from outbox.clock import first_id_of
from outbox.partitions import days_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One partition of one topic as it was created. A topic made again under its old name is another log."""

    cluster_id: str
    topic: str
    topic_id: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An event as it came in: its id and where it lay."""

    event_id: UUID
    offset: int


_LOG = "cluster_id = :cluster_id AND topic = :topic AND topic_id = :topic_id AND partition = :partition"

_LOCK = text(f"SELECT next_offset FROM progress WHERE consumer = :consumer AND {_LOG} FOR UPDATE")  # noqa: S608

_ADVANCE = text(f"""
    UPDATE progress SET next_offset = :next_offset, mirrored_offset = :mirrored_offset, updated_at = clock_timestamp()
    WHERE consumer = :consumer AND {_LOG}""")  # noqa: S608

_BEGIN = text("""
    INSERT INTO progress (consumer, cluster_id, topic, topic_id, partition, next_offset)
    VALUES (:consumer, :cluster_id, :topic, :topic_id, :partition, :next_offset)
    ON CONFLICT DO NOTHING""")

_ARRIVE = text("""
    INSERT INTO inbox (consumer, event_id, topic, partition, "offset")
    SELECT :consumer, arrival.event_id, :topic, :partition, arrival.at
    FROM unnest(CAST(:ids AS uuid[]), CAST(:offsets AS bigint[])) AS arrival (event_id, at)
    ORDER BY arrival.event_id
    ON CONFLICT DO NOTHING
    RETURNING event_id""")


def _keys(consumer: str, log: Log) -> dict[str, str | int]:
    return {
        "consumer": consumer,
        "cluster_id": log.cluster_id,
        "topic": log.topic,
        "topic_id": log.topic_id,
        "partition": log.partition,
    }


def positions(connection: Connection, consumer: str, logs: Sequence[Log]) -> dict[Log, tuple[int, int | None]]:
    """Return the next offset, and the one last mirrored to Kafka, of each log that the consumer has begun."""
    found = {}
    for log in logs:
        row = connection.execute(
            text(f"SELECT next_offset, mirrored_offset FROM progress WHERE consumer = :consumer AND {_LOG}"),  # noqa: S608
            _keys(consumer, log),
        ).first()
        if row is not None:
            found[log] = (row.next_offset, row.mirrored_offset)
    return found


def begin_log(connection: Connection, consumer: str, log: Log, *, next_offset: int) -> None:
    """The consumer has a position in the log; one that it had is kept. Transaction: the caller's."""
    connection.execute(_BEGIN, {**_keys(consumer, log), "next_offset": next_offset})


def lock_progress(connection: Connection, consumer: str, log: Log) -> int | None:
    """Return the consumer's next offset, locked until the caller's transaction ends; None where it never began."""
    offset: int | None = connection.execute(_LOCK, _keys(consumer, log)).scalar()
    return offset


def advance(connection: Connection, consumer: str, log: Log, *, next_offset: int, mirrored_offset: int | None) -> None:
    """Everything below `next_offset` is done, if the caller commits. Call it under `lock_progress`."""
    parameters = {**_keys(consumer, log), "next_offset": next_offset, "mirrored_offset": mirrored_offset}
    connection.execute(_ADVANCE, parameters)


def arrive(connection: Connection, consumer: str, log: Log, arrivals: Sequence[Arrival]) -> set[UUID]:
    """Return the ids that this consumer had not applied before; they count as applied if the caller commits.

    One statement, in id order, so that two workers that meet the same events wait for, and never on, each other.
    """
    parameters = {
        "consumer": consumer,
        "topic": log.topic,
        "partition": log.partition,
        "ids": [arrival.event_id for arrival in arrivals],
        "offsets": [arrival.offset for arrival in arrivals],
    }
    return set(connection.execute(_ARRIVE, parameters).scalars())


def horizon(connection: Connection, service: str) -> tuple[UUID, UUID]:
    """Return the smallest id whose repeats the inbox would still recognise, and the smallest id too far ahead for it."""
    days = days_of(connection, service, "inbox")
    if not days:
        return first_id_of(date.max), first_id_of(date.max)
    return first_id_of(days[0]), first_id_of(date.fromordinal(days[-1].toordinal() + 1))
