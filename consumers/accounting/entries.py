"""From an event to its voucher. Pure: a replay in a year gives the same entries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from schemas.codec import Envelope
from schemas.events import PaymentSettled, SuspenseRecorded

BANK_CLEARING = "bank_clearing"
FEE_INCOME = "fee_income"
SUSPENSE = "suspense"

FLOORLESS = frozenset({BANK_CLEARING, FEE_INCOME, SUSPENSE})
"""Accounts that every payment touches and no check reads: their balance is kept in stripes that reads add up."""


def merchant_payable(merchant_no: str) -> str:
    """Return the account of what the platform owes a merchant."""
    return f"merchant_payable:{merchant_no}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a voucher: an amount on the debit (D) or credit (C) side of an account."""

    account: str
    side: Literal["D", "C"]
    amount_fen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher:
    """An original voucher; its debits equal its credits."""

    business_no: str
    kind: Literal["settlement", "suspense"]
    event_id: UUID
    currency: str
    occurred_at: datetime
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        debit_fen = sum(entry.amount_fen for entry in self.entries if entry.side == "D")
        credit_fen = sum(entry.amount_fen for entry in self.entries if entry.side == "C")
        if debit_fen != credit_fen or debit_fen <= 0:
            raise ValueError(f"voucher {self.kind} {self.business_no}: debit {debit_fen}, credit {credit_fen}")


def voucher_of(envelope: Envelope) -> Voucher | None:
    """Return the voucher that an event calls for; None where no money moved."""
    match envelope.event:
        case PaymentSettled() as event:
            lines = (
                Entry(account=BANK_CLEARING, side="D", amount_fen=event.amount_fen),
                Entry(
                    account=merchant_payable(event.merchant_no), side="C", amount_fen=event.amount_fen - event.fee_fen
                ),
                Entry(account=FEE_INCOME, side="C", amount_fen=event.fee_fen),
            )
            return Voucher(
                business_no=event.payment_no,
                kind="settlement",
                event_id=envelope.id,
                currency=event.currency,
                occurred_at=event.settled_at,
                entries=tuple(line for line in lines if line.amount_fen),
            )
        case SuspenseRecorded() as event:
            return Voucher(
                business_no=event.bank_transaction_no,
                kind="suspense",
                event_id=envelope.id,
                currency=event.currency,
                occurred_at=event.recorded_at,
                entries=(
                    Entry(account=BANK_CLEARING, side="D", amount_fen=event.amount_fen),
                    Entry(account=SUSPENSE, side="C", amount_fen=event.amount_fen),
                ),
            )
        case _:
            return None
