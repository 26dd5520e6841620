"""The publication that the connector reads."""

from __future__ import annotations

from sqlalchemy import Connection, text

from outbox.settings import SERVICES

PUBLICATION = "payrelay_outbox"
PUBLISHED_TABLES = len(SERVICES) + 1
"""Every service's outbox, and the heartbeat."""


def published_tables(connection: Connection) -> int:
    """Return how many tables the publication holds; without it none. Fewer than all: what the others hold is never published."""
    statement = text("SELECT count(*) FROM pg_publication_tables WHERE pubname = :name")
    return int(connection.execute(statement, {"name": PUBLICATION}).scalar_one())
