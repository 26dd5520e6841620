"""Payers earn the points that the settlement decided."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from consumers.delivery.processor import DuplicateFact
from outbox.rows import as_json
from schemas.codec import Envelope
from schemas.events import PaymentSettled

_ADD = text("""
    INSERT INTO account (account_no, balance)
    SELECT earned.account_no, sum(earned.points)
    FROM json_to_recordset(CAST(:rows AS json)) AS earned (account_no text, points bigint)
    GROUP BY earned.account_no ORDER BY earned.account_no
    ON CONFLICT (account_no) DO UPDATE SET balance = account.balance + excluded.balance""")

_ENTER = text("""
    INSERT INTO entry (payment_no, account_no, kind, points, event_id)
    SELECT payment_no, account_no, 'earn', points, event_id
    FROM json_to_recordset(CAST(:rows AS json))
         AS earned (payment_no text, account_no text, points bigint, event_id uuid)
    ON CONFLICT (payment_no, account_no, kind) DO NOTHING""")


def add_points(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each settled payment has its entry, and each payer's balance has grown by them. Other events change nothing.

    Transaction: the caller's. Raises DuplicateFact, before the caller may commit, if a payment earned points before.
    """
    earned = [
        {
            "payment_no": event.payment_no,
            "account_no": event.payer_no,
            "points": event.points,
            "event_id": envelope.id,
        }
        for envelope in events
        if isinstance(event := envelope.event, PaymentSettled)
    ]
    if not earned:
        return
    rows = {"rows": as_json(earned)}
    connection.execute(_ADD, rows)
    if connection.execute(_ENTER, rows).rowcount != len(earned):
        raise DuplicateFact("a payment earned points before")
