"""The checks of `payrelay doctor`: each row judges one thing, and names the command that fixes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache

from confluent_kafka import KafkaException
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from connect.client import ConnectClient, NoConnector
from ops.health import last_heartbeat, reader_engine, slot_state
from ops.pipeline.positions import Position, consumer_positions, lag_ages
from ops.topics import topic_states
from outbox.errors import PayrelayError
from outbox.partitions import DAYS_AHEAD_MIN, days_of
from outbox.publication import PUBLISHED_TABLES, published_tables
from outbox.settings import SERVICES, Settings
from outbox.tables import PARTITIONED

BEATS_MAX = 3
"""A heartbeat older than this many intervals is an alarm."""
RETAINED_BYTES_MAX = 1024**3
LAG_S_MAX = 60.0
"""A consumer whose oldest waiting message is older than this is an alarm."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of `payrelay doctor`."""

    check: str
    ok: bool
    found: str
    mend: str = ""


def examine(settings: Settings, *, now: datetime) -> list[Check]:
    """Return every check's outcome. Reads only; a part that does not answer is a finding, not an error."""
    positions = cache(lambda: consumer_positions(settings))  # for two checks
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("heartbeat", lambda: _heartbeat(settings, now)),
        ("slot", lambda: _slot(settings)),
        ("publication", lambda: _publication(settings)),
        ("connector", lambda: _connector(settings)),
        ("topics", lambda: _topics(settings)),
        ("days ahead", lambda: _days_ahead(settings, now)),
        ("positions", lambda: _positions(positions())),
        ("lag", lambda: _lag(settings, positions(), now)),
        ("parked", lambda: _parked(settings)),
    ]
    outcomes = []
    for name, check in checks:
        try:
            outcomes.append(check())
        except (PayrelayError, KafkaException, SQLAlchemyError, OSError) as error:
            found = str(getattr(error, "orig", error)).splitlines()[0]
            outcomes.append(Check(check=name, ok=False, found=found, mend="payrelay status"))
    return outcomes


def _heartbeat(settings: Settings, now: datetime) -> Check:
    beat_at = last_heartbeat(settings)
    if beat_at is None:
        return Check(check="heartbeat", ok=False, found="none", mend="payrelay connect status")
    age_s = (now - beat_at).total_seconds()
    limit_s = max(5.0, BEATS_MAX * settings.heartbeat_interval_ms / 1000)
    mend = (
        "" if age_s <= limit_s else "payrelay connect status; slot or publication lost: payrelay doctor --repair-slot"
    )
    return Check(check="heartbeat", ok=age_s <= limit_s, found=f"{age_s:.1f} s old, limit {limit_s:.0f} s", mend=mend)


def _slot(settings: Settings) -> Check:
    slot = slot_state(settings)
    if not slot.found or slot.wal_status == "lost":
        return Check(check="slot", ok=False, found="lost", mend="payrelay doctor --repair-slot")
    found = f"{'active' if slot.active else 'not active'}, {slot.retained_bytes} bytes of WAL retained"
    ok = slot.active and slot.retained_bytes <= RETAINED_BYTES_MAX
    return Check(check="slot", ok=ok, found=found, mend="" if ok else "payrelay connect restart")


def _publication(settings: Settings) -> Check:
    with reader_engine(settings).connect() as connection:
        tables = published_tables(connection)
    ok = tables == PUBLISHED_TABLES
    mend = "" if ok else "payrelay doctor --repair-slot"
    return Check(check="publication", ok=ok, found=f"{tables} of {PUBLISHED_TABLES} tables", mend=mend)


def _connector(settings: Settings) -> Check:
    """What Kafka Connect says, for the reader: it says RUNNING of a dead pipeline, so the heartbeat judges."""
    client = ConnectClient(settings.connect_url, patience_s=3.0)
    try:
        status = client.status(settings.connector)
    except NoConnector as error:
        return Check(check="connector", ok=False, found=str(error), mend="payrelay connect apply")
    causes = "; ".join(task.cause for task in status.tasks if task.cause)
    found = f"{status.state}, tasks {[task.state for task in status.tasks]} {causes}".strip()
    mend = "" if status.is_running else "payrelay connect restart, or resume"
    return Check(check="connector", ok=True, found=found, mend=mend)


def _topics(settings: Settings) -> Check:
    problems = [f"{state.topic}: {problem}" for state in topic_states(settings) for problem in state.problems]
    found = "; ".join(problems) or "as declared"
    return Check(check="topics", ok=not problems, found=found, mend="payrelay topics apply" if problems else "")


def _days_ahead(settings: Settings, now: datetime) -> Check:
    with reader_engine(settings).connect() as connection:
        ahead = days_ahead(connection, now.date())
    mend = "" if ahead >= DAYS_AHEAD_MIN else "payrelay upkeep"
    return Check(check="days ahead", ok=ahead >= DAYS_AHEAD_MIN, found=f"{ahead}, at least {DAYS_AHEAD_MIN}", mend=mend)


def days_ahead(connection: Connection, today: date) -> int:
    """Return for how many days after today every outbox and inbox can take rows."""
    last = min((days_of(connection, service, table) or [today])[-1] for service in SERVICES for table in PARTITIONED)
    return (last - today).days


def _positions(positions: Sequence[Position]) -> Check:
    """Every consumer's progress lies inside its log."""
    holes = [
        f"{one.consumer} {one.place[0]}/{one.place[1]} is at {one.next_offset}, the log holds {one.low} to {one.high}"
        for one in positions
        if not one.low <= one.next_offset <= one.high
    ]
    return Check(
        check="positions",
        ok=not holes,
        found="; ".join(holes) or "inside their logs",
        mend="the partition waits: restore the log, or have the events recorded again" if holes else "",
    )


def _lag(settings: Settings, positions: Sequence[Position], now: datetime) -> Check:
    """How far each consumer is behind: in messages, and in the age of the oldest that waits."""
    messages: dict[str, int] = {}
    ages: dict[str, float] = {}
    for one in positions:
        messages[one.consumer] = messages.get(one.consumer, 0) + one.behind
    for one, age_s in lag_ages(settings, positions, now).items():
        ages[one.consumer] = max(ages.get(one.consumer, 0.0), age_s)
    found = ", ".join(
        f"{consumer} {count}" + (f" ({ages[consumer]:.0f} s)" if consumer in ages else "")
        for consumer, count in sorted(messages.items())
    )
    ok = max(ages.values(), default=0.0) <= LAG_S_MAX
    mend = "" if ok else "payrelay status; payrelay logs worker:NAME"
    return Check(check="lag", ok=ok, found=found or "no consumer has begun", mend=mend)


def _parked(settings: Settings) -> Check:
    with reader_engine(settings).connect() as connection:
        counts = {
            service: connection.execute(text(f"SELECT count(*) FROM {service}.parked")).scalar_one()  # noqa: S608
            for service in SERVICES
        }
    parked = {service: count for service, count in counts.items() if count}
    return Check(check="parked", ok=not parked, found=str(parked or 0), mend="payrelay parked list" if parked else "")
