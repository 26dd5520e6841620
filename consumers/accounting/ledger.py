"""The ledger: vouchers posted with their entries, balances moved with them, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection, text

from consumers.accounting.entries import Entry, Voucher, voucher_of
from consumers.accounting.posting import (
    BY_HAND,
    MOVE,
    MOVED,
    balance_moves,
    by_hand,
    correction,
    entry_rows,
    reversal,
)
from consumers.delivery.processor import DuplicateFact
from outbox.errors import Refused, UnknownName
from outbox.rows import as_json
from schemas.codec import Envelope

_VOUCHERS = text("""
    INSERT INTO voucher (business_no, kind, event_id, currency, occurred_at, lines)
    SELECT * FROM json_to_recordset(CAST(:rows AS json))
        AS voucher (business_no text, kind text, event_id uuid, currency text, occurred_at timestamptz, lines smallint)
    ON CONFLICT (business_no, kind) WHERE event_id IS NOT NULL DO NOTHING
    RETURNING voucher_no, event_id""")

_ENTRIES = text("""
    INSERT INTO entry (voucher_no, line, account, side, amount_fen)
    SELECT * FROM json_to_recordset(CAST(:rows AS json))
        AS entry (voucher_no bigint, line smallint, account text, side text, amount_fen bigint)""")

# One touch per account and batch; rows are locked in the order of the select.
_BALANCES = text(f"""
    INSERT INTO balance (account, currency, stripe, debit_fen, credit_fen)
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS {MOVED}
    ORDER BY account, currency, stripe
    {MOVE}""")  # noqa: S608 - text of ours


def post(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each event that moved money has its voucher. Transaction: the caller's. Raises DuplicateFact for a second one."""
    post_vouchers(connection, [voucher for event in events if (voucher := voucher_of(event))])


def post_vouchers(connection: Connection, vouchers: Sequence[Voucher]) -> None:
    """The vouchers stand in the ledger with their entries, and the balances include them, if the caller commits.

    Raises DuplicateFact if one of them has a voucher of its kind already.
    """
    if not vouchers:
        return
    rows = [
        {
            "business_no": voucher.business_no,
            "kind": voucher.kind,
            "event_id": voucher.event_id,
            "currency": voucher.currency,
            "occurred_at": voucher.occurred_at,
            "lines": len(voucher.entries),
        }
        for voucher in vouchers
    ]
    numbers = {row.event_id: row.voucher_no for row in connection.execute(_VOUCHERS, {"rows": as_json(rows)})}
    if len(numbers) != len(vouchers):
        raise DuplicateFact("a voucher of this kind was posted before")
    _enter(connection, [(numbers[voucher.event_id], voucher) for voucher in vouchers])


def _enter(connection: Connection, posted: Sequence[tuple[int, Voucher]]) -> None:
    """The entries of new vouchers are in, and the balances include them."""
    entries = [{"voucher_no": voucher_no, **row} for voucher_no, voucher in posted for row in entry_rows(voucher)]
    connection.execute(_ENTRIES, {"rows": as_json(entries)})
    connection.execute(_BALANCES, {"rows": as_json(balance_moves([voucher for _, voucher in posted]))})


def find_voucher(connection: Connection, voucher_no: int) -> Voucher:
    """Return a voucher as it was posted. Raises Refused where there is none."""
    row = connection.execute(
        text("""SELECT business_no, kind, event_id, currency, occurred_at, reverses, corrects, reason, actor
                FROM voucher WHERE voucher_no = :voucher_no"""),
        {"voucher_no": voucher_no},
    ).first()
    if row is None:
        raise UnknownName(
            f"there is no voucher {voucher_no}. The numbers are shown by: payrelay ledger statement ACCOUNT"
        )
    lines = connection.execute(
        text("SELECT account, side, amount_fen FROM entry WHERE voucher_no = :voucher_no ORDER BY line"),
        {"voucher_no": voucher_no},
    )
    return Voucher(**row._mapping, entries=tuple(Entry(**line._mapping) for line in lines))


def reversal_of(connection: Connection, voucher_no: int, *, reason: str, actor: str, at: datetime) -> Voucher:
    """Return the voucher that would take another one back, at a time of its own. Writes nothing.

    Raises Refused for a voucher that does not exist, is a reversal, or was reversed before.
    """
    original = find_voucher(connection, voucher_no)
    if original.kind == "reversal":
        raise Refused(
            f"voucher {voucher_no} is a reversal, which is never reversed itself. Post a correction of voucher {original.reverses} instead: payrelay ledger correct"
        )
    if (earlier := _follower(connection, "reverses", voucher_no)) is not None:
        raise Refused(f"voucher {voucher_no} was reversed before, by voucher {earlier}: there is nothing to reverse")
    return reversal(original, voucher_no, reason=reason, actor=actor, at=at)


def reverse_voucher(connection: Connection, voucher_no: int, *, reason: str, actor: str, at: datetime) -> int:
    """A voucher's entries are taken back by their mirror, whose number is returned, if the caller commits.

    Transaction: the caller's. A voucher is reversed once: a repeat raises Refused, as for one that is a reversal or is not
    there. What the event reported stays: funds, points and the payment itself do not change.
    """
    return _post_by_hand(connection, reversal_of(connection, voucher_no, reason=reason, actor=actor, at=at))


def correction_of(
    connection: Connection, voucher_no: int, entries: Sequence[Entry], *, reason: str, actor: str, at: datetime
) -> Voucher:
    """Return the voucher that would stand in the place of a reversed one. Writes nothing.

    Raises Refused unless the voucher was reversed, and not corrected yet; ValueError for entries that do not balance.
    """
    original = find_voucher(connection, voucher_no)
    if _follower(connection, "reverses", voucher_no) is None:
        raise Refused(
            f"voucher {voucher_no} stands, and only a reversed voucher can be corrected. Reverse it first: payrelay ledger reverse {voucher_no}"
        )
    if (earlier := _follower(connection, "corrects", voucher_no)) is not None:
        raise Refused(
            f"voucher {voucher_no} was corrected before, by voucher {earlier}: to change it again, reverse that one"
        )
    return correction(original, voucher_no, entries, reason=reason, actor=actor, at=at)


def correct_voucher(
    connection: Connection, voucher_no: int, entries: Sequence[Entry], *, reason: str, actor: str, at: datetime
) -> int:
    """Entries stand in the place of a reversed voucher's, under the number returned, if the caller commits.

    Transaction: the caller's. Once: a repeat raises Refused. Otherwise raises as `correction_of` does.
    """
    return _post_by_hand(connection, correction_of(connection, voucher_no, entries, reason=reason, actor=actor, at=at))


def _follower(connection: Connection, how: Literal["reverses", "corrects"], voucher_no: int) -> int | None:
    """Return the voucher that reverses, or corrects, another one."""
    number: int | None = connection.execute(
        text(f"SELECT voucher_no FROM voucher WHERE {how} = :voucher_no"), {"voucher_no": voucher_no}  # noqa: S608
    ).scalar()  # fmt: skip
    return number


def _post_by_hand(connection: Connection, voucher: Voucher) -> int:
    """The voucher is posted, unless somebody has reversed or corrected the same one meanwhile: then raises Refused."""
    statement = text(BY_HAND[voucher.kind])
    voucher_no: int | None = connection.execute(statement, by_hand(voucher)).scalar()
    if voucher_no is None:
        raise Refused(
            f"voucher {voucher.reverses or voucher.corrects} has its {voucher.kind} already: somebody else posted it just now, and nothing was posted"
        )
    return voucher_no
