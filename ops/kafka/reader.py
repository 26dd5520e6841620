"""What is on the topics, read by an operator: no group, no commit."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from operator import methodcaller
from uuid import UUID

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from ops.kafka.brokers import TIMEOUT_S, asking
from outbox.clock import EPOCH
from outbox.errors import NotReady, Unreachable
from outbox.settings import Settings
from schemas.codec import ID, UNREADABLE

POLL_S = 0.1

LEADERLESS = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)

FEW = {"queued.min.messages": 1, "fetch.message.max.bytes": 64 * 1024, "fetch.queue.backoff.ms": 10}
"""How to look at single messages of long logs: without fetching megabytes ahead. The queue is one message long, so that it is full at
each of a hundred partitions, which then wait for a second each unless they are set to wait less.
"""

_HEADERS = methodcaller("headers")

Place = tuple[str, int]
"""A topic and one of its partitions."""


def read(settings: Settings, spans: Mapping[Place, range], **how: object) -> Generator[Message]:
    """Give every message of the spans of offsets, each partition's in order. Raises Unreachable.

    Offsets that hold none (transaction markers, what was compacted) are passed over; a span reaches no further than its log.
    Memory is bounded. `how` is the client's configuration, e.g. FEW.
    """
    left = {place: span for place, span in spans.items() if span}
    with _looking(settings, **{"enable.partition.eof": True}, **how) as consumer:
        consumer.assign([TopicPartition(*place, span.start) for place, span in left.items()])
        moved = time.monotonic()
        while left:
            messages = consumer.consume(5_000, timeout=0.1)  # waits for all 5,000 or the time-out
            if not messages and time.monotonic() - moved > TIMEOUT_S:
                raise Unreachable(
                    f"no message in {TIMEOUT_S:.0f} s, though {len(left)} partitions have more: try again"
                )
            for message in messages:
                is_end = message.error() is not None and message.error().code() == KafkaError._PARTITION_EOF
                if message.error() and not is_end:
                    raise KafkaException(message.error())
                place, offset = (message.topic(), message.partition()), message.offset()
                if place not in left:
                    continue
                if not is_end and offset in left[place]:
                    yield _readable(message)
                if offset + (not is_end) >= left[place].stop:
                    del left[place]
            if messages:
                moved = time.monotonic()  # not before: the time that the caller took over them is not Kafka's


def follow(settings: Settings, begins: Mapping[Place, int]) -> Generator[Message | None]:
    """Give every message from these offsets on, as they come, without end; None whenever nothing has come for a moment.

    Raises Unreachable where Kafka says that it cannot answer; while it is merely away, nothing comes.
    """
    with _looking(settings) as consumer:
        consumer.assign([TopicPartition(*place, begin) for place, begin in begins.items()])
        while True:
            message = consumer.poll(POLL_S)
            if message is not None and message.error():
                raise KafkaException(message.error())
            yield _readable(message) if message is not None else None


def _readable(message: Message) -> Message:
    """Return the message with headers that can be read, as the processors read them (consumers/runtime/batches.py).

    Where the name of a header is no UTF-8, the client returns headers without a name, with an exception set: the call goes
    through a caller that looks for it, or it would come up somewhere later.
    """
    try:
        _HEADERS(message)
    except (UnicodeDecodeError, SystemError):
        message.set_headers([(UNREADABLE, b"the name of a header is no UTF-8")])
    return message


def offsets_at(settings: Settings, topics: Collection[str], at: datetime) -> dict[Place, int]:
    """Return of each partition the offset of the first message appended at that time or later; its end, if there is none.

    Partitions of topics that do not exist are left out. Raises Unreachable.
    """
    with _looking(settings) as consumer:
        existing = consumer.list_topics(timeout=TIMEOUT_S).topics
        wanted = [
            TopicPartition(name, number, max(0, int(at.timestamp() * 1000)))  # negative ones mean begin and end
            for name in topics
            if name in existing
            for number in existing[name].partitions
        ]
        offsets = consumer.offsets_for_times(wanted, timeout=TIMEOUT_S) if wanted else []
        return {
            (position.topic, position.partition): position.offset
            if position.offset >= 0
            else _watermarks(consumer, position)[1]
            for position in offsets
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


def appended_at(message: Message) -> datetime | None:
    """Return a message's time: of topics of ours, when the broker appended it.

    None where it has none, or one that is no date: a foreign producer may count in microseconds, and Kafka takes any number.
    """
    kind, milliseconds = message.timestamp()
    if kind == TIMESTAMP_NOT_AVAILABLE:
        return None
    try:
        return EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None


def id_of(message: Message) -> UUID | None:
    """Return the id of the event that a message carries; None if it is no event of ours."""
    try:
        return UUID((dict(message.headers() or []).get(ID) or b"").decode())
    except ValueError:
        return None


def wait_published(
    settings: Settings, topics: Sequence[str], wanted: Collection[UUID], *, since: datetime, within_s: float
) -> dict[UUID, float]:
    """Return when (seconds) each of the events was first appended since, once all are. Raises NotReady after `within_s`."""
    deadline = time.monotonic() + within_s
    times: dict[UUID, float] = {}
    while len(times) < len(wanted):
        for identity, at in event_times(settings, topics, since=since):
            if identity in wanted:
                times.setdefault(identity, at)
        left = len(wanted) - len(times)
        if left and time.monotonic() > deadline:
            raise NotReady(
                f"{left} events are still on no topic after {within_s:.0f} s. What holds them up: payrelay doctor"
            )
    return times


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
                f"{len(left)} of {len(wanted)} events have not come to their topics in time. What holds them up: payrelay doctor"
            )
        if left:
            time.sleep(POLL_S)


def bounds(settings: Settings, topics: Collection[str]) -> dict[Place, tuple[int, int]]:
    """Return the earliest offset and the one after the last of every partition of the topics that exist. Raises Unreachable."""
    with _looking(settings) as consumer:
        existing = consumer.list_topics(timeout=TIMEOUT_S).topics
        places = [
            TopicPartition(name, number) for name in topics if name in existing for number in existing[name].partitions
        ]
        return {(place.topic, place.partition): _watermarks(consumer, place) for place in places}


def stable_ends(settings: Settings, places: Collection[Place]) -> dict[Place, int]:
    """Return of each partition the offset from which on a reader of committed messages gets nothing yet. Raises Unreachable."""
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap, "log_level": 0})
    wanted = {TopicPartition(*place): OffsetSpec.latest() for place in places}
    with asking(settings):
        futures = (
            admin.list_offsets(wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=TIMEOUT_S)
            if wanted
            else {}
        )
        return {(place.topic, place.partition): future.result(TIMEOUT_S).offset for place, future in futures.items()}


def _watermarks(consumer: Consumer, place: TopicPartition) -> tuple[int, int]:
    """Return a partition's bounds; while it has no leader, as just after it was made, it is asked again."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            low, high = consumer.get_watermark_offsets(place, timeout=TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() not in LEADERLESS or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return low, high


