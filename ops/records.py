"""What is on the topics, read by an operator: no group, no commit."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

from confluent_kafka import Consumer, KafkaException, TopicPartition

from outbox.errors import NotReady, Unreachable
from outbox.settings import Settings
from schemas.codec import ID

TIMEOUT_S = 20.0


FEW = {"queued.min.messages": 1, "fetch.message.max.bytes": 64 * 1024}
"""How to look at single records of a long log: without fetching megabytes ahead."""

Place = tuple[str, int]
"""A topic and one of its partitions."""


def event_times(settings: Settings, topics: Sequence[str], *, since: datetime) -> Iterator[tuple[UUID, float]]:
    """Give id and append time (seconds) of every event appended since, up to the ends of the logs as they are now.

    Topics that do not exist hold nothing. Raises Unreachable.
    """
    with _looking(settings) as consumer:
        yield from _read(consumer, topics, int(since.timestamp() * 1000))


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
def _looking(settings: Settings, **how: int) -> Generator[Consumer]:
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


def _read(consumer: Consumer, topics: Sequence[str], since_ms: int) -> Iterator[tuple[UUID, float]]:
    found = consumer.list_topics(timeout=TIMEOUT_S).topics
    asked = [
        TopicPartition(name, number, since_ms) for name in topics if name in found for number in found[name].partitions
    ]
    starts = (
        [start for start in consumer.offsets_for_times(asked, timeout=TIMEOUT_S) if start.offset >= 0] if asked else []
    )
    ends = {}
    for start in starts:
        _, ends[start.topic, start.partition] = consumer.get_watermark_offsets(start, timeout=TIMEOUT_S)
    starts = [start for start in starts if start.offset < ends[start.topic, start.partition]]
    left = {(start.topic, start.partition) for start in starts}
    consumer.assign(starts)
    moved = time.monotonic()
    while left:
        records = consumer.consume(5_000, timeout=0.1)  # waits for all 5,000 or the time-out
        if records:
            moved = time.monotonic()
        elif time.monotonic() - moved > TIMEOUT_S:
            raise Unreachable(f"no record in {TIMEOUT_S:.0f} s, though {len(left)} partitions have more")
        for record in records:
            if record.error():
                raise KafkaException(record.error())
            place = (record.topic(), record.partition())
            if record.offset() + 1 >= ends[place]:
                left.discard(place)
            if (identity := _id_of(record.headers())) is not None:
                yield identity, record.timestamp()[1] / 1000


def _id_of(headers: Sequence[tuple[str, bytes | None]] | None) -> UUID | None:
    try:
        return UUID((dict(headers or []).get(ID) or b"").decode())
    except ValueError:  # no event of ours
        return None
