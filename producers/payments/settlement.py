"""Scene 4: what the bank says of a payment is settled, once, and told to all who follow, in one local transaction.

The bank has the money even where the order cannot take it: such money goes to suspense for an operator, never away.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Row, func, select
from sqlalchemy.dialects.postgresql import insert

from outbox.record import Outgoing, record
from producers.payments.orders import free_limit
from producers.payments.tables import bank_notification, merchant, payment, suspense
from schemas.bank import BankNotification
from schemas.events import PaymentFailed, PaymentSettled, SuspenseRecorded
from schemas.money import fee_at_rate, points_of
from schemas.signature import is_fresh


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is to be done with a notification."""

    act: Literal["settle", "fail", "suspend", "repeat", "refuse"]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a decision looks at in the order."""

    status: str
    amount_fen: int
    currency: str
    bank_transaction_no: str | None
    expired: bool


def decide(order: Standing | None, told: BankNotification) -> Decision:
    """Return what a verified notification means for an order as it stands. Pure.

    A success is never dropped: it settles the order, is a repeat of what settled it, or goes to suspense.
    """
    if told.status == "FAILED":
        if order is None or (order.amount_fen, order.currency) != (told.amount_fen, told.currency):
            return Decision(act="refuse", reason="no such order, or another amount")
        return Decision(act="fail") if order.status == "CREATED" else Decision(act="repeat")
    if order is None:
        return Decision(act="suspend", reason="no such order")
    if order.bank_transaction_no == told.transaction_no and order.status == "SETTLED":
        return Decision(act="repeat")
    if (order.amount_fen, order.currency) != (told.amount_fen, told.currency):
        return Decision(act="suspend", reason=f"the order is for {order.amount_fen} {order.currency}")
    if order.status != "CREATED" or order.expired:
        reason = "the order has expired" if order.expired else f"the order is {order.status}"
        return Decision(act="suspend", reason=reason)
    return Decision(act="settle")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the bank is answered."""

    status: int
    text: str


REFUSED = Answer(status=400, text="refused")
"""Whatever check failed: the answer does not tell which."""
ACCEPTED = Answer(status=200, text="success")


def receive_notification(
    connection: Connection, *, webhook_id: str, signed_at: datetime, body: bytes, now: datetime
) -> Answer:
    """The notification, whose signature the caller has verified, has its effect and its answer, if the caller commits.

    Transaction: the caller's. Repeatable: the same id with the same body gets the stored answer at any time; with another
    body, or unseen and older or newer than five minutes, it is refused and nothing is stored.
    """
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(webhook_id, 0))))
    digest = sha256(body).digest()
    stored = connection.execute(select(bank_notification).where(bank_notification.c.webhook_id == webhook_id)).first()
    if stored is not None:
        return Answer(status=stored.answer_status, text=stored.answer) if stored.body_sha256 == digest else REFUSED
    if not is_fresh(signed_at, now):
        return REFUSED
    try:
        told = msgspec.json.decode(body, type=BankNotification)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return REFUSED
    answer = _take(connection, told, now)
    if answer is ACCEPTED:
        connection.execute(
            insert(bank_notification).values(
                webhook_id=webhook_id, body_sha256=digest, answer_status=answer.status, answer=answer.text
            )
        )
    return answer


def _take(connection: Connection, told: BankNotification, now: datetime) -> Answer:
    order = connection.execute(
        select(payment).where(payment.c.payment_no == told.payment_no).with_for_update()
    ).first()  # fmt: skip
    decision = decide(_standing(order, now) if order is not None else None, told)
    match decision.act:
        case "refuse":
            return REFUSED
        case "settle":
            assert order is not None
            settle_payment(connection, order, told, now=now)
        case "fail":
            assert order is not None
            fail_payment(connection, order, told, now=now)
        case "suspend":
            suspend_money(connection, order, told, reason=decision.reason, now=now)
    return ACCEPTED


def _standing(order: Row[Any], now: datetime) -> Standing:
    return Standing(
        status=order.status,
        amount_fen=order.amount_fen,
        currency=order.currency,
        bank_transaction_no=order.bank_transaction_no,
        expired=order.status == "EXPIRED" or (order.status == "CREATED" and order.expires_at <= now),
    )


def settle_payment(connection: Connection, order: Row[Any], told: BankNotification, *, now: datetime) -> None:
    """The order, locked by the caller, is SETTLED; fee and points are decided, and everybody is told, if the caller commits.

    Transaction: the caller's. Not repeatable by itself: `decide` sees to it.
    """
    rate_bp = connection.execute(
        select(merchant.c.fee_rate_bp).where(merchant.c.merchant_no == order.merchant_no)
    ).scalar_one()  # fmt: skip
    fee_fen, points = fee_at_rate(order.amount_fen, rate_bp), points_of(order.amount_fen)
    _finish(connection, order, told, now, status="SETTLED", fee_fen=fee_fen, points=points)
    event = PaymentSettled(
        payment_no=order.payment_no,
        order_no=order.order_no,
        merchant_no=order.merchant_no,
        payer_no=order.payer_no,
        amount_fen=order.amount_fen,
        currency=order.currency,
        fee_fen=fee_fen,
        fee_rule=f"rate {rate_bp} bp",
        points=points,
        bank_transaction_no=told.transaction_no,
        settled_at=now,
    )
    record(connection, [Outgoing(event=event, version=order.version + 1, correlation=order.order_no)])


def fail_payment(connection: Connection, order: Row[Any], told: BankNotification, *, now: datetime) -> None:
    """The order, locked by the caller, is FAILED, its limit is free again, and everybody is told, if the caller commits."""
    reason = told.reason or "refused by the bank"
    _finish(connection, order, told, now, status="FAILED", reason=reason)
    free_limit(connection, order.payer_no, order.limit_day, order.amount_fen)
    event = PaymentFailed(
        payment_no=order.payment_no,
        order_no=order.order_no,
        merchant_no=order.merchant_no,
        payer_no=order.payer_no,
        amount_fen=order.amount_fen,
        currency=order.currency,
        reason=reason,
        failed_at=now,
    )
    record(connection, [Outgoing(event=event, version=order.version + 1, correlation=order.order_no)])


def suspend_money(
    connection: Connection, order: Row[Any] | None, told: BankNotification, *, reason: str, now: datetime
) -> None:
    """The bank's transaction is in suspense, once, and accounting is told, if the caller commits. May be repeated."""
    written = connection.execute(
        insert(suspense)
        .values(
            bank_transaction_no=told.transaction_no,
            payment_no=told.payment_no,
            amount_fen=told.amount_fen,
            currency=told.currency,
            reason=reason,
            recorded_at=now,
        )
        .on_conflict_do_nothing()
    )
    if not written.rowcount:
        return
    version = 1
    if order is not None:
        version = order.version + 1
        connection.execute(payment.update().where(payment.c.payment_no == order.payment_no).values(version=version))
    event = SuspenseRecorded(
        payment_no=told.payment_no,
        amount_fen=told.amount_fen,
        currency=told.currency,
        bank_transaction_no=told.transaction_no,
        reason=reason,
        recorded_at=now,
    )
    correlation = order.order_no if order is not None else told.payment_no
    record(connection, [Outgoing(event=event, version=version, correlation=correlation)])


def _finish(connection: Connection, order: Row[Any], told: BankNotification, now: datetime, **values: Any) -> None:
    connection.execute(
        payment.update()
        .where(payment.c.payment_no == order.payment_no)
        .values(version=order.version + 1, bank_transaction_no=told.transaction_no, finished_at=now, **values)
    )