def records_at(settings: Settings, offsets: Collection[tuple[Place, int]]) -> dict[tuple[Place, int], Message]:
    """Return the message at each of the offsets; those that hold none, or lie outside their log, are left out. Raises Unreachable."""
    logs = bounds(settings, {topic for (topic, _), _ in offsets})
    left = {(place, at) for place, at in offsets if place in logs and logs[place][0] <= at < logs[place][1]}
    messages = {}
    while left:
        ordered = dict(sorted(left))  # of each partition one
        left -= set(ordered.items())
        for message in read(settings, {place: range(at, at + 1) for place, at in ordered.items()}):
            messages[(message.topic(), message.partition()), message.offset()] = message
    return messages


def search(
    settings: Settings, topic: str, event_id: UUID, *, since: datetime, limit: int
) -> tuple[Message | None, bool]:
    """Return the first message of an event that was appended since, and whether every message since was looked at.

    At most so many messages of each partition are; a topic that does not exist holds nothing. Raises Unreachable.
    """
    ends = bounds(settings, [topic])
    starts = offsets_at(settings, [topic], since)
    spans = {place: range(start, min(ends[place][1], start + limit)) for place, start in starts.items()}
    wanted = str(event_id).encode()
    for message in read(settings, spans):
        if dict(message.headers() or []).get(ID) == wanted:
            return message, True
    return None, all(span.stop == ends[place][1] for place, span in spans.items())


def append_times(settings: Settings, offsets: Collection[tuple[Place, int]]) -> dict[tuple[Place, int], datetime]:
    """Return when the message at each of the offsets was appended, or the next one where there is none. Raises Unreachable.

    Left out where only transaction markers follow, or its time is no date. One client for all; several offsets of one partition
    are looked at one after the other.
    """
    times: dict[tuple[Place, int], datetime] = {}
    left = set(offsets)
    if not left:
        return times
    with _looking(settings, **FEW, **{"enable.partition.eof": True}) as consumer:
        while left:
            ordered = dict(sorted(left))  # of each partition one
            left -= set(ordered.items())
            consumer.assign([TopicPartition(*place, offset) for place, offset in ordered.items()])
            answered = time.monotonic()
            while ordered:
                if time.monotonic() - answered > TIMEOUT_S:
                    raise Unreachable(f"no message in {TIMEOUT_S:.0f} s of {len(ordered)} partitions: try again")
                record = consumer.poll(0.1)
                if record is None:
                    continue
                place = (record.topic(), record.partition())
                if record.error() is not None and record.error().code() == KafkaError._PARTITION_EOF:
                    ordered.pop(place, None)
                    answered = time.monotonic()
                    continue
                if record.error():
                    raise KafkaException(record.error())
                if place in ordered and record.offset() >= ordered[place]:
                    offset, answered = ordered.pop(place), time.monotonic()
                    if (at := appended_at(record)) is not None:
                        times[place, offset] = at
    return times


def last_appends(settings: Settings, topics: Collection[str]) -> dict[str, datetime]:
    """Return when the last event was appended to each of the topics; none of one that holds none. Raises Unreachable."""
    ends = {(place, high - 1) for place, (low, high) in bounds(settings, topics).items() if low < high}
    last: dict[str, datetime] = {}
    for ((topic, _), _), at in append_times(settings, ends).items():
        last[topic] = max(at, last.get(topic, at))
    return last


@contextmanager
def _looking(settings: Settings, **how: object) -> Generator[Consumer]:
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap, "group.id": "payrelay-look", "enable.auto.commit": False,
         "log_level": 0, "auto.offset.reset": "earliest", "enable.partition.eof": False,
         "isolation.level": "read_uncommitted", **how}
    )  # fmt: skip
    try:
        yield consumer
    except KafkaException as error:
        raise Unreachable(f"Kafka does not answer at {settings.kafka_bootstrap}: {error.args[0].str()}") from error
    finally:
        consumer.close()
