"""Events: one struct per type and version. Only optional fields may be added to a version; a break is a new version.

Amounts are integers of fen. Everything that decides money is in the event: a handler reads no clock, rate or setting.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from schemas.topics import BANK_TRANSACTION, FUNDS_TRANSFER, PAYMENT_ORDER, Topic

Amount = Annotated[int, Meta(gt=0, le=10**15, description="fen")]
AmountOrZero = Annotated[int, Meta(ge=0, le=10**15, description="fen")]
Count = Annotated[int, Meta(ge=0, le=10**15)]
Number = Annotated[str, Meta(min_length=1, max_length=64)]
# The length beside the pattern is needed: in Python `$` also matches before a final newline. `\Z` is no ECMA 262, which JSON
# Schema's patterns are.
Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$", min_length=3, max_length=3)]
Reason = Annotated[str, Meta(min_length=1, max_length=200)]
Instant = Annotated[datetime, Meta(tz=True)]
Rule = Annotated[str, Meta(max_length=64, description="the rule that gave the fee, for the record")]
Method = Literal["bank_card", "balance"]
"""How a payment is paid: by the payer's bank, or from the payer's balance with the platform."""


class Event(Struct, frozen=True, kw_only=True):
    """A fact, in the past tense."""

    type: ClassVar[str]
    """Stable name with version; travels in the `ce_type` header."""
    topic: ClassVar[Topic]

    @property
    def key(self) -> str:
        """Return the aggregate's number, the message key."""
        return str(getattr(self, self.topic.key))


class PaymentSettled(Event, frozen=True, kw_only=True):
    """The payer's money was taken, by the bank or from the balance, and the order accepted it. Decided once, never again."""

    type: ClassVar[str] = "payment.settled.v1"
    topic: ClassVar[Topic] = PAYMENT_ORDER

    payment_no: Number
    order_no: Number
    merchant_no: Number
    payer_no: Number
    amount_fen: Amount
    currency: Currency
    fee_fen: AmountOrZero
    fee_rule: Annotated[str, Meta(max_length=64, description="the rule that gave the fee, for the record")]
    points: Count
    bank_transaction_no: Number
    """Of a balance payment, which no bank knows, the payment's own number."""
    settled_at: Instant
    cost_fen: AmountOrZero = 0
    """What the channel keeps of the amount."""
    cost_rule: Annotated[str, Meta(max_length=64, description="the rule that gave the cost, for the record")] = ""
    method: Method = "bank_card"


class PaymentFailed(Event, frozen=True, kw_only=True):
    """The bank has refused the payment: no money moved."""

    type: ClassVar[str] = "payment.failed.v1"
    topic: ClassVar[Topic] = PAYMENT_ORDER

    payment_no: Number
    order_no: Number
    merchant_no: Number
    payer_no: Number
    amount_fen: Amount
    currency: Currency
    reason: Reason
    failed_at: Instant


class SuspenseRecorded(Event, frozen=True, kw_only=True):
    """The bank has taken money that no order can accept: it waits in suspense for an operator."""

    type: ClassVar[str] = "payment.suspense_recorded.v1"
    topic: ClassVar[Topic] = PAYMENT_ORDER

    payment_no: Number
    """As the bank named it; the order may not exist."""
    amount_fen: Amount
    currency: Currency
    bank_transaction_no: Number
    reason: Reason
    recorded_at: Instant


class BalancePaymentRequested(Event, frozen=True, kw_only=True):
    """The payer has confirmed a balance payment: fee, cost and points are decided, and funds is to move the money."""

    type: ClassVar[str] = "payment.balance_requested.v1"
    topic: ClassVar[Topic] = PAYMENT_ORDER

    payment_no: Number
    order_no: Number
    merchant_no: Number
    payer_no: Number
    amount_fen: Amount
    currency: Currency
    fee_fen: AmountOrZero
    fee_rule: Rule
    points: Count
    requested_at: Instant


class BalancePaid(Event, frozen=True, kw_only=True):
    """The payer's balance was debited and the merchant's credited less the fee, as the request had decided it."""

    type: ClassVar[str] = "funds.balance_paid.v1"
    topic: ClassVar[Topic] = FUNDS_TRANSFER

    payment_no: Number
    amount_fen: Amount
    currency: Currency
    fee_fen: AmountOrZero
    fee_rule: Rule
    points: Count
    paid_at: Instant


class BalanceRefused(Event, frozen=True, kw_only=True):
    """The payer's balance did not allow the payment: no money moved."""

    type: ClassVar[str] = "funds.balance_refused.v1"
    topic: ClassVar[Topic] = FUNDS_TRANSFER

    payment_no: Number
    reason: Reason
    refused_at: Instant


class FundsDeposited(Event, frozen=True, kw_only=True):
    """A payer has put money into the balance, through a bank."""

    type: ClassVar[str] = "funds.deposited.v1"
    topic: ClassVar[Topic] = FUNDS_TRANSFER

    deposit_no: Number
    payer_no: Number
    amount_fen: Amount
    currency: Currency
    deposited_at: Instant

    @property
    def key(self) -> str:
        """Return the deposit's number: it is of no payment."""
        return self.deposit_no


class BankTransactionExecuted(Event, frozen=True, kw_only=True):
    """The bank has executed a payment: SUCCESS moved the money, FAILED moved none and says why."""

    type: ClassVar[str] = "bank.transaction_executed.v1"
    topic: ClassVar[Topic] = BANK_TRANSACTION

    transaction_no: Number
    payment_no: Number
    amount_fen: Amount
    currency: Currency
    status: Literal["SUCCESS", "FAILED"]
    executed_at: Instant
    reason: Reason | None = None


EVENTS: dict[str, type[Event]] = {
    event.type: event
    for event in (
        PaymentSettled,
        PaymentFailed,
        SuspenseRecorded,
        BalancePaymentRequested,
        BalancePaid,
        BalanceRefused,
        FundsDeposited,
        BankTransactionExecuted,
    )
}


def json_schema(event: type[Event]) -> dict[str, object]:
    """Return the JSON Schema (2020-12) of an event's body."""
    schema = msgspec.json.schema(event)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": event.type, **schema}
