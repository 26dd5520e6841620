"""What is on the topics, read by an operator: no group, no commit."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from outbox.errors import NotReady, Unreachable
from outbox.settings import Settings
from schemas.codec import ID

TIMEOUT_S = 20.0
POLL_S = 0.1


FEW = {"queued.min.messages": 1, "fetch.message.max.bytes": 64 * 1024}
"""How to look at single records of a long log: without fetching megabytes ahead."""

Place = tuple[str, int]
"""A topic and one of its partitions."""


def read(settings: Settings, spans: Mapping[Place, range]) -> Iterator[Message]:
    """Give every record of the spans of offsets, each partition's in order. Raises Unreachable.

    Offsets that hold none (transaction markers, what was compacted) are passed over; a span reaches no further than its log.
    Memory is bounded.
    """
    left = {place: span for place, span in spans.items() if span}
    with _looking(settings, **{"enable.partition.eof": True}) as consumer:
        consumer.assign([TopicPartition(*place, span.start) for place, span in left.items()])
        moved = time.monotonic()
        while left:
            messages = consumer.consume(5_000, timeout=0.1)  # waits for all 5,000 or the time-out
            if messages:
                moved = time.monotonic()
            elif time.monotonic() - moved > TIMEOUT_S:
                raise Unreachable(f"no record in {TIMEOUT_S:.0f} s, though {len(left)} partitions have more")
            for message in messages:
                is_end = message.error() is not None and message.error().code() == KafkaError._PARTITION_EOF
                if message.error() and not is_end:
                    raise KafkaException(message.error())
                place, offset = (message.topic(), message.partition()), message.offset()
                if place not in left:
                    continue
                if not is_end and offset in left[place]:
                    yield message
                if offset + (not is_end) >= left[place].stop:
                    del left[place]


def offsets_at(settings: Settings, topics: Collection[str], at: datetime) -> dict[Place, int]:
    """Return of each partition the offset of the first record appended at that time or later; its end, if there is none.

    Partitions of topics that do not exist are left out. Raises Unreachable.
    """
    with _looking(settings) as consumer:
        found = consumer.list_topics(timeout=TIMEOUT_S).topics
        asked = [
            TopicPartition(name, number, int(at.timestamp() * 1000))
            for name in topics
            if name in found
            for number in found[name].partitions
        ]
        offsets = consumer.offsets_for_times(asked, timeout=TIMEOUT_S) if asked else []
        return {
            (one.topic, one.partition): one.offset
            if one.offset >= 0
            else consumer.get_watermark_offsets(one, timeout=TIMEOUT_S)[1]
            for one in offsets
        }


def event_times(settings: Settings, topics: Sequence[str], *, since: datetime) -> Iterator[tuple[UUID, float]]:
    """Give id and append time (seconds) of every event appended since, up to the ends of the logs as they are now.

    Topics that do not exist hold nothing. Raises Unreachable.
    """
    starts = offsets_at(settings, topics, since)
    ends = bounds(settings, topics)
    for message in read(settings, {place: range(start, ends[place][1]) for place, start in starts.items()}):
        if (identity := id_of(message)) is not None:
            yield identity, message.timestamp()[1] / 1000


def id_of(message: Message) -> UUID | None:
    """Return the id of the event that a record carries; None if it is no event of ours."""
    try:
        return UUID((dict(message.headers() or []).get(ID) or b"").decode())
    except ValueError:
        return None


def wait_published(
    settings: Settings, topics: Sequence[str], wanted: Collection[UUID], *, since: datetime, within_s: float
) -> dict[UUID, float]:
    """Return when (seconds) each of the events was first appended since, once all are. Raises NotReady after `within_s`."""
    deadline = time.monotonic() + within_s
    found: dict[UUID, float] = {}
    while len(found) < len(wanted):
        for identity, at in event_times(settings, topics, since=since):
            if identity in wanted:
                found.setdefault(identity, at)
        left = len(wanted) - len(found)
        if left and time.monotonic() > deadline:
            raise NotReady(f"{left} events are still on no topic after {within_s:.0f} s: payrelay doctor")
    return found


def wait_appended(
    settings: Settings, begins: Mapping[Place, int], wanted: Collection[UUID], *, within_s: float
) -> None:
    """Each of the events is on its topic at one of these offsets or a later one. Raises NotReady after `within_s`."""
    deadline = time.monotonic() + within_s
    left, at = set(wanted), dict(begins)
    while left:
        ends = {place: high for place, (_, high) in bounds(settings, {topic for topic, _ in at}).items()}
        for message in read(settings, {place: range(begin, ends.get(place, begin)) for place, begin in at.items()}):
            if (identity := id_of(message)) is not None:
                left.discard(identity)
        at = {place: ends.get(place, begin) for place, begin in at.items()}
        if left and time.monotonic() > deadline:
            raise NotReady(
                f"{len(left)} of {len(wanted)} events have not come to their topics in time: payrelay doctor"
            )
        if left:
            time.sleep(POLL_S)


def bounds(settings: Settings, topics: Collection[str]) -> dict[Place, tuple[int, int]]:
    """Return the earliest offset and the one after the last of every partition of the topics that exist. Raises Unreachable."""
    with _looking(settings) as consumer:
        found = consumer.list_topics(timeout=TIMEOUT_S).topics
        places = [TopicPartition(name, number) for name in topics if name in found for number in found[name].partitions]
        return {
            (place.topic, place.partition): consumer.get_watermark_offsets(place, timeout=TIMEOUT_S) for place in places
        }


def append_times(settings: Settings, offsets: Collection[tuple[Place, int]]) -> dict[tuple[Place, int], datetime]:
    """Return when the record at each of the offsets was appended. Every one must exist. Raises Unreachable.

    One client for all; several offsets of one partition are looked at one after the other.
    """
    times: dict[tuple[Place, int], datetime] = {}
    left = set(offsets)
    if not left:
        return times
    with _looking(settings, **FEW) as consumer:
        deadline = time.monotonic() + TIMEOUT_S
        while left:
            asked = dict(sorted(left))  # of each partition one
            left -= set(asked.items())
            consumer.assign([TopicPartition(*place, offset) for place, offset in asked.items()])
            while asked:
                if time.monotonic() > deadline:
                    raise Unreachable(f"no record in {TIMEOUT_S:.0f} s of {len(asked)} partitions")
                record = consumer.poll(0.1)
                if record is None:
                    continue
                if record.error():
                    raise KafkaException(record.error())
                place = (record.topic(), record.partition())
                if place in asked and record.offset() >= asked[place]:
                    at = datetime.fromtimestamp(record.timestamp()[1] / 1000, UTC)
                    times[place, asked.pop(place)] = at
    return times


def last_append(settings: Settings, topics: Sequence[str]) -> datetime | None:
    """Return when the last event was appended to any of the topics; None while they hold none. Raises Unreachable."""
    ends = {(place, high - 1) for place, (low, high) in bounds(settings, topics).items() if low < high}
    return max(append_times(settings, ends).values(), default=None)


@contextmanager
def _looking(settings: Settings, **how: object) -> Generator[Consumer]:
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap, "group.id": "payrelay-look", "enable.auto.commit": False,
         "log_level": 0, "auto.offset.reset": "earliest", "enable.partition.eof": False, **how}
    )  # fmt: skip
    try:
        yield consumer
    except KafkaException as error:
        raise Unreachable(f"Kafka does not answer at {settings.kafka_bootstrap}: {error.args[0].str()}") from error
    finally:
        consumer.close()
