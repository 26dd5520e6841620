"""Repair of a lost slot or publication: what is recorded and on no topic is emitted again, and the connector streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Engine, text

from connect.apply import apply_connector
from connect.client import ConnectClient
from ops.health import last_heartbeat, reader_engine, slot_state
from ops.records import event_times, last_append, wait_published
from outbox.clock import first_id_at
from outbox.errors import NotReady
from outbox.migrate import ensure_publication, ensure_slot, owner_engine
from outbox.settings import SERVICES, Settings
from schemas.topics import TOPICS

MARGIN = timedelta(minutes=15)
"""Longer than any transaction may be open: what was recorded this long before the last heartbeat has been published."""
REPAIR_S = 120.0
STEADY_S = 3.0
"""A reader of the slot that has stayed for this long is no task about to be restarted."""
POLL_S = 0.1


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
