"""The publication that the connector reads."""

from __future__ import annotations

from sqlalchemy import Connection, text

from outbox.settings import SERVICES

PUBLICATION = "payrelay_outbox"
SIGNALS = "connect.signal"
"""Where Debezium is told to emit rows again."""
_TABLES = (*(f"{service}.outbox" for service in SERVICES), "connect.heartbeat", SIGNALS)
PUBLISHED_TABLES = len(_TABLES)
"""Every service's outbox, the heartbeat and the signals to the connector."""


def publication(name: str) -> str:
    """Return the statement that makes the publication: inserts only, through the partitions' root."""
    return f"CREATE PUBLICATION {name} FOR TABLE {', '.join(_TABLES)} WITH (publish = 'insert', publish_via_partition_root = true)"


def published_tables(connection: Connection) -> int:
    """Return how many tables the publication holds; without it none. Fewer than all: what the others hold is never published."""
    statement = text("SELECT count(*) FROM pg_publication_tables WHERE pubname = :name")
    return int(connection.execute(statement, {"name": PUBLICATION}).scalar_one())
