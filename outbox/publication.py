"""The publication that the connector reads."""

from __future__ import annotations

from sqlalchemy import Connection, text

from outbox.settings import SERVICES

PUBLICATION = "payrelay_outbox"
SIGNALS = "connect.signal"
"""The table whose rows ask Debezium to publish outbox rows again."""
TABLES = (*(f"{service}.outbox" for service in SERVICES), "connect.heartbeat", SIGNALS)
PUBLISHED_TABLES = len(TABLES)
"""Every service's outbox, the heartbeat and the signals to the connector."""


def publication(name: str) -> str:
    """Return the statement that makes the publication: inserts only, through the partitions' root."""
    return f"CREATE PUBLICATION {name} FOR TABLE {', '.join(TABLES)} WITH (publish = 'insert', publish_via_partition_root = true)"


def published_tables(connection: Connection) -> int:
    """Return how many of our tables the publication carries the inserts of, as whole rows; without it none.

    Fewer than all: what the others hold is never published. Tables of somebody else's in it count for nothing.
    """
    statement = text("""
        SELECT count(*) FROM pg_publication_tables AS published JOIN pg_publication AS publication USING (pubname)
        WHERE pubname = :name AND publication.pubinsert
          AND published.schemaname || '.' || published.tablename = ANY(:tables) AND published.rowfilter IS NULL""")
    return int(connection.execute(statement, {"name": PUBLICATION, "tables": list(TABLES)}).scalar_one())
