"""The chart of accounts, and from an event to its voucher. Pure: a replay in a year gives the same entries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from schemas.codec import Envelope
from schemas.events import FundsDeposited, PaymentSettled, SuspenseRecorded

Side = Literal["D", "C"]

BANK_CLEARING = "bank_clearing"
CHANNEL_COST = "channel_cost"
FEE_INCOME = "fee_income"
MERCHANT_PAYABLE = "merchant_payable"
PAYER_BALANCE = "payer_balance"
SUSPENSE = "suspense"


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralAccount:
    """A row of the chart of accounts. An entry's account is its code alone, or `code:party`."""

    code: str
    name: str
    normal_side: Side
    """The side on which its balance grows: debit for what is ours or spent, credit for what we owe or have earned."""
    floorless: bool = False
    """Every payment touches it and no check reads it: its balance is kept in stripes that reads add up."""


CHART = {
    one.code: one
    for one in (
        GeneralAccount(
            code=BANK_CLEARING, name="what banks have taken for us and will remit", normal_side="D", floorless=True
        ),
        GeneralAccount(code=CHANNEL_COST, name="what banks keep of it", normal_side="D", floorless=True),
        GeneralAccount(code=FEE_INCOME, name="what merchants pay us", normal_side="C", floorless=True),
        GeneralAccount(code=MERCHANT_PAYABLE, name="what we owe a merchant", normal_side="C"),
        GeneralAccount(code=PAYER_BALANCE, name="what we hold for a payer", normal_side="C"),
        GeneralAccount(code=SUSPENSE, name="money that no order could take", normal_side="C", floorless=True),
    )
}
"""The database has the same rows, and takes no entry of another account."""


def general_account(account: str) -> GeneralAccount:
    """Return the row of the chart that an account belongs to; raises ValueError where there is none.

    >>> general_account("merchant_payable:M1").normal_side
    'C'
    """
    try:
        return CHART[account.partition(":")[0]]
    except KeyError:
        raise ValueError(f"account {account!r} is not in the chart of accounts") from None


def merchant_payable(merchant_no: str) -> str:
    """Return the account of what the platform owes a merchant."""
    return f"{MERCHANT_PAYABLE}:{merchant_no}"


def payer_balance(payer_no: str) -> str:
    """Return the account of what the platform holds for a payer."""
    return f"{PAYER_BALANCE}:{payer_no}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a voucher: an amount on the debit (D) or credit (C) side of an account."""

    account: str
    side: Side
    amount_fen: int

    def mirrored(self) -> Entry:
        """Return the entry that takes this one back."""
        return Entry(account=self.account, side="C" if self.side == "D" else "D", amount_fen=self.amount_fen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher:
    """An original voucher; its debits equal its credits, in its one currency."""

    business_no: str
    kind: Literal["settlement", "suspense", "deposit", "reversal", "correction"]
    event_id: UUID | None
    """The event that told of the fact; None for what people post, which has a reason and an actor."""
    currency: str
    occurred_at: datetime
    entries: tuple[Entry, ...]
    reverses: int | None = None
    """The voucher that a reversal takes back."""
    corrects: int | None = None
    """The reversed voucher in whose place a correction stands."""
    reason: str | None = None
    actor: str | None = None

    def __post_init__(self) -> None:
        debit_fen = sum(entry.amount_fen for entry in self.entries if entry.side == "D")
        credit_fen = sum(entry.amount_fen for entry in self.entries if entry.side == "C")
        if debit_fen != credit_fen or debit_fen <= 0:
            raise ValueError(f"voucher {self.kind} {self.business_no}: debit {debit_fen}, credit {credit_fen}")


def voucher_of(envelope: Envelope) -> Voucher | None:
    """Return the voucher that an event calls for; None where no money moved.

    A channel settles net: it keeps its cost and remits the rest. So the clearing account is debited what will come in, the
    cost beside it, and the voucher's total is the amount that was paid. A balance payment is paid out of what we hold.
    """
    match envelope.event:
        case PaymentSettled() as event:
            source = BANK_CLEARING if event.method == "bank_card" else payer_balance(event.payer_no)
            lines = (
                Entry(account=source, side="D", amount_fen=event.amount_fen - event.cost_fen),
                Entry(account=CHANNEL_COST, side="D", amount_fen=event.cost_fen),
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
        case FundsDeposited() as event:
            return Voucher(
                business_no=event.deposit_no,
                kind="deposit",
                event_id=envelope.id,
                currency=event.currency,
                occurred_at=event.deposited_at,
                entries=(
                    Entry(account=BANK_CLEARING, side="D", amount_fen=event.amount_fen),
                    Entry(account=payer_balance(event.payer_no), side="C", amount_fen=event.amount_fen),
                ),
            )
        case _:
            return None
