"""What a consumer has done about events: applied, parked, or nothing yet; and what delivering them again would do. Looked up in sets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import TypeVar
from uuid import UUID

from confluent_kafka import Message
from sqlalchemy import Connection, Engine, text

from consumers.delivery.processor import Processor
from outbox.inbox import Log
from outbox.rows import as_json
from outbox.settings import SERVICES
from schemas.codec import Envelope, Undecodable, UnknownType, decode

T = TypeVar("T")


class Fate(StrEnum):
    """What became of an event at a consumer."""

    APPLIED = "APPLIED"
    """Or skipped by an operator, which the consumer's `parked_audit` tells."""
    PARKED = "PARKED"
    MISSING = "MISSING"
    """Neither: it waits, or was skipped, or the inbox has forgotten it."""


def fates(connection: Connection, service: str, consumer: str, ids: Collection[UUID]) -> dict[UUID, Fate]:
    """Return what became of each event at a consumer, of the service whose inbox and parking lot it has. Reads only.

    Three look-ups by index for all of them; a few thousand at a time keep the statements small.
    """
    if service not in SERVICES:
        raise ValueError(service)
    outcomes = dict.fromkeys(ids, Fate.MISSING)
    wanted = {"consumer": consumer, "ids": list(outcomes)}
    for fate, table in ((Fate.PARKED, "parked"), (Fate.APPLIED, "inbox"), (Fate.APPLIED, "inbox_behind")):
        rows = connection.execute(
            text(f"SELECT event_id FROM {service}.{table} WHERE consumer = :consumer AND event_id = ANY(:ids)"),  # noqa: S608
            wanted,
        )
        outcomes.update(dict.fromkeys(rows.scalars(), fate))
    return outcomes


def progress_of(connection: Connection, schema: str, consumer: str) -> dict[Log, int]:
    """Return how far a consumer is in each log, as a schema's rows say."""
    rows = connection.execute(
        text(f"""SELECT cluster_id, topic, topic_id, partition, next_offset FROM {schema}.progress
                 WHERE consumer = :consumer"""),  # noqa: S608 - a schema of ours
        {"consumer": consumer},
    )
    return {
        Log(cluster_id=row.cluster_id, topic=row.topic, topic_id=row.topic_id, partition=row.partition): row.next_offset
        for row in rows
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFate:
    """A message beside what its consumer has done about it."""

    message: Message
    envelope: Envelope | None
    """None where it does not read as an event."""
    fate: Fate


@dataclass(kw_only=True)
class Foreseen:
    """What delivering a range of messages to a consumer again would do."""

    records: int = 0
    applied: int = 0
    """Known: they would be skipped."""
    would_apply: int = 0
    parked: int = 0
    unreadable: int = 0
    outside: int = 0
    """Of those that would be applied, those that would notify a receiver."""

    def add(self, processor: Processor, met: MessageFate) -> None:
        """The message is counted."""
        self.records += 1
        if met.fate is Fate.APPLIED:
            self.applied += 1
        elif met.fate is Fate.PARKED:
            self.parked += 1
        elif met.envelope is None:
            self.unreadable += 1
        else:
            self.would_apply += 1
            self.outside += processor.notifies(met.envelope.event)


def meet(
    engine: Engine, processor: Processor, consumer: str, messages: Iterable[Message], *, chunk: int = 2_000
) -> Iterator[MessageFate]:
    """Give each message, in order, with what the consumer has done about its event so far. Reads only; memory is bounded.

    A message that has no fate by its event's id, or reads as no event, is PARKED if it lies in the parking lot by its place:
    what is parked under a key that is not its event's has no id there.
    """
    for part in batched(messages, chunk):
        read = [(message, _envelope(message)) for message in part]
        ids = {envelope.id for _, envelope in read if envelope is not None}
        with engine.connect() as connection:
            by_id = fates(connection, processor.service, consumer, ids)
            places = {
                (message.topic(), message.partition(), message.offset())
                for message, envelope in read
                if envelope is None or by_id[envelope.id] is Fate.MISSING
            }
            lot = _parked_places(connection, processor.service, consumer, places)
        for message, envelope in read:
            fate = Fate.MISSING if envelope is None else by_id[envelope.id]
            if fate is Fate.MISSING and (message.topic(), message.partition(), message.offset()) in lot:
                fate = Fate.PARKED
            yield MessageFate(message=message, envelope=envelope, fate=fate)


def _envelope(message: Message) -> Envelope | None:
    try:
        return decode({name: value for name, value in message.headers() or [] if value is not None}, message.value())
    except (Undecodable, UnknownType):
        return None


def _parked_places(
    connection: Connection, service: str, consumer: str, places: Collection[tuple[str, int, int]]
) -> set[tuple[str, int, int]]:
    if not places:
        return set()
    rows = [{"topic": topic, "partition": partition, "offset": offset} for topic, partition, offset in places]
    parked_rows = connection.execute(
        text(f"""SELECT parked.topic, parked.partition, parked."offset" FROM {service}.parked
                 JOIN json_to_recordset(CAST(:rows AS json)) AS place (topic text, partition integer, "offset" bigint)
                   USING (topic, partition, "offset")
                 WHERE consumer = :consumer"""),  # noqa: S608 - a schema of ours
        {"consumer": consumer, "rows": as_json(rows)},
    )
    return {(row.topic, row.partition, row.offset) for row in parked_rows}


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Give the items in lists of at most so many. (itertools has it from Python 3.12 on.)

    >>> list(batched("abc", 2))
    [['a', 'b'], ['c']]
    """
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
