"""What is on the topics, read by an operator: no group, no commit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from confluent_kafka import Consumer, KafkaException, TopicPartition

from outbox.errors import Unreachable
from outbox.settings import Settings
from schemas.codec import ID

TIMEOUT_S = 20.0


def event_times(settings: Settings, topics: Sequence[str], *, since: datetime) -> Iterator[tuple[UUID, float]]:
    """Give id and append time (seconds) of every event appended since, up to the ends of the logs as they are now.

    Topics that do not exist hold nothing. Raises Unreachable.
    """
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap, "group.id": "payrelay-look", "enable.auto.commit": False,
         "log_level": 0, "auto.offset.reset": "earliest", "enable.partition.eof": False}
    )  # fmt: skip
    try:
        yield from _read(consumer, topics, int(since.timestamp() * 1000))
    except KafkaException as error:
        raise Unreachable(f"Kafka does not answer at {settings.kafka_bootstrap}: {error.args[0].str()}") from error
    finally:
        consumer.close()


def last_append(settings: Settings, topics: Sequence[str]) -> datetime | None:
    """Return when the last event was appended to any of the topics; None while they hold none. Raises Unreachable."""
    hour = timedelta(hours=1)
    now = datetime.now(UTC)
    for back in (hour, 24 * hour, 24 * 14 * hour, now - datetime(2000, 1, 1, tzinfo=UTC)):
        times = [at for _, at in event_times(settings, topics, since=now - back)]
        if times:
            return datetime.fromtimestamp(max(times), UTC)
    return None


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
            if identity := dict(record.headers() or []).get(ID):
                yield UUID(identity.decode()), record.timestamp()[1] / 1000
