"""How the pipeline is, check by check, and the mending of a lost slot or publication."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from uuid import UUID

from confluent_kafka import KafkaException
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from connect.apply import apply_connector
from connect.client import ConnectClient, NoConnector
from ops.health import last_heartbeat, reader_engine, slot_state
from ops.records import Place, append_times, bounds, event_times, last_append, wait_published
from ops.topics import topic_states
from outbox.clock import first_id_at
from outbox.errors import NotReady, PayrelayError
from outbox.migrate import ensure_publication, ensure_slot, owner_engine
from outbox.partitions import DAYS_AHEAD_MIN, days_of
from outbox.publication import PUBLISHED_TABLES, published_tables
from outbox.settings import SERVICES, Settings
from outbox.tables import PARTITIONED
from schemas.topics import TOPICS

BEATS_MAX = 3
"""A heartbeat older than this many intervals is an alarm."""
RETAINED_BYTES_MAX = 1024**3
LAG_S_MAX = 60.0
"""A consumer whose oldest waiting message is older than this is an alarm."""
MARGIN = timedelta(minutes=15)
"""Longer than any transaction may be open: what was recorded this long before the last heartbeat has been published."""
REPAIR_S = 120.0
STEADY_S = 3.0
"""A reader of the slot that has stayed for this long is no task about to be restarted."""
POLL_S = 0.1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a consumer is in one log, and how far the log goes."""

    consumer: str
    place: Place
    next_offset: int
    low: int
    high: int

    @property
    def begin(self) -> int:
        """The first offset that waits, if any does."""
        return max(self.next_offset, self.low)

    @property
    def behind(self) -> int:
        """How many offsets wait."""
        return max(0, self.high - self.begin)


def consumer_positions(settings: Settings) -> list[Position]:
    """Return every consumer's position in the topics of today: one that was made again under its name is another log."""
    topics = {state.topic: state.topic_id for state in topic_states(settings) if state.found}
    with reader_engine(settings).connect() as connection:
        rows = [
            row
            for service in SERVICES
            for row in connection.execute(text(f"SELECT * FROM {service}.progress ORDER BY consumer, topic, partition"))  # noqa: S608
            if topics.get(row.topic) == row.topic_id
        ]
    ends = bounds(settings, topics)  # after the positions: a log only grows
    return [
        Position(
            consumer=row.consumer, place=place, next_offset=row.next_offset, low=ends[place][0], high=ends[place][1]
        )
        for row in rows
        if (place := (row.topic, row.partition)) in ends
    ]


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


