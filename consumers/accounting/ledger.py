"""The ledger: vouchers posted with their entries, balances moved with them, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from sqlalchemy import Connection, text

from consumers.accounting.entries import FLOORLESS, Voucher, voucher_of
from consumers.delivery import DuplicateFact
from schemas.codec import Envelope

STRIPES = 16
"""Parts that a floorless account's balance is kept in, so that workers do not wait for one row."""

_VOUCHERS = text("""
    INSERT INTO voucher (business_no, kind, event_id, currency, occurred_at)
    SELECT * FROM unnest(CAST(:business_nos AS text[]), CAST(:kinds AS text[]), CAST(:ids AS uuid[]),
                         CAST(:currencies AS text[]), CAST(:times AS timestamptz[]))
    ON CONFLICT DO NOTHING
    RETURNING voucher_no, event_id""")

_ENTRIES = text("""
    INSERT INTO entry (voucher_no, line, account, side, amount_fen)
    SELECT * FROM unnest(CAST(:vouchers AS bigint[]), CAST(:lines AS smallint[]), CAST(:accounts AS text[]),
                         CAST(:sides AS text[]), CAST(:amounts AS bigint[]))""")

# One touch per account and batch; rows locked in the order of the select.
_BALANCES = text("""
    INSERT INTO balance (account, currency, stripe, debit_fen, credit_fen)
    SELECT account, currency, stripe,
           coalesce(sum(amount_fen) FILTER (WHERE side = 'D'), 0), coalesce(sum(amount_fen) FILTER (WHERE side = 'C'), 0)
    FROM unnest(CAST(:accounts AS text[]), CAST(:currencies AS text[]), CAST(:stripes AS integer[]),
                CAST(:sides AS text[]), CAST(:amounts AS bigint[])) AS move (account, currency, stripe, side, amount_fen)
    GROUP BY account, currency, stripe ORDER BY account, currency, stripe
    ON CONFLICT (account, currency, stripe) DO UPDATE
    SET debit_fen = balance.debit_fen + excluded.debit_fen, credit_fen = balance.credit_fen + excluded.credit_fen""")


def post(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each event that moved money has its voucher. Transaction: the caller's. Raises DuplicateFact for a second one."""
    post_vouchers(connection, [voucher for event in events if (voucher := voucher_of(event))])


def post_vouchers(connection: Connection, vouchers: Sequence[Voucher]) -> None:
    """The vouchers stand in the ledger with their entries, and the balances include them, if the caller commits.

    Raises DuplicateFact if one of them has a voucher of its kind already.
    """
    if not vouchers:
        return
    posted = connection.execute(
        _VOUCHERS,
        {
            "business_nos": [voucher.business_no for voucher in vouchers],
            "kinds": [voucher.kind for voucher in vouchers],
            "ids": [voucher.event_id for voucher in vouchers],
            "currencies": [voucher.currency for voucher in vouchers],
            "times": [voucher.occurred_at for voucher in vouchers],
        },
    )
    numbers = {row.event_id: row.voucher_no for row in posted}
    if len(numbers) != len(vouchers):
        raise DuplicateFact("a voucher of this kind was posted before")
    stripe = crc32(vouchers[0].business_no.encode()) % STRIPES
    lines = [(voucher, number, entry) for voucher in vouchers for number, entry in enumerate(voucher.entries, start=1)]
    entries = {
        "vouchers": [numbers[voucher.event_id] for voucher, _, _ in lines],
        "lines": [number for _, number, _ in lines],
        "accounts": [entry.account for _, _, entry in lines],
        "sides": [entry.side for _, _, entry in lines],
        "amounts": [entry.amount_fen for _, _, entry in lines],
    }
    connection.execute(_ENTRIES, entries)
    moves = {
        **entries,
        "currencies": [voucher.currency for voucher, _, _ in lines],
        "stripes": [stripe if entry.account in FLOORLESS else 0 for _, _, entry in lines],
    }
    connection.execute(_BALANCES, moves)
