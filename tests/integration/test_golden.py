"""Golden events give the same rows whatever the rules, the zone and the clock are when they are handled."""

from __future__ import annotations

import sys
from inspect import getsource
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from consumers.delivery.processor import Processor
from consumers.processors import PROCESSORS
from outbox.settings import Settings
from producers.payments.orders import register_merchant
from schemas.codec import Envelope, decode
from tests.factories import ID
from tests.notifier import SECRET
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
    "settlement": """SELECT payload, outbox.type, outbox.version FROM outbox WHERE causation = CAST(:id AS text)
                     UNION ALL SELECT payment_no, status, fee_fen FROM payment
                     WHERE payment_no = 'T-P1' AND status <> 'PAYING' ORDER BY 2""",
    "notification": "SELECT queue, event_id, merchant_no, payment_no, order_no, body, status FROM notify_record WHERE event_id = :id",
    "bank_notification": "SELECT queue, event_id, merchant_no, payment_no, order_no, body, status FROM notify_record WHERE event_id = :id",
}
"""What a handler decides; not the numbers and times that the database gives its rows."""

BEFORE = {
    "settlement": (
        "INSERT INTO merchant VALUES ('T-M1', 'T-M1', '', 0) ON CONFLICT DO NOTHING",
        "INSERT INTO account VALUES ('T-U1', 'A', 1, 1, 1)",
        "INSERT INTO limit_use VALUES ('T-U1', '2026-11-23', 10000)",
        """INSERT INTO payment (payment_no, merchant_no, order_no, payer_no, amount_fen, currency, request_sha256, status,
             limit_day, created_at, expires_at, method)
           VALUES ('T-P1', 'T-M1', 'T-O1', 'T-U1', 10000, 'CNY', '', 'PAYING', '2026-11-23', '2026-11-23', '2026-11-24', 'balance')""",
    )
}
"""What a handler finds."""


def golden(stem: str) -> Envelope:
    headers = {"ce_id": str(ID), "ce_type": ".".join(stem.split(".")[:3]), "aggregate_version": "1", "correlation": "O"}
    return decode(
        {name: value.encode() for name, value in headers.items()}, (GOLDEN / f"{stem}.json").read_text().encode()
    )


def handled(connection: Connection, processor: Processor, event: Envelope) -> list[Any]:
    """Return the rows that an event gives, and take them back."""
    with connection.begin():
        for statement in BEFORE.get(processor.name, ()):
            connection.execute(text(statement))
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
    processor, event = PROCESSORS[name], golden(stem)
    with engine_of(settings, processor.service).connect() as connection:
        first = handled(connection, processor, event)
    with engine_of(settings, "payments").begin() as connection:
        register_merchant(
            connection, "T-M1", api_key="T-M1", secret=SECRET, fee_rate_bp=9_999, fee_fixed_fen=7, fee_min_fen=3
        )
    monkeypatch.setenv("PAYRELAY_ZONE", "America/Anchorage")
    monkeypatch.setenv("TZ", "America/Anchorage")
    with engine_of(settings, processor.service).connect() as connection:
        connection.execute(text("SET TimeZone = 'America/Anchorage'"))
        connection.commit()
        second = handled(connection, processor, event)
    assert first == second
    assert bool(first) == (stem in WITH_ROWS[name])


@pytest.mark.parametrize("name", sorted(PROCESSORS))
def test_no_handler_reads_a_clock_or_a_setting(name: str) -> None:
    source = getsource(sys.modules[PROCESSORS[name].handle.__module__])
    impurities = [word for word in ("utc_now", "datetime.now", "time.time", "environ", "Settings(") if word in source]
    assert impurities == [], "a handler is a function of its events and rows"


WITH_ROWS = {
    "settlement": {"funds.balance_paid.v1", "funds.balance_refused.v1"},
    "accounting": {
        "payment.settled.v1",
        "payment.settled.v1.first",
        "payment.suspense_recorded.v1",
        "funds.deposited.v1",
    },
    "funds": {"payment.settled.v1", "payment.settled.v1.first", "payment.balance_requested.v1"},
    "points": {"payment.settled.v1", "payment.settled.v1.first"},
    "notification": {"payment.settled.v1", "payment.settled.v1.first", "payment.failed.v1"},
    "bank_notification": {"bank.transaction_executed.v1"},
}