def lag_ages(settings: Settings, positions: Sequence[Position], now: datetime) -> dict[Position, float]:
    """Return how old (seconds) the oldest message that waits is, of each position that is behind. Raises Unreachable."""
    behind = [one for one in positions if one.behind]
    times = append_times(settings, {(one.place, one.begin) for one in behind})
    return {one: (now - at).total_seconds() for one in behind if (at := times.get((one.place, one.begin))) is not None}


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


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What a repair of the slot would emit again."""

    since: dict[str, UUID]
    """Per outbox table, the smallest id that the snapshot reads."""
    missing: set[UUID]
    rows: int
    """Rows from there on: those that are on a topic already come twice, and the inbox drops them."""
    minutes: float


def plan_repair(settings: Settings, *, now: datetime, since: datetime | None = None) -> Repair:
    """Return what is recorded and on no topic, and from where on the snapshot must read. Reads only.

    Looks from 15 minutes before the last heartbeat or the last published event on, whichever is earlier: with its publication
    gone, PostgreSQL 18 lets the slot and the heartbeat move on and publishes nothing. `since` looks from further back.
    """
    kept = now - timedelta(days=settings.outbox_days)
    last = [last_heartbeat(settings), last_append(settings, _all_topics(settings)), since]
    begin = min((at for at in last if at is not None), default=kept) - MARGIN
    published = {identity for identity, _ in event_times(settings, _all_topics(settings), since=begin)}
    missing: set[UUID] = set()
    with reader_engine(settings).connect() as connection:
        for service in SERVICES:
            ids = connection.execute(
                text(f"SELECT id FROM {service}.outbox WHERE id >= :since"), {"since": first_id_at(begin)}  # noqa: S608
            ).scalars()  # fmt: skip
            missing |= set(ids) - published
        # All tables from one bound: rows recorded just before the oldest missing one may have been under way too.
        oldest = min(missing, default=first_id_at(now))
        bound = max(UUID(int=oldest.int - _as_id_distance(MARGIN)), first_id_at(begin))
        rows = sum(
            connection.execute(
                text(f"SELECT count(*) FROM {service}.outbox WHERE id >= :bound"),  # noqa: S608 - a schema of ours
                {"bound": bound},
            ).scalar_one()
            for service in SERVICES
        )
    minutes = (first_id_at(now).int - bound.int >> 80) / 60_000
    return Repair(
        since={f"{service}.outbox": bound for service in SERVICES}, missing=missing, rows=rows, minutes=minutes
    )


def repair_slot(settings: Settings, repair: Repair, *, say: Callable[[str], None]) -> None:
    """Slot and publication are new, what was missing is on its topic, and the connector streams. May be repeated.

    Own transactions, as the owner. The connector is stopped, and resumed with the snapshot bounded, then without the bound.
    """
    client = ConnectClient(settings.connect_url)
    say("stopping the connector")
    client.stop(settings.connector)
    client.wait_stopped(settings.connector)
    engine = owner_engine(settings)
    _drop_slot(settings, engine)
    with engine.begin() as connection:
        ensure_publication(connection)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        ensure_slot(connection, settings.slot)
    say(f"slot and publication are new; emitting again from {min(repair.since.values())} on")
    emit_missing(client, settings, repair, say=say)


def emit_missing(client: ConnectClient, settings: Settings, repair: Repair, *, say: Callable[[str], None]) -> None:
    """The connector, stopped and about to take a snapshot, has emitted what was missing, and streams. May be repeated.

    It is resumed with the snapshot bounded, then without the bound.
    """
    apply_connector(client, settings, since={table: str(bound) for table, bound in repair.since.items()})
    client.resume(settings.connector)
    client.wait_running(settings.connector)
    since = datetime.now().astimezone() - MARGIN
    wait_published(settings, _all_topics(settings), repair.missing, since=since, within_s=REPAIR_S)
    say(f"{len(repair.missing)} missing events are on their topics; taking the bound away")
    before = _wait_streaming(settings)
    if apply_connector(client, settings):
        client.wait_running(settings.connector)
        _wait_streaming(settings, after=before)


def _wait_streaming(settings: Settings, *, after: int = 0) -> int:
    """Return who reads the slot (a backend's pid), once it is another one than `after` and has stayed. Raises NotReady.

    A connector says RUNNING while it is still on its way there, while the task before a restart has yet to end, and between
    the two restarts that a changed configuration can bring.
    """
    deadline = time.monotonic() + REPAIR_S
    reader = text("SELECT active_pid FROM pg_replication_slots WHERE slot_name = :slot")
    seen, since = None, time.monotonic()
    while time.monotonic() < deadline:
        with reader_engine(settings).connect() as connection:
            pid = connection.execute(reader, {"slot": settings.slot}).scalar()
        if pid != seen:
            seen, since = pid, time.monotonic()
        if pid is not None and pid != after and time.monotonic() - since >= STEADY_S:
            return int(pid)
        time.sleep(POLL_S)
    raise NotReady(f"nobody reads slot {settings.slot} after {REPAIR_S:.0f} s: payrelay connect status")


def _drop_slot(settings: Settings, engine: Engine) -> None:
    """The slot is gone, whoever held it."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        slot = {"slot": settings.slot}
        for _ in range(50):
            connection.execute(
                text("""SELECT pg_terminate_backend(active_pid, 2000) FROM pg_replication_slots
                        WHERE slot_name = :slot AND active_pid IS NOT NULL"""),
                slot,
            )
            gone = connection.execute(
                text("""SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                        WHERE slot_name = :slot AND NOT active"""),
                slot,
            )
            if gone.rowcount or not slot_state(settings).found:
                return
    raise NotReady(f"slot {settings.slot} is held and does not let go: payrelay connect status")


def _all_topics(settings: Settings) -> list[str]:
    return [settings.topic_prefix + topic.name for topic in TOPICS]


def _as_id_distance(span: timedelta) -> int:
    return span // timedelta(milliseconds=1) << 80
