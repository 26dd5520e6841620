"""Engines: one per role and process. Connections give up what they hold when their worker is frozen or cut off."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError

from outbox.errors import Misused

LOCK_TIMEOUT_S = 5
FORM = "postgresql://role:password@host:port/database"

BY_INDEX = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}
"""What a service does, its triggers and foreign keys included, names its rows, and few of them: they are looked up by an index,
one by one, whatever the planner believes of the tables. On a new system it plans from empty tables, keeps such a plan for the
life of a session, and reads the whole table for it each time. A plan that cannot do without a scan counts as very dear, which
must not have it compiled (jit). Statements that read much are not a service's: they run as the owner or the reading role."""


def driver_url(dsn: str) -> URL:
    """Return a DSN as SQLAlchemy reads it, on the driver that payrelay uses. Raises Misused for what is none."""
    try:
        url = make_url(dsn)
    except (ArgumentError, ValueError) as error:  # its text may hold the password
        raise Misused(
            f"a DSN of the settings is not of the form {FORM}: correct it as docs/reference/settings.md says"
        ) from error
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise Misused(
            f"a DSN of the settings does not name PostgreSQL, in the form {FORM}: correct it as docs/reference/settings.md says"
        )
    return url.set(drivername="postgresql+psycopg")


def engine_for(
    dsn: str,
    *,
    name: str,
    session_timeout_s: float = 10.0,
    pool_size: int = 5,
    parameters: Mapping[str, str] | None = None,
) -> Engine:
    """Return an engine whose sessions end what they hold well before Kafka's session time-out passes.

    `parameters` are the server's own, for each session, without spaces. A process frozen inside its transaction would otherwise keep `progress` and account rows locked
    while Kafka hands its partitions to a sibling.
    """
    limit_ms = int(session_timeout_s * 1000)
    options = {
        "idle_in_transaction_session_timeout": limit_ms // 2,
        "transaction_timeout": limit_ms * 2,
        "statement_timeout": limit_ms * 2,
        "lock_timeout": LOCK_TIMEOUT_S * 1000,
        "tcp_user_timeout": limit_ms,  # the server's side; ours is below
        **BY_INDEX,
        **(parameters or {}),
    }
    return create_engine(
        driver_url(dsn),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=30,
        pool_pre_ping=False,
        hide_parameters=True,
        connect_args={
            "application_name": f"payrelay {name}",
            "connect_timeout": 5,
            "options": " ".join(f"-c {key}={value}" for key, value in options.items()),
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": limit_ms,
        },
    )


def database_now(connection: Connection) -> datetime:
    """Return the database's time."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now


def earlier_now(connection: Connection, now: datetime) -> datetime:
    """Return the earlier of the host's time, `now`, and the database's: for what cannot be taken back."""
    return min(now, database_now(connection))
