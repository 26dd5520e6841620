"""Day partitions of outbox and inbox: made ahead, removed safely, never in the way of an insert.

A day is made as a stand-alone table and ATTACHed in one transaction, and removed by DETACH CONCURRENTLY and then dropped, each
under a lock time-out: a plain CREATE TABLE … PARTITION OF waits behind one open insert and makes every other insert wait.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from outbox.clock import Clocks, first_id_of, time_of
from outbox.database import database_now
from outbox.errors import NotReady
from outbox.publication import PUBLISHED_TABLES, published_tables
from outbox.retry import backoff_s
from outbox.settings import SERVICES
from outbox.tables import PARTITIONED

DAYS_AHEAD = 14
DAYS_AHEAD_MIN = 7
"""Below this many days ahead `payrelay doctor` alarms."""

LOOKED_AT_MAX = 30
"""Days past their retention that one call looks at, of one table."""

DROP_MARK = "payrelay: to be dropped"
LOCK_TIMEOUT_MS = 1_000
TRIES_MAX = 30
DONE_BESIDE = ("42P01", "55000")
"""SQLSTATEs of a day that another round has dropped or detached meanwhile."""
TRIED_AGAIN = ("55P03", "40P01", "42P07", "23505")
"""SQLSTATEs of a lock that was not to be had in time, of a deadlock, and of a table whose name another round has just taken."""

_NAME = re.compile(r"(outbox|inbox)_(\d{4})(\d\d)(\d\d)")


def day_table(table: str, day: date) -> str:
    """Return the name of a day's partition.

    >>> day_table("outbox", date(2026, 1, 2))
    'outbox_20260102'
    """
    return f"{table}_{day:%Y%m%d}"


def days_of(connection: Connection, schema: str, table: str, *, leaving: bool = True) -> list[date]:
    """Return the days attached to a partitioned table, oldest first; those half detached take no rows any more."""
    names = connection.execute(
        text("""SELECT child.relname FROM pg_inherits
                JOIN pg_class child ON child.oid = inhrelid
                WHERE inhparent = CAST(:parent AS regclass) AND (:leaving OR NOT inhdetachpending) ORDER BY 1"""),
        {"parent": f'"{schema}".{table}', "leaving": leaving},
    ).scalars()
    return [date(*map(int, match.groups()[1:])) for name in names if (match := _NAME.fullmatch(name))]


def read_clocks(connection: Connection, *, now: datetime, schemas: Iterable[str] = SERVICES) -> Clocks:
    """Return the host's time, the database's, and that of the newest row in the schemas' outboxes and inboxes. Reads only."""
    columns = {"outbox": "id", "inbox": "event_id"}
    newest = [
        time_of(identity)
        for schema in schemas
        for table, column in columns.items()
        for identity in connection.execute(
            text(f'SELECT {column} FROM "{schema}".{table} ORDER BY {column} DESC LIMIT 1')  # noqa: S608
        ).scalars()
    ]
    return Clocks(
        host=now,
        database=database_now(connection),
        newest_row=max((row for row in newest if row is not None), default=None),
    )


def make_days(engine: Engine, schemas: Iterable[str], *, today: date, days_ahead: int = DAYS_AHEAD) -> list[str]:
    """Every schema's outbox and inbox has its days from yesterday to `days_ahead` days after today.

    Own transactions, one a day, as the tables' owner; may be repeated and run beside itself. Returns what was made.
    Raises NotReady where a lock was not to be had in time.
    """
    wanted = [today + timedelta(days=offset) for offset in range(-1, days_ahead + 1)]
    made = []
    with _waiting_briefly(engine) as connection:
        for schema in schemas:
            for table in PARTITIONED:
                present = set(days_of(connection, schema, table))
                missing = [day for day in wanted if day not in present]
                made += [
                    f"{schema}.{day_table(table, day)}" for day in missing if _attach(connection, schema, table, day)
                ]
    return made


