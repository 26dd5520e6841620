"""Searches past events on a consumer's topics, or in the outbox of the services that recorded them. Read only."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from confluent_kafka import Message
from sqlalchemy import Connection, Row, text

from connect.connector import headers_of_row
from consumers.delivery.loop import Delivery
from consumers.delivery.messages import headers_of
from consumers.delivery.redeliver import FROM_OUTBOX, Key, PastMessage
from ops.delivery.registry import processor_of
from ops.kafka.reader import bounds, offsets_at, read
from ops.kafka.reader import id_of as id_of_message
from ops.kafka.topics import topic_states
from ops.pipeline.health import reader_engine
from ops.pipeline.source import passed_lsn
from outbox.clock import first_id_at, time_of, utc_now
from outbox.errors import UnknownName
from outbox.inbox import Log
from outbox.settings import Settings
from schemas.codec import CORRELATION, ID, LSN, TYPE, VERSION
from schemas.numeric import parse_whole
from schemas.topics import Topic

SKEW = timedelta(minutes=1)
"""How far the clocks of PostgreSQL and Kafka may be apart."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which events are meant; what is empty leaves all in."""

    topic: str = ""
    """As it is declared, without a prefix."""
    begin: datetime | None = None
    """From then on: appended to the topic, or recorded in the outbox."""
    end: datetime | None = None
    """Before then."""
    key: str = ""
    type: str = ""
    order: str = ""
    events: frozenset[UUID] = frozenset()

    def holds(self, record: PastMessage) -> bool:
        """Return whether a message within the times is meant."""
        headers = headers_of(record)
        return (
            (not self.key or record.key == self.key.encode())
            and (not self.type or headers.get(TYPE) == self.type.encode())
            and (not self.order or headers.get(CORRELATION) == self.order.encode())
            and (not self.events or id_of(record) in self.events)
        )


@dataclass(kw_only=True)
class Search:
    """A consumer, and which events of the past are looked for on its behalf."""

    settings: Settings
    delivery: Delivery
    """Reads only: its engine is the reading role's."""
    connection: Connection
    """The reading role's, in the schema of the consumer's service."""
    topics: Sequence[Topic]
    window: Window
    met: set[UUID] = field(default_factory=set)
    """Events that were asked for by id and found so far."""

    def on_topics(self) -> Iterator[PastMessage]:
        """Give the window's messages as they lie on the topics, each partition's in order."""
        names = [self.settings.topic_prefix + topic.name for topic in self.topics]
        ids = {state.topic: state.topic_id for state in topic_states(self.settings)}
        spans = {place: range(*span) for place, span in bounds(self.settings, names).items()}
        if self.window.begin is not None:
            starts = offsets_at(self.settings, names, self.window.begin)
            spans = {place: range(max(span.start, starts[place]), span.stop) for place, span in spans.items()}
        if self.window.end is not None:
            stops = offsets_at(self.settings, names, self.window.end)
            spans = {place: range(span.start, min(span.stop, stops[place])) for place, span in spans.items()}
        clusters = self._clusters()
        for message in read(self.settings, spans):
            topic = message.topic()
            log = Log(
                cluster_id=clusters.get(ids[topic], ""), topic=topic, topic_id=ids[topic], partition=message.partition()
            )
            yield from self._meant(_past_message(message, log))

    def in_outbox(self) -> Iterator[PastMessage]:
        """Give the window's events as their outboxes hold them, in the order of their recording, made into messages."""
        window = self.window
        for service in sorted({topic.service for topic in self.topics}):
            rows = self.connection.execute(
                text(f"""SELECT * FROM {service}.outbox
                         WHERE topic = ANY(:topics) AND (CAST(:begin AS uuid) IS NULL OR id >= :begin)
                           AND (CAST(:end AS uuid) IS NULL OR id < :end) AND (:key = '' OR key = :key)
                           AND (:type = '' OR type = :type) AND (:order = '' OR correlation = :order)
                           AND (CAST(:ids AS uuid[]) IS NULL OR id = ANY(:ids))
                         ORDER BY id"""),  # noqa: S608 - a schema of ours
                {
                    "topics": [topic.name for topic in self.topics],
                    "begin": first_id_at(window.begin) if window.begin else None,
                    "end": first_id_at(window.end) if window.end else None,
                    "key": window.key,
                    "type": window.type,
                    "order": window.order,
                    "ids": list(window.events) or None,
                },
                execution_options={"stream_results": True, "yield_per": 2_000},
            )
            for row in rows:
                yield from self._meant(_made(row, self.settings.topic_prefix + row.topic))

    def waiting(self) -> NotYetRead:
        """Return what tells whether an event of the outbox is on its way to the consumer, as things stand now."""
        return NotYetRead(self)

    def begun(self) -> dict[tuple[str, int], int]:
        """Return the consumer's next offset in each partition of today's topics that it has begun."""
        ids = {state.topic_id for state in topic_states(self.settings) if state.found}
        return {(row.topic, row.partition): row.next_offset for row in self._progress() if row.topic_id in ids}

    def _clusters(self) -> dict[str, str]:
        return {row.topic_id: row.cluster_id for row in self._progress()}

    def _progress(self) -> list[Row[tuple[str, str, str, int, int]]]:
        statement = text(
            "SELECT cluster_id, topic, topic_id, partition, next_offset FROM progress WHERE consumer = :name"
        )
        return list(self.connection.execute(statement, {"name": self.delivery.consumer}))

    def _meant(self, record: PastMessage) -> Iterator[PastMessage]:
        if self.window.holds(record):
            if self.window.events and (identity := id_of(record)) is not None:
                self.met.add(identity)
            yield record


