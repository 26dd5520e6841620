"""Clean-up, round by round: days made ahead, days past their retention dropped once nothing can need them, old answers purged;
parked events that were ahead of the clock retried once their day exists.

A round is bounded; what is left is the next one's. What goes wrong in one place holds up no other. Retention is counted back
from the earliest of three clocks: the host's, the database's, and the newest row. So a clock that is ahead removes nothing, and
if all three are ahead, a round takes two days of a table and no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from functools import partial
from sys import maxsize

from confluent_kafka import KafkaException
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from ops.kafka.reader import append_times
from ops.pipeline.clocks import waiting_ahead
from ops.pipeline.health import reader_engine
from ops.pipeline.past import forget_past, note_passed
from ops.pipeline.positions import consumer_positions
from ops.pipeline.upkeep_report import Upkeep
from outbox.clock import APART_MAX, Clocks
from outbox.database import engine_for
from outbox.errors import PayrelayError, message_of
from outbox.migrate import owner_engine
from outbox.parking import Act, Action, Cause
from outbox.partitions import drop_days, make_days, read_clocks
from outbox.settings import SERVICES, Settings
from producers.payments.settlement import forget_notifications
from schemas.topics import FOREVER_MS, TOPICS, Topic

DROPS_MAX = 2
"""Days dropped in a round, of one table; more needs `payrelay upkeep --catch-up`."""

PURGE_BATCH = 1_000
PURGE_BATCHES_MAX = 200
"""Batches purged in a round, each in a transaction of its own."""

SEGMENT = timedelta(days=7)
"""Kafka drops whole segments, of up to a week: a message may outlive its topic's retention by as much."""

NOTIFICATIONS = "payments.bank_notification"


def upkeep(
    settings: Settings,
    *,
    now: datetime,
    topics: Sequence[Topic] = TOPICS,
    catch_up: bool = False,
    execute: bool = True,
    clocks: Callable[..., Clocks] = read_clocks,
) -> Upkeep:
    """Days are there ahead of the database's time; of those past retention, ones that nothing can need are gone; old answers are purged.

    At most two days of a table are dropped, the oldest first; with `catch_up` all. Without `execute` nothing changes, and the
    report names what would be dropped. Own transactions, as the owner, and as payments for its rows. May be repeated, cut off
    anywhere and run beside itself. A part that is away or busy is in the report, and raises nothing.
    """
    report = Upkeep(at=now.isoformat(timespec="seconds"))
    with _noted(report, "owner"):
        engine = owner_engine(settings)
        with engine.connect() as connection:
            times = clocks(connection, now=now)
        if abs(times.apart) > APART_MAX:
            report.errors["clocks"] = f"host {times.host} and database {times.database} differ: set the wrong one right"
        if execute:
            for service in SERVICES:  # ids are made by the database's clock
                with _noted(report, service):
                    report.made += make_days(engine, [service], today=times.database.date())
        _drop(settings, engine, times, report, topics=topics, limit=maxsize if catch_up else DROPS_MAX, execute=execute)
        if execute:
            with _noted(report, "inbox_behind"):
                report.passed = note_passed(settings, now=min(times.host, times.database))
                report.purged |= forget_past(settings)
    if execute:
        with _noted(report, "parked"):
            report.retried = _retry_ahead(settings)
        with _noted(report, NOTIFICATIONS):
            report.purged[NOTIFICATIONS] = _purge(
                settings, lambda connection: clocks(connection, now=now, schemas=["payments"])
            )
    return report


def _drop(
    settings: Settings,
    engine: Engine,
    times: Clocks,
    report: Upkeep,
    *,
    topics: Sequence[Topic],
    limit: int,
    execute: bool,
) -> None:
    """Days past their retention are gone, as many as the limit allows; the report names them, and those that are kept or left."""
    readable_from = date.min  # where Kafka does not answer, no inbox day is dropped
    with _noted(report, "kafka"):
        readable_from = min(_readable_from(times.earliest, topics), _unread_from(settings))
    # The outboxes first: what they let go of no longer holds an inbox day.
    for table, days in (("outbox", settings.outbox_days), ("inbox", settings.inbox_days)):
        for service in SERVICES:
            with _noted(report, f"{service}.{table}"):
                drop = partial(
                    drop_days,
                    engine,
                    service,
                    table,
                    before=times.keep_from(days).date(),
                    slot=settings.slot,
                    readable_from=readable_from,
                )
                dropped, kept = drop(limit=limit, gone=report.dropped, execute=execute)
                report.dropped += dropped
                report.kept |= {f"{service}.{name}": reason for name, reason in kept.items()}
                if len(dropped) == limit and (more := drop(gone=report.dropped, execute=False)[0]):
                    report.left[f"{service}.{table}"] = len(more)


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
    behind = [position for position in consumer_positions(settings) if position.behind]
    appended = append_times(settings, {(position.place, position.begin) for position in behind}).values()
    return (min(appended) - timedelta(days=settings.outbox_days)).date() if appended else date.max


def _retry_ahead(settings: Settings) -> dict[str, int]:
    """Parked keys whose first event was ahead of the clock flow again if its day exists; returns the events applied, by consumer."""
    from ops.delivery.parked import ParkedQueue, retry  # here: the supervisor starts faster without the processors

    with reader_engine(settings).connect() as connection:
        ready = [key for key in waiting_ahead(connection, settings) if key.has_day]
    about = {"events": 1, "cause": Cause.AHEAD_OF_CLOCK.value, "type": "", "error": ""}
    chosen = [ParkedQueue(id=key.id, consumer=key.consumer, key=key.key, **about) for key in ready]  # type: ignore[arg-type]
    retried = Counter[str]()
    for queue, drained in retry(settings, chosen, Act(action=Action.RETRY, actor="upkeep")):
        retried[queue.consumer] += drained.applied
    return dict(retried)


def _purge(settings: Settings, clocks: Callable[[Connection], Clocks]) -> int:
    engine = engine_for(settings.dsn_of("payments"), name="upkeep", pool_size=1)
    purged = 0
    try:
        with engine.connect() as connection:
            before = clocks(connection).keep_from(settings.bank_notification_days)
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
    """An error inside is noted in the report, and the round goes on."""
    try:
        yield
    except (PayrelayError, SQLAlchemyError, KafkaException, OSError) as error:
        report.errors[place] = message_of(error)