def drop_days(
    engine: Engine,
    schema: str,
    table: str,
    *,
    before: date,
    slot: str,
    readable_from: date = date.max,
    limit: int = sys.maxsize,
    gone: Collection[str] = (),
    execute: bool = True,
) -> tuple[list[str], dict[str, str]]:
    """Days older than `before` are gone, except those something may still need. Returns the dropped, and why the others stay.

    Without `execute` nothing changes, and the days are returned that would go; `gone` are outbox days that would go before them.

    Own transactions, as the tables' owner; may be repeated: a half-removed day is finished. An outbox day stays while the
    slot has not passed its highest lsn, the publication is not whole, or a transaction is older. An inbox day stays while its events could come again: from
    any service's outbox, from a topic (`readable_from`: the oldest day that one may hold and will not hold for ever, or that a consumer has yet to read), or from
    the parking lot. The oldest go first, at most `limit`. Raises NotReady where a lock was not to be had in time.
    """
    dropped: list[str] = []
    kept: dict[str, str] = {}
    with _waiting_briefly(engine) as connection:
        days = [day for day in days_of(connection, schema, table) if day < before]
        for day in days if limit == sys.maxsize else days[:LOOKED_AT_MAX]:
            if len(dropped) >= limit:
                break
            name = day_table(table, day)
            if table == "outbox":
                reason = _unpublished(connection, schema, day, slot)
            else:
                reason = _repeatable(connection, schema, day, oldest=days[0], readable_from=readable_from, gone=gone)
            if reason:
                kept[name] = reason
                continue
            if not execute:
                dropped.append(f"{schema}.{name}")
                continue
            # Who detaches a day by hand keeps it: only what carries our mark is dropped.
            try:
                _patiently(connection, f"COMMENT ON TABLE \"{schema}\".{name} IS '{DROP_MARK}'")
                _detach(connection, schema, table, name)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in DONE_BESIDE:
                    raise
                continue
            dropped.append(f"{schema}.{name}")
        for name in _detached(connection, schema, table) if execute else ():
            _patiently(connection, f'DROP TABLE IF EXISTS "{schema}".{name}')
    return dropped, kept


def _attach(connection: Connection, schema: str, table: str, day: date) -> bool:
    """Return whether this call, and no other one beside it, has attached the day."""
    name = day_table(table, day)
    low, high = first_id_of(day), first_id_of(day + timedelta(days=1))
    readers = "debezium, ops" if table == "outbox" else "ops"
    statements = f"""
        CREATE TABLE IF NOT EXISTS "{schema}".{name} (LIKE "{schema}".{table} INCLUDING ALL);
        ALTER TABLE "{schema}".{table} ATTACH PARTITION "{schema}".{name} FOR VALUES FROM ('{low}') TO ('{high}');
        GRANT SELECT ON "{schema}".{name} TO {readers}"""
    try:
        _patiently(connection, statements)
    except ProgrammingError as error:
        code = getattr(error.orig, "sqlstate", None)
        if code == "42804":  # left half-made by an earlier version
            _drop_half_made(connection, schema, name)
            return _attach(connection, schema, table, day)
        if code != "42809":  # already a partition: made beside us
            raise
        return False
    return True


def _drop_half_made(connection: Connection, schema: str, name: str) -> None:
    """The table, which belongs to no parent, is gone; raises NotReady if it holds rows."""
    if connection.execute(text(f'SELECT EXISTS (SELECT FROM "{schema}".{name})')).scalar():  # noqa: S608
        raise NotReady(f"{schema}.{name} holds rows but is no day of this version: move the rows, and drop the table")
    _patiently(connection, f'DROP TABLE "{schema}".{name}')


def _detach(connection: Connection, schema: str, table: str, name: str) -> None:
    """The day belongs to no parent any more. A DETACH that was cut off half-way is finished."""
    for _ in range(TRIES_MAX):
        pending = connection.execute(
            text("SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = CAST(:child AS regclass)"),
            {"child": f'"{schema}".{name}'},
        ).scalar()
        if pending is None:
            return
        how = "FINALIZE" if pending else "CONCURRENTLY"
        _try(connection, f'ALTER TABLE "{schema}".{table} DETACH PARTITION "{schema}".{name} {how}')
    raise NotReady(
        f"{schema}.{name} could not be detached, because transactions use it: end the long ones, then repeat"
    )


