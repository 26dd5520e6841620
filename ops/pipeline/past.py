"""Consumers that read events older than their inbox: which have finished, and what is forgotten then.

docs/adr/0015-a-consumers-first-begin.md says why. A part of upkeep's round, as the tables' owner.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from ops.kafka.reader import Place, append_times, bounds
from ops.pipeline.health import reader_engine
from ops.pipeline.positions import consumer_positions
from outbox.clock import EPOCH
from outbox.migrate import owner_engine
from outbox.settings import SERVICES, Settings

FORGET_AFTER = timedelta(minutes=10)
"""Longer than a worker goes by what it has read of its horizon (consumers/delivery/messages.py: HORIZON_S)."""

FORGET_BATCH = 5_000
FORGET_BATCHES_MAX = 200
"""Batches forgotten in a round, each in a transaction of its own."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A consumer that still reads what is older than its inbox was when it began the topic."""

    service: str
    consumer: str
    topic: str
    horizon: UUID

    def until(self, outbox_days: int) -> datetime:
        """Return from when on no event is appended any more that is older than the horizon: an outbox keeps it so long.

        >>> from outbox.clock import first_id_of
        >>> from datetime import date
        >>> one = Reading(service="s", consumer="c", topic="t", horizon=first_id_of(date(2026, 1, 1)))
        >>> one.until(14).isoformat()
        '2026-01-15T00:00:00+00:00'
        """
        return EPOCH + timedelta(milliseconds=self.horizon.int >> 80) + timedelta(days=outbox_days)


def still_reading(connection: Connection) -> list[Reading]:
    """Return who reads what is older than its inbox. Reads only."""
    return [
        Reading(service=service, consumer=row.consumer, topic=row.topic, horizon=row.horizon)
        for service in SERVICES
        for row in connection.execute(
            text(f"SELECT consumer, topic, horizon FROM {service}.topic_begun WHERE passed_at IS NULL")  # noqa: S608
        )
    ]


def note_passed(settings: Settings, *, now: datetime) -> list[str]:
    """Who has read past its horizon keeps to it from now on; returns the consumers, each with its topic.

    Own transactions, as the owner. May be repeated, and run beside itself. A parked event that is older holds its consumer:
    it can be retried until then.
    """
    with reader_engine(settings).connect() as connection:
        readings = still_reading(connection)
    passed = _passed(settings, readings, now) if readings else []
    noted = []
    for reading in passed:
        with owner_engine(settings).begin() as owner:
            statement = text(f"""
                UPDATE {reading.service}.topic_begun SET passed_at = clock_timestamp()
                WHERE consumer = :consumer AND topic = :topic AND passed_at IS NULL AND NOT EXISTS (
                  SELECT FROM {reading.service}.parked WHERE consumer = :consumer AND topic = :topic
                  AND coalesce(CAST(event_id AS text), lower(headers ->> 'ce_id')) COLLATE "C" < :horizon)""")  # noqa: S608
            values = {"consumer": reading.consumer, "topic": reading.topic, "horizon": str(reading.horizon)}
            if owner.execute(statement, values).rowcount:
                noted.append(f"{reading.consumer} {reading.topic}")
    return noted


def forget_past(settings: Settings) -> dict[str, int]:
    """What was older is forgotten once its consumer keeps to its horizon, a while ago; returns how many rows, by table.

    Own transactions, as the owner; bounded, what is left is the next round's. May be repeated, and run beside itself.
    """
    forgotten: dict[str, int] = {}
    engine = owner_engine(settings)
    for service in SERVICES:
        statement = text(f"""
            DELETE FROM {service}.inbox_behind WHERE ctid = ANY (ARRAY (
              SELECT inbox_behind.ctid FROM {service}.inbox_behind JOIN {service}.topic_begun USING (consumer, topic)
              WHERE passed_at < clock_timestamp() - :after LIMIT :limit))""")  # noqa: S608
        for _ in range(FORGET_BATCHES_MAX):
            with engine.begin() as owner:
                count = owner.execute(statement, {"after": FORGET_AFTER, "limit": FORGET_BATCH}).rowcount
            if count:
                name = f"{service}.inbox_behind"
                forgotten[name] = forgotten.get(name, 0) + count
            if count < FORGET_BATCH:
                break
    return forgotten


def _passed(settings: Settings, readings: Collection[Reading], now: datetime) -> list[Reading]:
    logs = bounds(settings, {reading.topic for reading in readings})
    positions = {(position.consumer, position.place): position.begin for position in consumer_positions(settings)}
    begins = {
        reading: {place: positions.get((reading.consumer, place), low) for place, (low, _) in _of(reading.topic, logs)}
        for reading in readings
    }
    unread = {(place, begin) for own in begins.values() for place, begin in own.items() if begin < logs[place][1]}
    times = append_times(settings, unread)
    return [
        reading
        for reading, own in begins.items()
        if own and all(times.get(at, now) >= reading.until(settings.outbox_days) for at in own.items())
    ]


def _of(topic: str, logs: Mapping[Place, tuple[int, int]]) -> Iterable[tuple[Place, tuple[int, int]]]:
    return ((place, span) for place, span in logs.items() if place[0] == topic)
