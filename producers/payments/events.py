"""The events of a payment, built from its row: here and nowhere else. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from producers.payments.fees import Charges
from schemas.events import BalancePaymentRequested, PaymentFailed, PaymentSettled, SuspenseRecorded

_OF_THE_ORDER = ("payment_no", "order_no", "merchant_no", "payer_no", "amount_fen", "currency")
"""Columns of `payment` that each of its events repeats."""


def settled(order: Any, charges: Charges, *, at: datetime, bank_transaction_no: str | None) -> PaymentSettled:
    """Return that an order is settled for these charges; a balance payment, which no bank knows, is named by its own number."""
    return PaymentSettled(
        **_of(order),
        fee_fen=charges.fee_fen,
        fee_rule=charges.fee_rule,
        points=charges.points,
        bank_transaction_no=bank_transaction_no or order.payment_no,
        settled_at=at,
        cost_fen=charges.cost_fen,
        cost_rule=charges.cost_rule,
        method=order.method,
    )


def failed(order: Any, *, reason: str, at: datetime) -> PaymentFailed:
    """Return that an order has failed."""
    return PaymentFailed(**_of(order), reason=reason, failed_at=at)


def balance_requested(order: Any, charges: Charges, *, at: datetime) -> BalancePaymentRequested:
    """Return that funds is to pay an order out of the payer's balance."""
    return BalancePaymentRequested(
        **_of(order), fee_fen=charges.fee_fen, fee_rule=charges.fee_rule, points=charges.points, requested_at=at
    )


def suspended(row: Mapping[str, Any]) -> SuspenseRecorded:
    """Return that money is in suspense, given as its row."""
    return SuspenseRecorded(**{name: row[name] for name in SuspenseRecorded.__struct_fields__})


def _of(order: Any) -> dict[str, Any]:
    return {name: getattr(order, name) for name in _OF_THE_ORDER}