class NotYetRead:
    """Tells which events of an outbox the live stream has yet to come to, themselves or an earlier one of their key.

    Those lie on the topic beyond the consumer's progress, or are not published yet and will be.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._names = [search.settings.topic_prefix + topic.name for topic in search.topics]
        self._passed_lsn = passed_lsn(search.settings)
        self._published: set[UUID] | None = None
        begun = search.begun()
        self._first: dict[Key, int] = {}
        logs = bounds(search.settings, self._names)
        self._ends = {place: high for place, (_, high) in logs.items()}
        spans = {place: range(max(low, begun.get(place, low)), high) for place, (low, high) in logs.items()}
        for message in read(search.settings, spans):
            key = (message.topic(), message.key() or b"")
            version = _version(dict(message.headers() or []))
            self._first[key] = min(version, self._first.get(key, version))

    def __call__(self, record: PastMessage) -> bool:
        """Return whether a message made of an outbox row waits. Messages come in the order of their recording."""
        headers = headers_of(record)
        first = self._first.get((record.log.topic, record.key or b""))
        if first is not None and int(headers[VERSION]) >= first:
            return True
        if self._passed_lsn is None or int(headers[LSN]) < self._passed_lsn:
            return False
        identity = id_of(record)
        if self._published is None:  # of what the slot is not known to have passed, most is published
            since = ((time_of(identity) if identity else None) or utc_now()) - SKEW
            starts = offsets_at(self._search.settings, self._names, since)
            spans = {place: range(start, self._ends.get(place, start)) for place, start in starts.items()}
            # No further than was looked for what is ahead: what has come since is on its way.
            self._published = {
                event_id
                for message in read(self._search.settings, spans)
                if (event_id := id_of_message(message)) is not None
            }
        return identity not in self._published


@contextmanager
def searching(settings: Settings, consumer: str, window: Window) -> Generator[Search]:
    """Give a search on a consumer's behalf. Raises Refused for what is no consumer of this version, or no topic that it reads."""
    processor = processor_of(settings, consumer)
    topics = [topic for topic in processor.topics if window.topic in ("", topic.name)]
    if not topics:
        names = ", ".join(topic.name for topic in processor.topics)
        raise UnknownName(f"{consumer} does not read {window.topic}; it reads {names}")
    engine = reader_engine(settings)
    with engine.connect() as connection:
        connection.execute(text(f"SET search_path = {processor.service}"))
        delivery = Delivery(processor, engine, consumer=consumer, clock=utc_now)
        yield Search(settings=settings, delivery=delivery, connection=connection, topics=topics, window=window)


def id_of(record: PastMessage) -> UUID | None:
    """Return the id of the event that a message carries; None if it is no event of ours."""
    try:
        return UUID(headers_of(record).get(ID, b"").decode())
    except ValueError:
        return None


def _version(headers: Mapping[str, bytes | None]) -> int:
    """Return the version that a message's headers tell; 0, before all others, where they tell none."""
    try:
        return parse_whole(headers.get(VERSION) or b"0")
    except ValueError:
        return 0


def _past_message(message: Message, log: Log) -> PastMessage:
    return PastMessage(
        log=log,
        offset=message.offset(),
        key=message.key(),
        headers=message.headers() or [],
        value=message.value(),
    )


def _made(row: Row[tuple[object, ...]], topic: str) -> PastMessage:
    return PastMessage(
        log=Log(cluster_id="", topic=topic, topic_id="", partition=FROM_OUTBOX),
        offset=FROM_OUTBOX,
        key=row.key.encode(),
        headers=headers_of_row(row._asdict()),
        value=row.payload.encode(),
    )
