"""Golden events give the same rows whatever the rules, the zone and the clock are when they are handled."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Connection, text

import outbox.clock
from consumers.delivery import Processor
from consumers.worker import PROCESSORS
from outbox.clock import utc_now
from outbox.settings import Settings
from producers.payments.orders import register_merchant
from schemas.codec import Envelope, decode
from tests.factories import ID
from tests.pipeline import engine_of

GOLDEN = Path(__file__).resolve().parents[1] / "contract/golden"
FILES = sorted(path.stem for path in GOLDEN.glob("*.json"))

ROWS = {
    "accounting": """SELECT business_no, kind, event_id, currency, occurred_at, line, account, side, amount_fen
                     FROM voucher JOIN entry USING (voucher_no) WHERE event_id = :id ORDER BY line""",
    "funds": """SELECT payment_no, account_no, kind, amount_fen, event_id FROM entry WHERE event_id = :id
                UNION ALL SELECT payment_no, payload, outbox.type, 0, event_id FROM balance_payment
                JOIN outbox ON causation = event_id::text WHERE event_id = :id ORDER BY 2""",
    "points": "SELECT payment_no, account_no, kind, points, event_id FROM entry WHERE event_id = :id ORDER BY 2",
    "notification": "SELECT queue, event_id, merchant_no, payment_no, order_no, body, status FROM notify_record WHERE event_id = :id",
}
"""What a handler decides; not the numbers and times that the database gives its rows."""


def golden(stem: str) -> Envelope:
    headers = {"ce_id": str(ID), "ce_type": ".".join(stem.split(".")[:3]), "aggregate_version": "1", "correlation": "O"}
    return decode(
        {name: value.encode() for name, value in headers.items()}, (GOLDEN / f"{stem}.json").read_text().encode()
    )


def handled(connection: Connection, processor: Processor, event: Envelope) -> list[Any]:
    """Return the rows that an event gives, and take them back."""
    with connection.begin():
        processor.handle(connection, [event])
        rows = [tuple(row) for row in connection.execute(text(ROWS[processor.name]), {"id": event.id})]
        connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        connection.get_transaction().rollback()  # type: ignore[union-attr]
    return rows


@pytest.mark.parametrize("stem", FILES)
@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_golden_event_gives_the_same_rows_under_other_rules(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, stem: str
) -> None:
    processor, event, later = PROCESSORS[name], golden(stem), utc_now() + timedelta(days=400)
    with engine_of(settings, processor.service).connect() as connection:
        first = handled(connection, processor, event)
    with engine_of(settings, "payments").begin() as connection:
        register_merchant(
            connection, "T-M1", api_key="T-M1", secret="", fee_rate_bp=9_999, fee_fixed_fen=7, fee_min_fen=3
        )
    monkeypatch.setenv("PAYRELAY_ZONE", "America/Anchorage")
    monkeypatch.setenv("TZ", "America/Anchorage")
    monkeypatch.setattr(outbox.clock, "utc_now", lambda: later.astimezone(ZoneInfo("America/Anchorage")))
    with engine_of(settings, processor.service).connect() as connection:
        connection.execute(text("SET TimeZone = 'America/Anchorage'"))
        connection.commit()
        second = handled(connection, processor, event)
    assert first == second
    assert bool(first) == (stem in WITH_ROWS[name])


WITH_ROWS = {
    "accounting": {
        "payment.settled.v1",
        "payment.settled.v1.first",
        "payment.suspense_recorded.v1",
        "funds.deposited.v1",
    },
    "funds": {"payment.settled.v1", "payment.settled.v1.first", "payment.balance_requested.v1"},
    "points": {"payment.settled.v1", "payment.settled.v1.first"},
    "notification": {"payment.settled.v1", "payment.settled.v1.first", "payment.failed.v1"},
}
