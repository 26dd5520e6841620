"""How long events took: from the commit that recorded them to Kafka, and to the commit of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from ops.kafka.reader import event_times
from ops.pipeline.health import reader_engine
from outbox.clock import first_id_at
from outbox.settings import Settings
from schemas.topics import PAYMENT_ORDER


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
        "commit_to_kafka": [
            (appended[identity] - at) * 1000 for identity, at in committed.items() if identity in appended
        ],
        "commit_to_ledger": [
            (ledger[identity] - at) * 1000 for identity, at in committed.items() if identity in ledger
        ],
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
    times: dict[UUID, float] = {}
    for identity, at in event_times(settings, [settings.topic_prefix + PAYMENT_ORDER.name], since=since):
        if identity in wanted:
            times.setdefault(identity, at)
    return times
