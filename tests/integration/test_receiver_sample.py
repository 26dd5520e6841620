"""The sample receiver in docs/how-to takes each notification in once, and nothing that was not signed."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from pathlib import Path
from typing import Any

from consumers.notification.bodies import body_of
from outbox.clock import utc_now
from schemas.signature import signed_headers
from tests.factories import failed, settled
from tests.notifier import SECRET
from tests.pipeline import ROOT


def sample() -> Any:
    path = ROOT / "docs/how-to/receive_notifications.py"
    spec = importlib.util.spec_from_file_location("receive_notifications", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_notification_is_taken_in_once_and_nothing_unsigned(tmp_path: Path) -> None:
    module = sample()
    database = sqlite3.connect(tmp_path / "paid.db")
    database.executescript(module.SCHEMA)
    events = (settled(), failed(order_no="T-O9"))
    for number, event in enumerate(events):
        body = (body_of(event) or "").encode()
        headers = signed_headers(SECRET, message_id=f"id-{number}", at=utc_now(), body=body)
        for _ in range(3):
            assert module.receive(database, SECRET, headers, body) == (200, "success")
        assert module.receive(database, SECRET, {**headers, "webhook-id": "other"}, body)[0] == 401
        assert module.receive(database, SECRET, headers, body + b" ")[0] == 401
    rows = database.execute("SELECT order_no, status, amount_fen FROM paid ORDER BY order_no").fetchall()
    assert rows == [("T-O000001", "SETTLED", settled().amount_fen), ("T-O9", "FAILED", 10_000)]
    assert database.execute("SELECT count(*) FROM seen").fetchone() == (2,)
    database.close()


def test_the_fields_that_receivers_are_promised_are_the_fields_they_get() -> None:
    page = (ROOT / "docs/how-to/notifications.md").read_text()
    for event in (settled(), failed()):
        [line] = [line for line in page.splitlines() if line.startswith(f"| `{event.type}`")]
        for name in json.loads(body_of(event) or "").keys() - {"type"}:
            assert f"`{name}`" in line, name
