"""What runs leave for later ones: up to where all was looked at, and what is open. Written by `ops`, in its own schema only."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, create_engine, text

from ops.reconcile.findings import Finding, Kind
from outbox.clock import first_id_at
from outbox.database import driver_url
from outbox.errors import Refused
from outbox.rows import as_json
from outbox.settings import READER, Settings

SETTLE = timedelta(seconds=1)
"""Between an id's making and the moment when its transaction can be seen to write."""

CONNECTIONS = 8

_FIELDS = [field.name for field in fields(Finding)]

# A transaction that has not written yet makes its ids later than now; of one that has, they are younger than its beginning.
_WRITING_SINCE = text("""
    SELECT min(xact_start) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()""")

_PREPARED = text("SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database())")

_NOTE = text("""
    INSERT INTO reconcile.finding (kind, service, consumer, event_id, type, key, order_no, business_no, effect, place, found)
    SELECT * FROM json_to_recordset(CAST(:rows AS json))
        AS found (kind text, service text, consumer text, event_id uuid, type text, key text, order_no text, business_no text,
                  effect text, place text, found text)
    ON CONFLICT (kind, consumer, coalesce(event_id, '00000000-0000-0000-0000-000000000000'), business_no, effect)
      WHERE closed_at IS NULL
      DO UPDATE SET last_seen = clock_timestamp(), found = excluded.found, place = excluded.place""")

_CLOSE = text("""
    UPDATE reconcile.finding SET closed_at = clock_timestamp()
    WHERE closed_at IS NULL
      AND (kind, consumer, coalesce(CAST(event_id AS text), ''), business_no, effect) IN (
        SELECT * FROM json_to_recordset(CAST(:rows AS json))
            AS closed (kind text, consumer text, event_id text, business_no text, effect text))""")

_PASS = text("""
    INSERT INTO reconcile.checkpoint (upto, lsn) VALUES (:upto, :lsn)
    ON CONFLICT (one) DO UPDATE
    SET upto = CASE WHEN :goes_back THEN excluded.upto ELSE greatest(checkpoint.upto, excluded.upto) END,
        lsn = excluded.lsn, ran_at = clock_timestamp()""")

_LSN = text("SELECT CAST(pg_current_wal_insert_lsn() - CAST('0/0' AS pg_lsn) AS bigint)")

BEHIND_MAX = 1_000
"""Events before a checkpoint that are looked at for later ones among them."""


def engine_of(settings: Settings) -> Engine:
    """Return an engine of `ops`, whose sessions may write where the role may: in `reconcile`."""
    return create_engine(
        driver_url(settings.dsn_of(READER)),
        pool_size=CONNECTIONS,
        max_overflow=0,
        connect_args={
            "connect_timeout": 5,
            "application_name": "payrelay reconcile",
            "options": "-c default_transaction_read_only=off -c jit=off",
        },
    )


def alone(connection: Connection) -> None:
    """No other run begins until this connection is closed; raises Refused if there is one."""
    if not connection.execute(text("SELECT pg_try_advisory_lock(hashtextextended('payrelay reconcile', 0))")).scalar():
        raise Refused("another reconcile is running: wait for its end, then repeat")


def settled_before(connection: Connection, *, grace: timedelta, now: datetime) -> datetime | None:
    """Return a moment before which nothing is on its way into the database: whatever has an older id, or was committed
    before, can be seen from now on. At least the grace ago; None while a prepared transaction may be of any age.

    The clock was read before the call: who begins to write after that makes younger ids.
    """
    writing: datetime | None = connection.execute(_WRITING_SINCE).scalar()
    if connection.execute(_PREPARED).scalar():
        return None
    moment = now - max(grace, SETTLE)
    return min(moment, writing) if writing is not None else moment


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What the last run has left."""

    upto: datetime
    """Up to then all was looked at."""
    lsn: int | None
    """How far the WAL went when it was set; None of one that an earlier version has set."""


def checkpoint(connection: Connection) -> Checkpoint | None:
    """Return what the last run has left; None before the first."""
    row = connection.execute(text("SELECT upto, lsn FROM reconcile.checkpoint")).first()
    return Checkpoint(**row._mapping) if row is not None else None


def wal_position(connection: Connection) -> int:
    """Return how far the WAL goes."""
    return int(connection.execute(_LSN).scalar_one())


def recorded_behind(connection: Connection, service: str, checkpoint: Checkpoint) -> bool:
    """Return whether events recorded since the checkpoint was set have ids before it: a clock was set back. Reads only.

    Looks at the newest events before it. Who records all the time records some there, once the clock comes by again.
    """
    statement = text(f"""
        SELECT EXISTS (
          SELECT FROM (SELECT lsn FROM {service}.outbox WHERE id < :upto ORDER BY id DESC LIMIT :limit) AS newest
          WHERE lsn > :lsn)""")  # noqa: S608 - a schema of ours
    about = {"upto": first_id_at(checkpoint.upto), "lsn": checkpoint.lsn, "limit": BEHIND_MAX}
    return checkpoint.lsn is not None and bool(connection.execute(statement, about).scalar())


def open_findings(connection: Connection) -> list[Finding]:
    """Return the findings of earlier runs that are not fixed yet."""
    rows = connection.execute(
        text(f"SELECT {', '.join(_FIELDS)} FROM reconcile.finding WHERE closed_at IS NULL ORDER BY id")  # noqa: S608
    )
    return [Finding(**{**row._mapping, "kind": Kind(row.kind)}) for row in rows]


def remember(
    connection: Connection,
    *,
    findings: Iterable[Finding],
    closed: Collection[Finding],
    upto: datetime | None,
    lsn: int,
    goes_back: bool = False,
) -> None:
    """Findings are open, fixed ones are closed, and the checkpoint is at `upto`, or where it was if that is later.

    With `goes_back` it stands there in any case.

    Transaction: the caller's. May be repeated.
    """
    connection.execute(_NOTE, {"rows": as_json([asdict(finding) for finding in findings])})
    names = ("kind", "consumer", "event_id", "business_no", "effect")
    rows = [dict(zip(names, finding.identity, strict=True)) for finding in closed]
    connection.execute(_CLOSE, {"rows": as_json(rows)})
    if upto is not None:
        connection.execute(_PASS, {"upto": upto, "lsn": lsn, "goes_back": goes_back})
