"""Merchants are credited what was paid, less the fee."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from consumers.delivery import DuplicateFact
from schemas.codec import Envelope
from schemas.events import PaymentSettled

# An insert takes its rows, and so their locks, in the order of the select: no two workers lock accounts crosswise.
_CREDIT = text("""
    INSERT INTO account (account_no, balance_fen)
    SELECT credit.account_no, sum(credit.amount_fen)
    FROM unnest(CAST(:accounts AS text[]), CAST(:amounts AS bigint[])) AS credit (account_no, amount_fen)
    GROUP BY credit.account_no ORDER BY credit.account_no
    ON CONFLICT (account_no) DO UPDATE SET balance_fen = account.balance_fen + excluded.balance_fen""")

_ENTER = text("""
    INSERT INTO entry (payment_no, account_no, kind, amount_fen, event_id)
    SELECT payment_no, account_no, 'credit', amount_fen, event_id
    FROM unnest(CAST(:payments AS text[]), CAST(:accounts AS text[]), CAST(:amounts AS bigint[]), CAST(:ids AS uuid[]))
         AS credit (payment_no, account_no, amount_fen, event_id)
    ON CONFLICT DO NOTHING""")


def credit_merchants(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each settled payment has its entry, and each merchant's balance has grown by them. Other events change nothing.

    Transaction: the caller's. Raises DuplicateFact, before the caller may commit, if a payment was credited before.
    """
    settled = [(envelope.id, envelope.event) for envelope in events if isinstance(envelope.event, PaymentSettled)]
    if not settled:
        return
    parameters = {
        "ids": [event_id for event_id, _ in settled],
        "payments": [event.payment_no for _, event in settled],
        "accounts": [event.merchant_no for _, event in settled],
        "amounts": [event.amount_fen - event.fee_fen for _, event in settled],
    }
    connection.execute(_CREDIT, parameters)
    if connection.execute(_ENTER, parameters).rowcount != len(settled):
        raise DuplicateFact("a payment was credited before")
