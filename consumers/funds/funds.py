"""Merchants are credited what was paid, less the fee."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from consumers.delivery import DuplicateFact
from outbox.rows import as_json
from schemas.codec import Envelope
from schemas.events import PaymentSettled

# An insert takes its rows, and so their locks, in the order of the select: no two workers lock accounts crosswise.
_CREDIT = text("""
    INSERT INTO account (account_no, balance_fen)
    SELECT credit.account_no, sum(credit.amount_fen)
    FROM json_to_recordset(CAST(:rows AS json)) AS credit (account_no text, amount_fen bigint)
    GROUP BY credit.account_no ORDER BY credit.account_no
    ON CONFLICT (account_no) DO UPDATE SET balance_fen = account.balance_fen + excluded.balance_fen""")

_ENTER = text("""
    INSERT INTO entry (payment_no, account_no, kind, amount_fen, event_id)
    SELECT payment_no, account_no, 'credit', amount_fen, event_id
    FROM json_to_recordset(CAST(:rows AS json))
         AS credit (payment_no text, account_no text, amount_fen bigint, event_id uuid)
    ON CONFLICT DO NOTHING""")


def credit_merchants(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each settled payment has its entry, and each merchant's balance has grown by them. Other events change nothing.

    Transaction: the caller's. Raises DuplicateFact, before the caller may commit, if a payment was credited before.
    """
    credited = [
        {
            "payment_no": event.payment_no,
            "account_no": event.merchant_no,
            "amount_fen": event.amount_fen - event.fee_fen,
            "event_id": envelope.id,
        }
        for envelope in events
        if isinstance(event := envelope.event, PaymentSettled)
    ]
    if not credited:
        return
    rows = {"rows": as_json(credited)}
    connection.execute(_CREDIT, rows)
    if connection.execute(_ENTER, rows).rowcount != len(credited):
        raise DuplicateFact("a payment was credited before")
