"""How long events took: from the commit that recorded them to Kafka, and to the commit of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from confluent_kafka import Consumer, TopicPartition
from sqlalchemy import text

from ops.health import reader_engine
from outbox.clock import first_id_at
from outbox.settings import Settings
from schemas.codec import ID
from schemas.topics import PAYMENT_ORDER

READ_S = 30.0


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the values does not exceed; 0 of none.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.5), percentile([1.0], 0.99)
    (2.0, 1.0)
    """
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 1).__int__() - 1)] if ordered else 0.0


def latencies_ms(settings: Settings, *, since: datetime, consumer: str = "accounting") -> dict[str, list[float]]:
    """Return commit_to_kafka and commit_to_ledger of every event of payments recorded since, in milliseconds.

    Commit time is PostgreSQL's, of outbox and inbox row; Kafka time is the record's LogAppendTime.
    """
    committed = _commits(settings, "payments.outbox", "id", since)
    ledger = _commits(settings, "accounting.inbox", "event_id", since, consumer=settings.group_prefix + consumer)
    appended = _append_times(settings, set(committed), since)
    return {
        "commit_to_kafka": [(appended[one] - at) * 1000 for one, at in committed.items() if one in appended],
        "commit_to_ledger": [(ledger[one] - at) * 1000 for one, at in committed.items() if one in ledger],
    }


def _commits(settings: Settings, table: str, column: str, since: datetime, *, consumer: str = "") -> dict[UUID, float]:
    where = f"{column} >= :since" + (" AND consumer = :consumer" if consumer else "")
    statement = text(
        f"SELECT {column}, extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM {table} WHERE {where}"  # noqa: S608
    )
    parameters = {"since": first_id_at(since)} | ({"consumer": consumer} if consumer else {})
    with reader_engine(settings).connect() as connection:
        return {row[0]: float(row[1]) for row in connection.execute(statement, parameters)}


def _append_times(settings: Settings, wanted: set[UUID], since: datetime) -> dict[UUID, float]:
    """Return when the broker appended each event's first record, in seconds."""
    topic = settings.topic_prefix + PAYMENT_ORDER.name
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap, "group.id": "payrelay-measure", "enable.auto.commit": False,
         "log_level": 0, "auto.offset.reset": "earliest"}
    )  # fmt: skip
    found: dict[UUID, float] = {}
    try:
        at_ms = int(since.timestamp() * 1000)
        starts = consumer.offsets_for_times(
            [TopicPartition(topic, partition, at_ms) for partition in range(PAYMENT_ORDER.partitions)], timeout=READ_S
        )
        consumer.assign(starts)
        while len(found) < len(wanted):
            records = consumer.consume(5_000, timeout=2.0)
            if not records:
                break
            for record in records:
                if record.error():
                    continue
                identity = UUID(dict(record.headers() or [])[ID].decode())
                if identity in wanted:
                    found.setdefault(identity, record.timestamp()[1] / 1000)
    finally:
        consumer.close()
    return found
