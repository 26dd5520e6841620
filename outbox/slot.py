"""The replication slot: made within a bound, and whoever is in the way of it named.

PostgreSQL makes a logical slot once every transaction that was writing has ended, and by itself waits for them without limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError

from outbox.errors import NotReady, Refused

NAMED = 3

_TIMED_OUT = "57014"
_NO_SLOT_FREE = "53400"

# Locks on transaction ids are everybody's to see; what pg_stat_activity says of another role's session may be hidden.
_WRITING = text("""
    SELECT locks.pid, activity.usename, activity.application_name, activity.xact_start, prepared.gid
    FROM pg_locks AS locks
    LEFT JOIN pg_stat_activity AS activity ON activity.pid = locks.pid
    LEFT JOIN pg_prepared_xacts AS prepared ON prepared.transaction = locks.transactionid
    WHERE locks.locktype = 'transactionid' AND locks.mode = 'ExclusiveLock' AND locks.granted
      AND locks.pid IS DISTINCT FROM pg_backend_pid()
    ORDER BY activity.xact_start NULLS FIRST LIMIT :most""")


# The modes that a publication's tables cannot be put into it beside.
_HOLDING = text("""
    SELECT DISTINCT locks.pid, activity.usename, activity.application_name, activity.xact_start, CAST(NULL AS text) AS gid
    FROM pg_locks AS locks LEFT JOIN pg_stat_activity AS activity ON activity.pid = locks.pid
    WHERE locks.locktype = 'relation' AND locks.granted AND locks.pid IS DISTINCT FROM pg_backend_pid()
      AND locks.relation = ANY(SELECT CAST(name AS regclass) FROM unnest(CAST(:tables AS text[])) AS name)
      AND locks.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
    ORDER BY activity.xact_start NULLS FIRST LIMIT :most""")


def create_slot(connection: Connection, slot: str, *, temporary: bool = False, within_s: float) -> None:
    """The logical slot exists; a temporary one for as long as the connection. Needs a connection in autocommit.

    Raises NotReady, naming the sessions in the way and with no slot made, where transactions stay open for longer than
    `within_s`, and Refused where PostgreSQL has no slot free.
    """
    connection.execute(text(f"SET statement_timeout = {max(1, int(within_s * 1000))}"))
    try:
        connection.execute(
            text("SELECT pg_create_logical_replication_slot(:slot, 'pgoutput', :temporary)"),
            {"slot": slot, "temporary": temporary},
        )
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state == _NO_SLOT_FREE:
            raise Refused(
                "PostgreSQL has no free replication slot, so none was made: drop one that nobody needs, or raise max_replication_slots"
            ) from error
        if state != _TIMED_OUT:
            raise
        raise NotReady(
            f"the slot cannot be made while transactions that write are open, and some were open for {within_s:.0f} s: "
            f"{writers(connection)}. End them, then repeat the command"
        ) from error
    finally:
        connection.execute(text("RESET statement_timeout"))


def writers(connection: Connection) -> str:
    """Return who is writing right now, the longest first, and how to end it."""
    return _sessions(connection.execute(_WRITING, {"most": NAMED}).all())


def holders(connection: Connection, tables: Sequence[str]) -> str:
    """Return who has locked one of the tables against being put into a publication, and how to end it."""
    return _sessions(connection.execute(_HOLDING, {"tables": list(tables), "most": NAMED}).all())


def _sessions(rows: Sequence[Row[Any]]) -> str:
    sessions = [_session(row.pid, row.usename, row.application_name, row.xact_start, row.gid) for row in rows]
    return "; ".join(sessions) or "they have ended by now"


def _session(
    pid: int | None, role: str | None, application: str | None, since: datetime | None, gid: str | None
) -> str:
    """
    >>> _session(17, "payments", "psql", datetime(2026, 1, 2, 3, 4, 5), None)
    'session 17 (payments, psql, since 2026-01-02 03:04:05; SELECT pg_terminate_backend(17))'
    >>> _session(None, None, None, None, "two-phase 4")
    "prepared transaction 'two-phase 4' (ROLLBACK PREPARED or COMMIT PREPARED)"
    """
    if pid is None:
        return f"prepared transaction {gid!r} (ROLLBACK PREPARED or COMMIT PREPARED)"
    who = ", ".join(filter(None, (role, application, f"since {since:%Y-%m-%d %H:%M:%S}" if since else "")))
    return f"session {pid} ({who or 'hidden from this role'}; SELECT pg_terminate_backend({pid}))"
