"""Repair of a lost slot or publication, or of a database that went back: what is recorded and on no topic is emitted again,
and the connector streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from connect.apply import apply_connector
from connect.client import ConnectClient
from ops.kafka.reader import event_times, last_appends, wait_published
from ops.pipeline.arrival import REPAIRING, newest_rows
from ops.pipeline.health import last_heartbeat, reader_engine, slot_state
from ops.pipeline.snapshot import emit_again
from outbox.clock import first_id_at, time_of
from outbox.database import database_now
from outbox.errors import NotReady, PayrelayError, Refused
from outbox.migrate import ensure_publication, owner_engine
from outbox.publication import TABLES
from outbox.settings import SERVICES, Settings
from outbox.slot import create_slot, holders
from schemas.topics import TOPICS, Topic

MARGIN = timedelta(minutes=15)
"""Longer than any transaction may be open: what was recorded this long before the last heartbeat has been published."""
REPAIR_S = 120.0
LEFT_S = 10.0
"""Seconds after which a streamed row has reached its topic."""
STEADY_S = 3.0
"""A reader of the slot that has stayed for this long is no task about to be restarted."""
POLL_S = 0.1
LOCKED = "55P03"
"""SQLSTATE of a lock that was not to be had in time."""
SPARE = "_new"
"""The new slot's name, beside the old one's, until it takes the old one's place."""


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What a repair of the slot would emit again."""

    since: dict[str, UUID]
    """Per outbox table, the smallest id that the snapshot reads."""
    missing: set[UUID]
    rows: int
    """Rows from there on: those that are on a topic already come twice, and the inbox drops them."""
    minutes: float
    """How far back the longest of these stretches goes."""


def plan_repair(settings: Settings, *, now: datetime, since: datetime | None = None) -> Repair:
    """Return what is recorded and on no topic, and from where on the snapshot must read. Reads only.

    Each topic is looked at by itself, from 15 minutes before the last heartbeat, the topic's last event or the oldest of its
    newest rows on, whichever is earliest: with its publication gone, or a part of it, PostgreSQL lets the slot and the heartbeat
    move on and publishes nothing. `since` looks from further back.
    """
    missing = missing_events(settings, since=since)
    with reader_engine(settings).connect() as connection:
        now = min(now, database_now(connection))  # ids have the latter
        begins = {service: first_id_at(now - MARGIN) for service in SERVICES}
        for service, ids in missing.items():
            # Rows recorded just before the oldest missing one may have been under way too.
            begins[service] = min(
                [begins[service], *(UUID(int=identity.int - _as_id_distance(MARGIN)) for identity in ids)]
            )
        rows = sum(
            connection.execute(
                text(f"SELECT count(*) FROM {service}.outbox WHERE id >= :bound"),  # noqa: S608 - a schema of ours
                {"bound": bound},
            ).scalar_one()
            for service, bound in begins.items()
        )
    return Repair(
        since={f"{service}.outbox": bound for service, bound in begins.items()},
        missing=set().union(*missing.values()),
        rows=rows,
        minutes=(first_id_at(now).int - min(begins.values()).int >> 80) / 60_000,
    )


def missing_events(settings: Settings, *, since: datetime | None = None) -> dict[str, set[UUID]]:
    """Return which events of each service are on no topic, as far back as `plan_repair` looks. Reads only."""
    beat = last_heartbeat(settings)
    last = last_appends(settings, _all_topics(settings))
    missing: dict[str, set[UUID]] = {}
    with reader_engine(settings).connect() as connection:
        for topic in TOPICS:
            name = settings.topic_prefix + topic.name
            missing.setdefault(topic.service, set())
            if (oldest := _oldest(connection, topic)) is None:
                continue
            newest = [time_of(row.id) for row in newest_rows(connection, topic)[:1]]
            known = [at for at in (beat, since, *newest) if at is not None]
            begin = max(oldest, min([last[name], *known]) if name in last else oldest) - MARGIN
            rows = connection.execute(
                text(f"SELECT id FROM {topic.service}.outbox WHERE topic = :topic AND id >= :since"),  # noqa: S608
                {"topic": topic.name, "since": first_id_at(begin)},
            )
            if ids := set(rows.scalars()):
                ids -= {identity for identity, _ in event_times(settings, [name], since=begin)}
            missing[topic.service] |= ids
    return missing


def _oldest(connection: Connection, topic: Topic) -> datetime | None:
    """Return when the oldest kept row of a topic was recorded; None without one.

    Rows that are not published are kept past their retention, so the retention says nothing of how far back to look.
    """
    statement = text(f"SELECT id FROM {topic.service}.outbox WHERE topic = :topic ORDER BY id LIMIT 1")  # noqa: S608
    identity = connection.execute(statement, {"topic": topic.name}).scalar()
    return None if identity is None else time_of(identity)


def repair_slot(settings: Settings, repair: Repair, *, say: Callable[[str], None]) -> None:
    """Slot and publication are new, Kafka Connect's offset is deleted, missing events are on their topics, and the connector streams.

    Own transactions, as the owner. May be repeated. The new slot is made first, while the connector goes on: that waits for open
    transactions, for `slot_wait_s` at most. Then the connector is stopped, given the new slot, and resumed with the snapshot
    bounded, then without the bound. Raises NotReady, naming the sessions in the way, with everything as it was; Refused beside
    another repair. Whatever fails later, the connector is resumed; it then emits what is missing by itself, and
    `payrelay connect apply --execute` takes the bound away.
    """
    client = ConnectClient(settings.connect_url)
    if other := slot_state(settings).database:
        raise Refused(
            f"the slot {settings.slot} belongs to database {other}, so it is not touched: set PAYRELAY_SLOT to a free name"
        )
    engine = owner_engine(settings)
    try:
        with _alone(engine) as owner:
            _publish_all(engine, within_s=settings.slot_wait_s)
            say("making a new slot, which waits for open transactions")
            create_slot(owner, settings.slot + SPARE, temporary=True, within_s=settings.slot_wait_s)
            say("stopping the connector")
            with resumed_after_failure(client, settings):
                client.stop(settings.connector)
                client.wait_stopped(settings.connector)
                apply_connector(client, settings, since=_bounds(repair))
                client.delete_offsets(settings.connector)
                _take_place(owner, settings)
            say(
                f"slot and publication are new; publishing again what was recorded from {min(repair.since.values())} on"
            )
            emit_missing(client, settings, repair, say=say)
    finally:
        engine.dispose()


def emit_missing(client: ConnectClient, settings: Settings, repair: Repair, *, say: Callable[[str], None]) -> None:
    """The connector, stopped and about to take a snapshot, has emitted what was missing, and streams. May be repeated.

    It is resumed with the snapshot bounded, then without the bound.
    """
    begun = datetime.now().astimezone()
    with resumed_after_failure(client, settings):
        apply_connector(client, settings, since=_bounds(repair))
        client.resume(settings.connector)
    client.wait_running(settings.connector)
    since = datetime.now().astimezone() - MARGIN
    wait_published(settings, _all_topics(settings), repair.missing, since=since, within_s=REPAIR_S)
    say(f"{len(repair.missing)} missing events are on their topics; the connector gets its usual configuration again")
    before = _wait_streaming(settings)
    if apply_connector(client, settings):
        client.wait_running(settings.connector)
        _wait_streaming(settings, after=before)
    _emit_left(settings, since=begun, say=say)


def _emit_left(settings: Settings, *, since: datetime, say: Callable[[str], None]) -> None:
    """What was committed while the connector went from its snapshot to streaming is on its topic too.

    Debezium takes the snapshot, and then asks for the position to stream from: a commit between the two is in neither.
    """
    left = missing_events(settings, since=since)
    ids = set().union(*left.values())
    with suppress(NotReady):
        wait_published(settings, _all_topics(settings), ids, since=since - MARGIN, within_s=LEFT_S)
        return
    still = missing_events(settings, since=since)
    left = {service: ids & still.get(service, set()) for service, ids in left.items()}
    if count := sum(map(len, left.values())):
        say(f"{count} events were committed in between: publishing them too")
        emit_again(settings, left, within_s=REPAIR_S)


@contextmanager
def _alone(engine: Engine) -> Generator[Connection]:
    """Give a connection in autocommit beside which no other repair begins; raises Refused if there is one."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = {"name": REPAIRING}
        if not connection.execute(text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))"), name).scalar():
            raise Refused("another repair is running, so this one did nothing. When it has ended: payrelay doctor")
        yield connection  # closed, it lets go of the lock and of a temporary slot


