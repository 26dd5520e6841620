"""Bring the database to what this version needs: schemas, roles' passwords, days ahead, publication and slot."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path

import alembic.command
from alembic.config import Config
from psycopg import sql
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from outbox.database import driver_url
from outbox.errors import Misused, NotReady, Refused
from outbox.messages import withdraw_messages
from outbox.partitions import LOCK_TIMEOUT_MS, TRIES_MAX, make_days
from outbox.publication import PUBLICATION, PUBLISHED_TABLES, publication, published_tables
from outbox.retry import backoff_s
from outbox.settings import CONNECTOR, READER, SEARCHER, SERVICES, Settings
from outbox.slot import create_slot

ROLES = (*SERVICES, READER, SEARCHER, CONNECTOR)

RETRIED = ("55P03", "40P01")
"""Lock not available, deadlock."""


def owner_engine(settings: Settings) -> Engine:
    """Return an engine of the schemas' owner."""
    dsn = settings.database_url.get_secret_value()
    if not dsn:
        raise Misused(
            "PAYRELAY_DATABASE_URL is not set, and this command needs it: set it to the DSN of the schemas' owner"
        )
    url = driver_url(dsn)
    return create_engine(
        url, poolclass=NullPool, connect_args={"application_name": "payrelay owner", "connect_timeout": 5}
    )


def migrate(settings: Settings, *, today: date) -> None:
    """The database is as this version needs it, before the first event is written. Own transactions; may be repeated."""
    engine = owner_engine(settings)
    _upgrade_patiently(engine)
    with engine.begin() as connection:
        set_passwords(connection, settings)
        withdraw_messages(connection)
        # Ids are made by the database's clock; where the host's differs, it may be set right.
        database_day = connection.execute(
            text("SELECT CAST(clock_timestamp() AT TIME ZONE 'UTC' AS date)")
        ).scalar_one()
    for day in sorted({today, database_day}):
        make_days(engine, SERVICES, today=day)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        ensure_slot(connection, settings.slot, within_s=settings.slot_wait_s)


def set_passwords(connection: Connection, settings: Settings) -> None:
    """Each role logs in with the password of its DSN. Transaction: the caller's, as an owner of the roles."""
    dsns = {role: dsn.get_secret_value() for role, dsn in settings.dsn.items()}
    if settings.connector_dsn.get_secret_value():
        dsns[CONNECTOR] = settings.connector_dsn.get_secret_value()
    for role, dsn in dsns.items():
        if role not in ROLES:
            raise Misused(f"there is no role {role!r}; there are: {', '.join(ROLES)}")
        statement = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), driver_url(dsn).password)
        cursor = connection.connection.cursor()
        cursor.execute(statement)


def ensure_slot(connection: Connection, slot: str, *, within_s: float = 60.0) -> bool:
    """The logical replication slot exists; returns whether this call made it. Needs a connection in autocommit.

    Raises Refused where the server has a slot of this name for another database: names of slots are the whole server's. Raises
    what `create_slot` raises where a transaction stays open.
    """
    row = connection.execute(
        text(
            "SELECT database, database = current_database() AS ours FROM pg_replication_slots WHERE slot_name = :slot"
        ),
        {"slot": slot},
    ).first()
    if row is not None and not row.ours:
        raise Refused(
            f"the slot {slot} belongs to database {row.database}, so nothing of this database would be published. "
            "Set PAYRELAY_SLOT to a free name, then: payrelay migrate; payrelay connect apply --execute"
        )
    if row is not None:
        return False
    create_slot(connection, slot, within_s=within_s)
    return True


def ensure_publication(connection: Connection) -> bool:
    """The publication exists with all of its tables; returns whether this call made it. Transaction: the caller's, as their owner."""
    if published_tables(connection) == PUBLISHED_TABLES:
        return False
    connection.execute(text(f"DROP PUBLICATION IF EXISTS {PUBLICATION}"))
    connection.execute(text(publication(PUBLICATION)))
    return True


def _upgrade_patiently(engine: Engine) -> None:
    """The schema is this version's. Its locks are waited for briefly and often: whoever waits for one holds up all inserts."""
    for attempt in range(1, TRIES_MAX + 1):
        try:
            with engine.connect() as connection:
                connection.execute(text(f"SET lock_timeout = {LOCK_TIMEOUT_MS}"))
                connection.commit()
                _upgrade(connection)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) not in RETRIED:
                raise
            time.sleep(backoff_s(attempt, cap_s=1.0))
        else:
            return
    raise NotReady(
        f"the schemas stayed locked for {TRIES_MAX} tries, so nothing was migrated: end the long transactions, then repeat"
    )


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
