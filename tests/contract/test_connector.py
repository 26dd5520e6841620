"""The connector's configuration, letter by letter; no password in it."""

from __future__ import annotations

import json
from pathlib import Path

from connect.connector import connector_config, diff
from outbox.settings import Settings

GOLDEN = Path(__file__).parent / "golden" / "connector" / "connector.json"
DATABASE = {"host": "db.example", "port": "5432", "dbname": "payrelay", "sslmode": "require"}


def config(**given: str) -> dict[str, str]:
    settings = Settings(
        connector_password_ref="${file:/run/secrets/connect:debezium}", connector_poll_interval_ms=5, **given
    )
    return connector_config(settings, publication="payrelay_outbox", database=DATABASE)


def test_golden() -> None:
    assert config() == json.loads(GOLDEN.read_text())


def test_a_repair_bounds_the_snapshot_of_each_table() -> None:
    bounded = connector_config(
        Settings(),
        publication="p",
        database=DATABASE,
        since={"payments.outbox": "01a2079e-7a00-0000-0000-000000000000"},
    )
    key = "snapshot.select.statement.overrides"
    assert bounded[key] == "payments.outbox"
    assert bounded[f"{key}.payments.outbox"] == (
        "SELECT * FROM payments.outbox WHERE id >= '01a2079e-7a00-0000-0000-000000000000' ORDER BY id"
    )


def test_a_difference_masks_secrets() -> None:
    changes = diff({"database.password": "old", "a": "1"}, {"database.password": "new", "b": "2"})
    assert changes == [("a", "1", ""), ("b", "", "2"), ("database.password", "********", "********")]
    assert diff({"name": "x", "a": "1"}, {"a": "1"}) == []
