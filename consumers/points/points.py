"""Payers earn the points that the settlement decided."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from consumers.delivery import DuplicateFact
from schemas.codec import Envelope
from schemas.events import PaymentSettled

_ADD = text("""
    INSERT INTO account (account_no, balance)
    SELECT earned.account_no, sum(earned.points)
    FROM unnest(CAST(:accounts AS text[]), CAST(:points AS bigint[])) AS earned (account_no, points)
    GROUP BY earned.account_no ORDER BY earned.account_no
    ON CONFLICT (account_no) DO UPDATE SET balance = account.balance + excluded.balance""")

_ENTER = text("""
    INSERT INTO entry (payment_no, account_no, kind, points, event_id)
    SELECT payment_no, account_no, 'earn', points, event_id
    FROM unnest(CAST(:payments AS text[]), CAST(:accounts AS text[]), CAST(:points AS bigint[]), CAST(:ids AS uuid[]))
         AS earned (payment_no, account_no, points, event_id)
    ON CONFLICT DO NOTHING""")


def add_points(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each settled payment has its entry, and each payer's balance has grown by them. Other events change nothing.

    Transaction: the caller's. Raises DuplicateFact, before the caller may commit, if a payment earned points before.
    """
    settled = [(envelope.id, envelope.event) for envelope in events if isinstance(envelope.event, PaymentSettled)]
    if not settled:
        return
    parameters = {
        "ids": [event_id for event_id, _ in settled],
        "payments": [event.payment_no for _, event in settled],
        "accounts": [event.payer_no for _, event in settled],
        "points": [event.points for _, event in settled],
    }
    connection.execute(_ADD, parameters)
    if connection.execute(_ENTER, parameters).rowcount != len(settled):
        raise DuplicateFact("a payment earned points before")
