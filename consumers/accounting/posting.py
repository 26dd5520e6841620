"""The rows that vouchers are made of: their own, their entries', and what the balances move by. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from zlib import crc32

from consumers.accounting.entries import Entry, Voucher
from outbox.rows import as_json
from schemas.accounts import general_account

STRIPES = 16
"""Parts that a floorless account's balance is kept in, so that workers do not wait for one row."""

ENTERED = "entry (line smallint, account text, side text, amount_fen bigint)"
MOVED = "move (account text, currency text, stripe integer, debit_fen bigint, credit_fen bigint)"

MOVE = """
    ON CONFLICT (account, currency, stripe) DO UPDATE
    SET debit_fen = balance.debit_fen + excluded.debit_fen, credit_fen = balance.credit_fen + excluded.credit_fen"""
"""A balance takes a move in."""

BY_HAND = {
    kind: f"""
    WITH posted AS (
      INSERT INTO accounting.voucher (business_no, kind, currency, occurred_at, lines, reverses, corrects, reason, actor)
      VALUES (:business_no, :kind, :currency, :occurred_at, :lines, :reverses, :corrects, :reason, :actor)
      ON CONFLICT ({which}) DO NOTHING
      RETURNING voucher_no),
    entered AS (
      INSERT INTO accounting.entry (voucher_no, line, account, side, amount_fen)
      SELECT voucher_no, line, account, side, amount_fen FROM posted, json_to_recordset(CAST(:entries AS json)) AS {ENTERED}),
    moved AS (
      INSERT INTO accounting.balance (account, currency, stripe, debit_fen, credit_fen)
      SELECT account, currency, stripe, debit_fen, credit_fen FROM posted, json_to_recordset(CAST(:moves AS json)) AS {MOVED}
      ORDER BY account, currency, stripe
      {MOVE})
    SELECT voucher_no FROM posted"""  # noqa: S608 - a column of ours
    for kind, which in (("reversal", "reverses"), ("correction", "corrects"))
}
"""Posts what `by_hand` gives: a voucher is reversed once, and corrected once. Gives its number; no row where it was before."""


def entry_rows(voucher: Voucher) -> list[dict[str, object]]:
    """Return a voucher's entries as numbered rows."""
    return [
        {"line": line, "account": entry.account, "side": entry.side, "amount_fen": entry.amount_fen}
        for line, entry in enumerate(voucher.entries, start=1)
    ]


def balance_moves(vouchers: Sequence[Voucher]) -> list[dict[str, object]]:
    """Return what vouchers that are posted together move each balance by: one row for each."""
    stripe = crc32(vouchers[0].business_no.encode()) % STRIPES
    moves: dict[tuple[str, str, int], list[int]] = {}
    for voucher in vouchers:
        for entry in voucher.entries:
            part = stripe if general_account(entry.account).floorless else 0
            moves.setdefault((entry.account, voucher.currency, part), [0, 0])["DC".index(entry.side)] += (
                entry.amount_fen
            )
    return [
        {"account": account, "currency": currency, "stripe": part, "debit_fen": debit_fen, "credit_fen": credit_fen}
        for (account, currency, part), (debit_fen, credit_fen) in moves.items()
    ]


def reversal(original: Voucher, voucher_no: int, *, reason: str, actor: str, at: datetime) -> Voucher:
    """Return the voucher that takes another one back, at a time of its own."""
    entries = [entry.mirrored() for entry in original.entries]
    made = _posted_by(original, entries, reason=reason, actor=actor, at=at)
    return replace(made, kind="reversal", reverses=voucher_no)


def correction(
    original: Voucher, voucher_no: int, entries: Iterable[Entry], *, reason: str, actor: str, at: datetime
) -> Voucher:
    """Return the voucher that stands in the place of a reversed one. Raises ValueError for entries that do not balance."""
    made = _posted_by(original, entries, reason=reason, actor=actor, at=at)
    return replace(made, kind="correction", corrects=voucher_no)


def _posted_by(original: Voucher, entries: Iterable[Entry], *, reason: str, actor: str, at: datetime) -> Voucher:
    """Return a voucher of the same business and currency that somebody posts."""
    return replace(
        original, entries=tuple(entries), event_id=None, occurred_at=at, reverses=None, corrects=None, reason=reason, actor=actor
    )  # fmt: skip


def by_hand(voucher: Voucher) -> dict[str, object]:
    """Return what BY_HAND is given for a reversal or a correction."""
    row = {name: value for name, value in asdict(voucher).items() if name not in ("entries", "event_id")}
    return {
        **row,
        "lines": len(voucher.entries),
        "entries": as_json(entry_rows(voucher)),
        "moves": as_json(balance_moves([voucher])),
    }
