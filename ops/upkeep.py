"""Clean-up, round by round: days made ahead, days past their retention dropped once nothing can need them, old answers purged.

A round is bounded; what is left is the next one's. What goes wrong in one place holds up no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from confluent_kafka import KafkaException
from sqlalchemy.exc import SQLAlchemyError

from ops.pipeline.positions import consumer_positions
from ops.records import append_times
from outbox.database import engine_for
from outbox.errors import PayrelayError
from outbox.migrate import owner_engine
from outbox.partitions import drop_days, make_days
from outbox.settings import SERVICES, Settings
from producers.payments.settlement import forget_notifications
from schemas.topics import FOREVER_MS, TOPICS, Topic

DROPS_MAX = 30
"""Days looked at in a round, of one table."""

PURGE_BATCH = 1_000
PURGE_BATCHES_MAX = 200
"""Batches purged in a round, each in a transaction of its own."""

SEGMENT = timedelta(days=7)
"""Kafka drops whole segments, of up to a week: a record may outlive its topic's retention by as much."""

NOTIFICATIONS = "payments.bank_notification"

REPORT = "upkeep.json"
"""The last round's report, in a stack's folder."""


@dataclass(kw_only=True)
class Upkeep:
    """What a round did, and what it left, and why."""

    at: str
    made: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    """Days past their retention, each with what still needs it."""
    purged: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    """What went wrong, by place; the next round tries again."""

    def rows(self) -> list[dict[str, str]]:
        """Return the report line by line."""
        return [
            *({"what": name, "outcome": "made"} for name in self.made),
            *({"what": name, "outcome": "dropped"} for name in self.dropped),
            *({"what": name, "outcome": f"kept: {reason}"} for name, reason in self.kept.items()),
            *({"what": name, "outcome": f"{count} purged"} for name, count in self.purged.items() if count),
            *({"what": name, "outcome": f"failed: {error}"} for name, error in self.errors.items()),
        ]

    def summary(self) -> str:
        """Return the report in one line.

        >>> Upkeep(at="", made=["a", "b"], kept={"c": "in use", "d": "in use"}, errors={"e": "no lock"}).summary()
        'made 2, dropped 0, purged 0, kept 2 (in use); failed: e: no lock'
        """
        reasons = f" ({'; '.join(Counter(self.kept.values()))})" if self.kept else ""
        failed = "".join(f"; failed: {place}: {error}" for place, error in self.errors.items())
        done = f"made {len(self.made)}, dropped {len(self.dropped)}, purged {sum(self.purged.values())}"
        return f"{done}, kept {len(self.kept)}{reasons}{failed}"


def upkeep(settings: Settings, *, now: datetime, topics: Sequence[Topic] = TOPICS) -> Upkeep:
    """Days are there ahead of `now`; of those past retention, the ones that nothing can need are gone; old answers are purged.

    Own transactions, as the owner, and as payments for its rows. May be repeated, cut off anywhere and run beside itself.
    A part that is away or busy is in the report, and raises nothing.
    """
    report = Upkeep(at=now.isoformat(timespec="seconds"))
    today, readable_from = now.date(), date.min  # where Kafka does not answer, no inbox day is dropped
    with _noted(report, "kafka"):
        readable_from = min(_readable_from(now, topics), _unread_from(settings))
    with _noted(report, "owner"):
        engine = owner_engine(settings)
        for service in SERVICES:
            with _noted(report, service):
                report.made += make_days(engine, [service], today=today)
        # The outboxes first: what they let go of no longer holds an inbox day.
        for table, days in (("outbox", settings.outbox_days), ("inbox", settings.inbox_days)):
            for service in SERVICES:
                with _noted(report, f"{service}.{table}"):
                    dropped, kept = drop_days(
                        engine,
                        service,
                        table,
                        before=today - timedelta(days=days),
                        slot=settings.slot,
                        readable_from=readable_from,
                        limit=DROPS_MAX,
                    )
                    report.dropped += dropped
                    report.kept |= {f"{service}.{name}": reason for name, reason in kept.items()}
    with _noted(report, NOTIFICATIONS):
        before = now - timedelta(days=settings.bank_notification_days)
        report.purged[NOTIFICATIONS] = _purge(settings, before=before)
    return report


def _readable_from(now: datetime, topics: Sequence[Topic]) -> date:
    """Return the oldest day of which a topic with a retention may hold events; from one kept for ever none is expected again.

    >>> from datetime import UTC
    >>> week = Topic(name="t", service="s", key="k", partitions=1, retention_ms=7 * 86_400_000)
    >>> _readable_from(datetime(2026, 1, 31, tzinfo=UTC), [week, *TOPICS])
    datetime.date(2026, 1, 17)
    """
    finite = [topic.retention_ms for topic in topics if topic.retention_ms != FOREVER_MS]
    return (now - timedelta(milliseconds=max(finite)) - SEGMENT).date() if finite else date.max


def _unread_from(settings: Settings) -> date:
    """Return the oldest day of which a consumer may still have an event to read: what its inbox forgets it can never apply.

    An event is appended at most as long after it was recorded as its outbox keeps it.
    """
    behind = [one for one in consumer_positions(settings) if one.behind]
    appended = append_times(settings, {(one.place, one.begin) for one in behind}).values()
    return (min(appended) - timedelta(days=settings.outbox_days)).date() if appended else date.max


def _purge(settings: Settings, *, before: datetime) -> int:
    engine = engine_for(settings.dsn_of("payments"), name="upkeep", pool_size=1)
    purged = 0
    try:
        for _ in range(PURGE_BATCHES_MAX):
            with engine.begin() as connection:
                count = forget_notifications(connection, before=before, limit=PURGE_BATCH)
            purged += count
            if count < PURGE_BATCH:
                break
    finally:
        engine.dispose()
    return purged


@contextmanager
def _noted(report: Upkeep, place: str) -> Iterator[None]:
    """What goes wrong inside stands in the report, and the round goes on."""
    try:
        yield
    except (PayrelayError, SQLAlchemyError, KafkaException) as error:
        report.errors[place] = str(getattr(error, "orig", error)).splitlines()[0]
