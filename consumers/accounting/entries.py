"""From an event to its voucher. Pure: a replay in a year gives the same entries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from schemas.accounts import BANK_CLEARING, CHANNEL_COST, FEE_INCOME, SUSPENSE, Side, merchant_payable, payer_balance
from schemas.codec import Envelope
from schemas.events import FundsDeposited, PaymentSettled, SuspenseRecorded


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
    """The event that reported the fact; None for a voucher that people post, which has a reason and an actor."""
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
            raise ValueError(
                f"voucher {self.kind} {self.business_no} does not balance: debit {debit_fen}, credit {credit_fen}"
            )


def settlement_entries(payment: Any) -> tuple[Entry, ...]:
    """Return the entries of a settled payment, given as its event or as its row: the two name its parts alike.

    A channel settles net: it keeps its cost and remits the rest. So the clearing account is debited what will come in, the
    cost beside it, and the voucher's total is the amount that was paid. A balance payment is paid out of what we hold.
    """
    source = BANK_CLEARING if payment.method == "bank_card" else payer_balance(payment.payer_no)
    payable_fen = payment.amount_fen - payment.fee_fen
    lines = (
        Entry(account=source, side="D", amount_fen=payment.amount_fen - payment.cost_fen),
        Entry(account=CHANNEL_COST, side="D", amount_fen=payment.cost_fen),
        Entry(account=merchant_payable(payment.merchant_no), side="C", amount_fen=payable_fen),
        Entry(account=FEE_INCOME, side="C", amount_fen=payment.fee_fen),
    )
    return tuple(line for line in lines if line.amount_fen)


def suspense_entries(money: Any) -> tuple[Entry, ...]:
    """Return the entries of money in suspense, given as its event or as its row."""
    return (
        Entry(account=BANK_CLEARING, side="D", amount_fen=money.amount_fen),
        Entry(account=SUSPENSE, side="C", amount_fen=money.amount_fen),
    )


def deposit_entries(deposit: Any) -> tuple[Entry, ...]:
    """Return the entries of a payer's deposit, given as its event or as its row."""
    return (
        Entry(account=BANK_CLEARING, side="D", amount_fen=deposit.amount_fen),
        Entry(account=payer_balance(deposit.payer_no), side="C", amount_fen=deposit.amount_fen),
    )


def net_of(entries: Iterable[Entry]) -> dict[str, int]:
    """Return debits less credits of each account.

    >>> net_of([Entry(account="a", side="D", amount_fen=5), Entry(account="b", side="C", amount_fen=5)])
    {'a': 5, 'b': -5}
    """
    net: dict[str, int] = {}
    for entry in entries:
        net[entry.account] = net.get(entry.account, 0) + (entry.amount_fen if entry.side == "D" else -entry.amount_fen)
    return net


def voucher_of(envelope: Envelope) -> Voucher | None:
    """Return the voucher that an event calls for; None where no money moved."""
    match envelope.event:
        case PaymentSettled() as event:
            return Voucher(
                business_no=event.payment_no,
                kind="settlement",
                event_id=envelope.id,
                currency=event.currency,
                occurred_at=event.settled_at,
                entries=settlement_entries(event),
            )
        case SuspenseRecorded() as event:
            return Voucher(
                business_no=event.bank_transaction_no,
                kind="suspense",
                event_id=envelope.id,
                currency=event.currency,
                occurred_at=event.recorded_at,
                entries=suspense_entries(event),
            )
        case FundsDeposited() as event:
            return Voucher(
                business_no=event.deposit_no,
                kind="deposit",
                event_id=envelope.id,
                currency=event.currency,
                occurred_at=event.deposited_at,
                entries=deposit_entries(event),
            )
        case _:
            return None