@contextmanager
def resumed_after_failure(client: ConnectClient, settings: Settings) -> Generator[None]:
    """Whatever goes wrong inside, the connector is asked to resume."""
    try:
        yield
    except BaseException as error:
        try:
            client.resume(settings.connector)
        except PayrelayError as second:
            raise NotReady(
                f"{error}. The connector is still stopped. To start it: payrelay connect resume ({second})"
            ) from error
        raise


def _publish_all(engine: Engine, *, within_s: float) -> None:
    """The publication is whole: before the slot, which reads the catalogue as it is from its beginning on."""
    try:
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = {max(1, int(within_s * 1000))}"))
            ensure_publication(connection)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != LOCKED:
            raise
        with engine.connect() as connection:
            blocking = holders(connection, TABLES)
        raise NotReady(
            f"the publication cannot be repaired while its tables are locked, and some were for {within_s:.0f} s: {blocking}. "
            "End these sessions, then repeat the command"
        ) from error


def _take_place(owner: Connection, settings: Settings) -> None:
    """The slot is where the spare one is, and the spare one is gone."""
    names = {"slot": settings.slot, "spare": settings.slot + SPARE}
    _drop_slot(settings, owner)
    owner.execute(text("SELECT pg_copy_logical_replication_slot(:spare, :slot, false)"), names)
    owner.execute(text("SELECT pg_drop_replication_slot(:spare)"), names)


def _bounds(repair: Repair) -> Mapping[str, str]:
    return {table: str(bound) for table, bound in repair.since.items()}


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
    raise NotReady(
        f"the connector does not read slot {settings.slot} after {REPAIR_S:.0f} s. Its state: payrelay connect status"
    )


def _drop_slot(settings: Settings, owner: Connection) -> None:
    """The slot is gone, whoever held it."""
    slot = {"slot": settings.slot}
    for _ in range(50):
        owner.execute(
            text("""SELECT pg_terminate_backend(active_pid, 2000) FROM pg_replication_slots
                    WHERE slot_name = :slot AND active_pid IS NOT NULL"""),
            slot,
        )
        gone = owner.execute(
            text("""SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                    WHERE slot_name = :slot AND NOT active"""),
            slot,
        )
        if gone.rowcount or not slot_state(settings).found:
            return
    raise NotReady(
        f"slot {settings.slot} is still in use, so it cannot be replaced. Who uses it: payrelay connect status"
    )


def _all_topics(settings: Settings) -> list[str]:
    return [settings.topic_prefix + topic.name for topic in TOPICS]


def _as_id_distance(span: timedelta) -> int:
    return span // timedelta(milliseconds=1) << 80
