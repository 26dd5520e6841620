"""What a notification says of an event. Pure."""

from __future__ import annotations

import msgspec

from schemas.bank import BankNotification
from schemas.events import BankTransactionExecuted, Event, PaymentFailed, PaymentSettled


def body_of(event: Event) -> str | None:
    """Return what the merchant is told of an event; None where nothing."""
    match event:
        case PaymentSettled():
            outcome = {"status": "SETTLED", "bank_transaction_no": event.bank_transaction_no, "at": event.settled_at}
        case PaymentFailed():
            outcome = {"status": "FAILED", "reason": event.reason, "at": event.failed_at}
        case _:
            return None
    common = {"payment_no": event.payment_no, "order_no": event.order_no, "amount_fen": event.amount_fen}
    return msgspec.json.encode({"type": event.type, **common, "currency": event.currency, **outcome}).decode()


def bank_body_of(event: BankTransactionExecuted) -> str:
    """Return what the platform is told of the bank's transaction."""
    notification = BankNotification(
        transaction_no=event.transaction_no,
        payment_no=event.payment_no,
        amount_fen=event.amount_fen,
        currency=event.currency,
        status=event.status,
        reason=event.reason,
        executed_at=event.executed_at,
    )
    return msgspec.json.encode(notification).decode()