def _repeatable(
    connection: Connection, schema: str, day: date, *, oldest: date, readable_from: date, gone: Collection[str]
) -> str | None:
    """Return why events of an inbox day could come again, or None. What keeps a day keeps all later ones: none is left out."""
    for service in SERVICES:  # a consumer's events are mostly another service's
        days = days_of(connection, service, "outbox")
        if any(kept <= day and f"{service}.{day_table('outbox', kept)}" not in gone for kept in days):
            return "an outbox day as old is kept"
    if readable_from <= day:
        return "a topic with a retention may still hold events as old, or a consumer has such to read"
    # Older ones than the inbox itself are behind its horizon, and never applied: they need no day.
    parked = connection.execute(
        text(f"""SELECT count(*)
                 FROM (SELECT coalesce(CAST(event_id AS text), lower(headers ->> 'ce_id')) COLLATE "C" AS id
                       FROM "{schema}".parked) AS lot
                 WHERE id >= CAST(:low AS text) AND id < CAST(:high AS text)"""),  # noqa: S608 - a schema of ours
        {"low": str(first_id_of(oldest)), "high": str(first_id_of(day + timedelta(days=1)))},
    ).scalar_one()
    return f"{parked} parked events are as old" if parked else None


def _unpublished(connection: Connection, schema: str, day: date, slot: str) -> str | None:
    """Return why events of an outbox day may not be on their topics yet, or None."""
    row = connection.execute(
        text(f"""SELECT restart_lsn - CAST('0/0' AS pg_lsn) <= (SELECT max(lsn) FROM "{schema}".{day_table("outbox", day)})
                        AS behind
                 FROM pg_replication_slots WHERE slot_name = :slot AND restart_lsn IS NOT NULL"""),  # noqa: S608
        {"slot": slot},
    ).first()
    if row is None:
        return "the replication slot is lost: payrelay doctor --repair-slot --execute"
    if published_tables(connection) < PUBLISHED_TABLES:  # the slot may move on and publish nothing
        return "the publication is not whole: payrelay doctor --repair-slot --execute"
    if row.behind:
        return "the replication slot has not passed it"
    older = connection.execute(
        text("""SELECT (SELECT count(*) FROM pg_stat_activity
                        WHERE pid <> pg_backend_pid()
                          AND (backend_type = 'client backend' AND xact_start < :end
                               OR backend_type IS NULL AND usesysid IS NOT NULL))
                     + (SELECT count(*) FROM pg_prepared_xacts WHERE prepared < :end)"""),
        {"end": datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)},  # another role's may be hidden
    ).scalar_one()
    return f"{older} open transactions are older, or not ours to see: GRANT pg_read_all_stats" if older else None


def _detached(connection: Connection, schema: str, table: str) -> list[str]:
    """Return the day tables that belong to no parent any more and were detached to be dropped."""
    names = connection.execute(
        text("""SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                WHERE nspname = :schema AND relkind = 'r' AND NOT relispartition AND relname LIKE :like
                  AND obj_description(pg_class.oid, 'pg_class') = :mark"""),
        {"schema": schema, "like": f"{table}\\_%", "mark": DROP_MARK},
    ).scalars()
    return [name for name in names if _NAME.fullmatch(name)]


@contextmanager
def _waiting_briefly(engine: Engine) -> Iterator[Connection]:
    """Give a connection in autocommit whose statements give up soon on a lock: whoever waits for one may hold up all inserts."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"SET lock_timeout = {LOCK_TIMEOUT_MS}"))
        try:
            yield connection
        finally:
            connection.execute(text("RESET lock_timeout"))


def _patiently(connection: Connection, statements: str) -> None:
    for attempt in range(1, TRIES_MAX + 1):
        if _try(connection, statements):
            return
        time.sleep(backoff_s(attempt, cap_s=1.0))
    summary = " ".join(statements.split()).split(" FOR ")[0]
    raise NotReady(f"no lock for {summary!r} after {TRIES_MAX} tries: end the long transactions, then repeat")


def _try(connection: Connection, statements: str) -> bool:
    """Return whether the statements, in a transaction of their own, got their locks and ran."""
    try:
        connection.execute(text(statements))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in TRIED_AGAIN:
            raise
        return False
    return True
