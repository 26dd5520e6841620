"""How the way out is, judged by what moves: heartbeat age, slot and lag; never by what Kafka Connect says of its task."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from outbox.database import driver_url
from outbox.errors import Unreachable
from outbox.settings import READER, Settings


@dataclass(frozen=True, kw_only=True)
class SlotState:
    """The replication slot as PostgreSQL sees it."""

    found: bool
    active: bool
    wal_status: str
    retained_bytes: int
    unconfirmed_bytes: int
    confirmed_lsn: int
    """Everything written before it is published."""
    database: str = ""
    """Whose changes it decodes, where that is not the database asked; empty otherwise."""


def reader_engine(settings: Settings, *, role: str = READER) -> Engine:
    """Return an engine of the role that reads every service's rows and writes none, or of a narrower one."""
    url = driver_url(settings.dsn_of(role))
    return create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})


def last_heartbeat(settings: Settings) -> datetime | None:
    """Return when the connector last wrote its heartbeat; None before the first one or while PostgreSQL is away."""
    try:
        with reader_engine(settings).connect() as connection:
            return beat_of(connection)
    except DBAPIError:
        return None


def beat_of(connection: Connection) -> datetime | None:
    """Return when the connector last wrote its heartbeat; None before the first one."""
    beat: datetime | None = connection.execute(text("SELECT beat_at FROM connect.heartbeat")).scalar()
    return beat


def slot_state(settings: Settings) -> SlotState:
    """Return the state of the replication slot. Raises Unreachable."""
    try:
        with reader_engine(settings).connect() as connection:
            return slot_of(connection, settings.slot)
    except OperationalError as error:
        raise Unreachable(f"PostgreSQL does not answer: {str(error.orig).splitlines()[0]}") from error


def slot_of(connection: Connection, slot: str) -> SlotState:
    """Return the state of a replication slot."""
    row = connection.execute(
        text("""SELECT active, coalesce(wal_status, '') AS wal_status,
                       coalesce(pg_current_wal_lsn() - restart_lsn, 0)::bigint AS retained,
                       coalesce(pg_current_wal_lsn() - confirmed_flush_lsn, 0)::bigint AS unconfirmed,
                       coalesce(confirmed_flush_lsn - '0/0'::pg_lsn, 0)::bigint AS confirmed,
                       CASE WHEN database = current_database() THEN '' ELSE coalesce(database, 'none') END AS elsewhere
                FROM pg_replication_slots WHERE slot_name = :slot"""),
        {"slot": slot},
    ).first()
    if row is None:
        return SlotState(
            found=False, active=False, wal_status="lost", retained_bytes=0, unconfirmed_bytes=0, confirmed_lsn=0
        )
    return SlotState(
        found=True,
        active=row.active,
        wal_status=row.wal_status,
        retained_bytes=row.retained,
        unconfirmed_bytes=row.unconfirmed,
        confirmed_lsn=row.confirmed,
        database=row.elsewhere,
    )
