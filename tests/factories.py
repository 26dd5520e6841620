"""Rows and events with defaults: a test names only what it is about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from schemas.codec import Envelope
from schemas.events import (
    BalancePaid,
    BalancePaymentRequested,
    BalanceRefused,
    BankTransactionExecuted,
    Event,
    FundsDeposited,
    PaymentFailed,
    PaymentSettled,
    SuspenseRecorded,
)

AT = datetime(2026, 11, 23, 8, 0, 0, tzinfo=UTC)
ID = UUID("01a2079e-7a00-7000-8000-000000000001")


def settled(*, prefix: str = "T-", number: int = 1, **given: Any) -> PaymentSettled:
    values: dict[str, Any] = {
        "payment_no": f"{prefix}P{number:06d}",
        "order_no": f"{prefix}O{number:06d}",
        "merchant_no": f"{prefix}M{number % 3}",
        "payer_no": f"{prefix}U{number % 7}",
        "amount_fen": 10_000 + number,
        "currency": "CNY",
        "fee_fen": 60,
        "fee_rule": "rate 60 bp",
        "points": 100,
        "bank_transaction_no": f"{prefix}B{number:06d}",
        "settled_at": AT,
    }
    return PaymentSettled(**values | given)


def failed(**given: Any) -> PaymentFailed:
    values: dict[str, Any] = {
        "payment_no": "T-P1",
        "order_no": "T-O1",
        "merchant_no": "T-M1",
        "payer_no": "T-U1",
        "amount_fen": 10_000,
        "currency": "CNY",
        "reason": "insufficient balance",
        "failed_at": AT,
    }
    return PaymentFailed(**values | given)


def suspense(**given: Any) -> SuspenseRecorded:
    values: dict[str, Any] = {
        "payment_no": "T-P1",
        "amount_fen": 10_000,
        "currency": "CNY",
        "bank_transaction_no": "T-B1",
        "reason": "no such order",
        "recorded_at": AT,
    }
    return SuspenseRecorded(**values | given)


def balance_requested(**given: Any) -> BalancePaymentRequested:
    values: dict[str, Any] = {
        "payment_no": "T-P1",
        "order_no": "T-O1",
        "merchant_no": "T-M1",
        "payer_no": "T-U1",
        "amount_fen": 10_000,
        "currency": "CNY",
        "fee_fen": 60,
        "fee_rule": "rate 60 bp",
        "points": 100,
        "requested_at": AT,
    }
    return BalancePaymentRequested(**values | given)


def balance_paid(**given: Any) -> BalancePaid:
    values: dict[str, Any] = {
        "payment_no": "T-P1",
        "amount_fen": 10_000,
        "currency": "CNY",
        "fee_fen": 60,
        "fee_rule": "rate 60 bp",
        "points": 100,
        "paid_at": AT,
    }
    return BalancePaid(**values | given)


def balance_refused(**given: Any) -> BalanceRefused:
    values: dict[str, Any] = {"payment_no": "T-P1", "reason": "the balance is not enough", "refused_at": AT}
    return BalanceRefused(**values | given)


def deposited(**given: Any) -> FundsDeposited:
    values: dict[str, Any] = {
        "deposit_no": "T-D1",
        "payer_no": "T-U1",
        "amount_fen": 10_000,
        "currency": "CNY",
        "deposited_at": AT,
    }
    return FundsDeposited(**values | given)


def bank_executed(**given: Any) -> BankTransactionExecuted:
    values: dict[str, Any] = {
        "transaction_no": "T-B1",
        "payment_no": "T-P1",
        "amount_fen": 10_000,
        "currency": "CNY",
        "status": "SUCCESS",
        "executed_at": AT,
    }
    return BankTransactionExecuted(**values | given)


def envelope(event: Event, *, identity: UUID = ID, version: int = 1) -> Envelope:
    return Envelope(id=identity, version=version, correlation=getattr(event, "order_no", "T-O1"), event=event)
