"""Bring the connector to its configuration: validated first, and left alone when nothing changes."""

from __future__ import annotations

from collections.abc import Mapping

from connect.client import ConnectClient, ConnectError
from connect.connector import connector_config, diff
from outbox.database import driver_url
from outbox.publication import PUBLICATION
from outbox.settings import Settings


def wanted_config(settings: Settings, *, since: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the connector's configuration for these settings."""
    url = driver_url(settings.connector_dsn.get_secret_value())
    database = {
        "host": url.host or "127.0.0.1",
        "port": str(url.port or 5432),
        "dbname": url.database or "",
        "sslmode": str(url.query.get("sslmode", "prefer")),
    }
    return connector_config(settings, publication=PUBLICATION, database=database, since=since)


def apply_connector(
    client: ConnectClient, settings: Settings, *, since: Mapping[str, str] | None = None, execute: bool = True
) -> list[tuple[str, str, str]]:
    """The connector has the wanted configuration; returns what changed (or, not executed, would), secrets masked.

    May be repeated: equal configuration is not sent. Raises ConnectError naming each field that does not hold.
    """
    wanted = wanted_config(settings, since=since)
    changes = diff(client.config(settings.connector), wanted)
    if not changes:
        return []
    if problems := client.validate({**wanted, "name": settings.connector}):
        raise ConnectError(
            "Kafka Connect refuses this configuration, so nothing was changed. Correct these settings and repeat:",
            details=problems,
        )
    if execute:
        client.put_config(settings.connector, wanted)
    return changes
