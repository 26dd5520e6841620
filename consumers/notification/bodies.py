"""What receivers are sent: the bodies of notifications, built from events. Pure."""

from __future__ import annotations

import msgspec

from schemas.bank import BankNotification
from schemas.events import BankTransactionExecuted, Event, PaymentFailed, PaymentSettled


def body_of(event: Event) -> str | None:
    """Return the body that a merchant is sent about an event; None where nothing is sent."""
    match event:
        case PaymentSettled():
            end = {"status": "SETTLED", "bank_transaction_no": event.bank_transaction_no, "at": event.settled_at}
        case PaymentFailed():
            end = {"status": "FAILED", "reason": event.reason, "at": event.failed_at}
        case _:
            return None
    order = {"payment_no": event.payment_no, "order_no": event.order_no, "amount_fen": event.amount_fen}
    return msgspec.json.encode({"type": event.type, **order, "currency": event.currency, **end}).decode()


def bank_body_of(event: BankTransactionExecuted) -> str:
    """Return the body that the platform is sent about a transaction of the bank."""
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
