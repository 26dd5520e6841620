"""Scene 4: the bank's notification settles the payment once, and records the event, in one local transaction.

The bank has the money even where the order cannot take it: such money goes to suspense for an operator, never away.
"""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Row, text

from outbox.record import Outgoing, record
from producers.payments import events
from producers.payments.fees import Charges, FeeRule, described, fee_of
from producers.payments.orders import count_again, free_limit
from producers.payments.tables import payment
from schemas.bank import BankNotification
from schemas.events import Method
from schemas.money import points_of
from schemas.signature import is_fresh

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is to be done with a notification."""

    act: Literal["settle", "fail", "suspend", "repeat", "refuse"]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class OrderState:
    """What a decision looks at in the order."""

    status: str
    amount_fen: int
    currency: str
    expired: bool
    """The money was taken when the order's time was over."""
    method: Method = "bank_card"


@dataclass(frozen=True, kw_only=True)
class Booking:
    """What a bank transaction was booked as before: it settled a payment, or is in suspense."""

    payment_no: str
    amount_fen: int
    currency: str


def decide(order: OrderState | None, notification: BankNotification, booking: Booking | None) -> Decision:
    """Return what a verified notification means for the order in its present state, and for its transaction's booking. Pure.

    A success is never dropped: it settles the order, is a repeat of what was booked, or goes to suspense; a second story of
    one transaction is refused, and the bank keeps it.
    """
    if notification.status == "FAILED":
        if order is None or (order.amount_fen, order.currency) != (notification.amount_fen, notification.currency):
            return Decision(act="refuse", reason="no such order, or another amount")
        if booking is not None and (order.status == "CREATED" or booking.payment_no != notification.payment_no):
            return Decision(act="refuse", reason=f"it was booked as {booking}")
        fails = order.status == "CREATED" and order.method == "bank_card"
        return Decision(act="fail") if fails else Decision(act="repeat")
    if booking is not None:
        same = booking == Booking(
            payment_no=notification.payment_no, amount_fen=notification.amount_fen, currency=notification.currency
        )
        return Decision(act="repeat") if same else Decision(act="refuse", reason=f"it was booked as {booking}")
    if order is None:
        return Decision(act="suspend", reason="no such order")
    if (order.amount_fen, order.currency) != (notification.amount_fen, notification.currency):
        return Decision(act="suspend", reason=f"the order is for {order.amount_fen} {order.currency}")
    if order.status not in ("CREATED", "EXPIRED") or order.expired:
        reason = "the order has expired" if order.expired else f"the order is {order.status}"
        return Decision(act="suspend", reason=reason)
    if order.method != "bank_card":
        return Decision(act="suspend", reason=f"the order is paid by {order.method}")
    return Decision(act="settle")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the bank is answered."""

    status: int
    text: str


REFUSED = Answer(status=400, text="refused")
"""Whatever check failed: the answer does not tell which."""
ACCEPTED = Answer(status=200, text="success")


EXECUTED_AGE_MAX = timedelta(days=7)
EXECUTED_AHEAD_MAX = timedelta(seconds=5)
"""How far the bank's clock may be ahead of ours."""


def taken_at(
    executed_at: datetime | None, *, created_at: datetime, now: datetime, age_max: timedelta = EXECUTED_AGE_MAX
) -> datetime:
    """Return when the bank has taken an order's money: when it says, where that can be; else now, when it tells of it. Pure.

    It cannot be before the order was created, in the future, or too long ago.

    >>> at = datetime(2026, 1, 1)
    >>> taken_at(at, created_at=at, now=at + timedelta(days=1)) == at
    True
    >>> taken_at(at, created_at=at, now=at + timedelta(days=8)) == at
    False
    """
    if executed_at is None or not max(created_at, now - age_max) <= executed_at <= now + EXECUTED_AHEAD_MAX:
        return now
    return executed_at


def receive_notification(
    connection: Connection,
    *,
    webhook_id: str,
    signed_at: datetime,
    body: bytes,
    now: datetime,
    executed_age_max: timedelta = EXECUTED_AGE_MAX,
) -> Answer:
    """The notification, whose signature the caller has verified, has its effect and its answer, if the caller commits.

    Transaction: the caller's. Repeatable: the same id with the same body gets the stored answer at any time; with another
    body, or unseen and older or newer than five minutes, it is refused and nothing is stored.
    """
    digest = sha256(body).digest()
    notification = _read(body) if is_fresh(signed_at, now) else None
    if notification is None:
        stored = connection.execute(_STORED, {"webhook_id": webhook_id}).first()
        return _stored_answer(stored, digest) if stored is not None else REFUSED
    # Written first: whoever brings the same id or tells of the same transaction meanwhile waits here for our answer.
    note = {"webhook_id": webhook_id, "digest": digest, "status": ACCEPTED.status, "answer": ACCEPTED.text}
    noted = connection.execute(_NOTE, {**note, "transaction_no": notification.transaction_no})
    if not noted.rowcount:
        return _stored_answer(connection.execute(_STORED, {"webhook_id": webhook_id}).one(), digest)
    order = locked_order(connection, notification.payment_no)
    booked = connection.execute(
        _BOOKED, {"transaction_no": notification.transaction_no, "payment_no": notification.payment_no}
    ).first()
    decision = decide(
        _standing(order, notification, now=now, age_max=executed_age_max) if order is not None else None,
        notification,
        Booking(**booked._mapping) if booked is not None else None,
    )
    if decision.act == "refuse":
        connection.execute(_FORGET, {"webhook_id": webhook_id})
        about = (notification.transaction_no, notification.payment_no, decision.reason)
        log.warning("the bank's notification was refused: transaction=%s payment=%s: %s", *about)
        return REFUSED
    match decision.act, order:
        case "settle", Row():
            settle_payment(connection, order, notification, now=now)
        case "fail", Row():
            fail_payment(connection, order, notification, now=now)
        case "suspend", _:
            suspend_money(connection, order, notification, reason=decision.reason, now=now)
    return ACCEPTED


_STORED = text("SELECT * FROM bank_notification WHERE webhook_id = :webhook_id")

_NOTE = text("""
    INSERT INTO bank_notification (webhook_id, body_sha256, answer_status, answer)
    SELECT :webhook_id, :digest, :status, :answer
    FROM pg_advisory_xact_lock(hashtextextended(:transaction_no, 0)) AS held
    ON CONFLICT (webhook_id) DO NOTHING""")

# A failed payment names its transaction too: only as another payment's does that contradict.
_BOOKED = text("""
    SELECT payment_no, amount_fen, currency FROM payment
    WHERE bank_transaction_no = :transaction_no AND (status = 'SETTLED' OR payment_no <> :payment_no)
    UNION ALL
    SELECT payment_no, amount_fen, currency FROM suspense WHERE bank_transaction_no = :transaction_no""")

_FORGET = text("DELETE FROM bank_notification WHERE webhook_id = :webhook_id")

_ORDER = text("""
    SELECT payment.*, fee_rate_bp, fee_fixed_fen, fee_min_fen, fee_cap_fen,
           cost_rate_bp, cost_fixed_fen, cost_min_fen, cost_cap_fen
    FROM payment JOIN merchant USING (merchant_no) JOIN channel ON channel = payment.method
    WHERE payment_no = :payment_no FOR NO KEY UPDATE OF payment""")

_SUSPEND = text("""
    INSERT INTO suspense (bank_transaction_no, payment_no, amount_fen, currency, reason, recorded_at)
    VALUES (:bank_transaction_no, :payment_no, :amount_fen, :currency, :reason, :recorded_at)
    ON CONFLICT (bank_transaction_no) DO NOTHING""")

_FINISH = text("""
    UPDATE payment SET status = :status, version = version + 1, fee_fen = :fee_fen, cost_fen = :cost_fen, points = :points,
                       reason = :reason, bank_transaction_no = :transaction_no, finished_at = :now
    WHERE payment_no = :payment_no""")


_FORGET_OLD = text("""
    DELETE FROM bank_notification
    WHERE webhook_id IN (SELECT webhook_id FROM bank_notification WHERE received_at < :before LIMIT :limit)""")


def forget_notifications(connection: Connection, *, before: datetime, limit: int) -> int:
    """Answers given before then are no longer remembered, at most so many if the caller commits; returns how many. Repeatable.

    A notification that comes again is judged again, by the payment's present state: nothing is settled twice.
    """
    return connection.execute(_FORGET_OLD, {"before": before, "limit": limit}).rowcount


def _read(body: bytes) -> BankNotification | None:
    try:
        return msgspec.json.decode(body, type=BankNotification)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _stored_answer(stored: Row[Any], digest: bytes) -> Answer:
    same = hmac.compare_digest(bytes(stored.body_sha256), digest)
    return Answer(status=stored.answer_status, text=stored.answer) if same else REFUSED


def _standing(order: Row[Any], notification: BankNotification, *, now: datetime, age_max: timedelta) -> OrderState:
    at = taken_at(notification.executed_at, created_at=order.created_at, now=now, age_max=age_max)
    return OrderState(
        status=order.status,
        amount_fen=order.amount_fen,
        currency=order.currency,
        expired=order.status in ("CREATED", "EXPIRED") and order.expires_at <= at,
        method=order.method,
    )


def charges_of(order: Row[Any]) -> Charges:
    """Return fee, cost and points of an order, read with its merchant's and its channel's rules. Pure."""
    fee, cost = _rule(order, "fee"), _rule(order, "cost")
    return Charges(
        fee_fen=fee_of(fee, order.amount_fen),
        fee_rule=described(fee),
        cost_fen=fee_of(cost, order.amount_fen),
        cost_rule=described(cost),
        points=points_of(order.amount_fen),
    )


def locked_order(connection: Connection, payment_no: str) -> Row[Any] | None:
    """Return an order with the rules that price it, locked until the caller's transaction ends."""
    return connection.execute(_ORDER, {"payment_no": payment_no}).first()


def settle_payment(connection: Connection, order: Row[Any], notification: BankNotification, *, now: datetime) -> None:
    """The order, locked by the caller, is SETTLED; fee, cost and points are decided, and the event is recorded, if the caller commits.

    Of an order that had EXPIRED the limit is counted again. Transaction: the caller's. Not repeatable by itself: `decide` sees
    to it.
    """
    if order.status == "EXPIRED":
        count_again(connection, order.payer_no, order.limit_day, order.amount_fen)
    charges = charges_of(order)
    _finish(connection, order, notification, now, status="SETTLED", charges=charges)
    event = events.settled(order, charges, at=now, bank_transaction_no=notification.transaction_no)
    record(connection, [Outgoing(event=event, version=order.version + 1, correlation=order.order_no)])


def _rule(order: Row[Any], what: Literal["fee", "cost"]) -> FeeRule:
    return FeeRule(
        **{part: order._mapping[f"{what}_{part}"] for part in ("rate_bp", "fixed_fen", "min_fen", "cap_fen")}
    )


def fail_payment(connection: Connection, order: Row[Any], notification: BankNotification, *, now: datetime) -> None:
    """The order, locked by the caller, is FAILED, its limit is free again, and the event is recorded, if the caller commits."""
    reason = notification.reason or "refused by the bank"
    _finish(connection, order, notification, now, status="FAILED", reason=reason)
    free_limit(connection, order.payer_no, order.limit_day, order.amount_fen)
    event = events.failed(order, reason=reason, at=now)
    record(connection, [Outgoing(event=event, version=order.version + 1, correlation=order.order_no)])


def suspend_money(
    connection: Connection, order: Row[Any] | None, notification: BankNotification, *, reason: str, now: datetime
) -> None:
    """The bank's transaction is in suspense, once, and an event for accounting is recorded, if the caller commits. May be repeated."""
    money = {
        "bank_transaction_no": notification.transaction_no,
        "payment_no": notification.payment_no,
        "amount_fen": notification.amount_fen,
        "currency": notification.currency,
        "reason": reason,
        "recorded_at": now,
    }
    if not connection.execute(_SUSPEND, money).rowcount:
        return
    version = 1
    if order is not None:
        version = order.version + 1
        connection.execute(payment.update().where(payment.c.payment_no == order.payment_no).values(version=version))
    correlation = order.order_no if order is not None else notification.payment_no
    record(connection, [Outgoing(event=events.suspended(money), version=version, correlation=correlation)])


def _finish(
    connection: Connection,
    order: Row[Any],
    notification: BankNotification,
    now: datetime,
    *,
    status: str,
    charges: Charges | None = None,
    reason: str | None = None,
) -> None:
    connection.execute(
        _FINISH,
        {
            "payment_no": order.payment_no,
            "status": status,
            "fee_fen": charges and charges.fee_fen,
            "cost_fen": charges and charges.cost_fen,
            "points": charges and charges.points,
            "reason": reason,
            "transaction_no": notification.transaction_no,
            "now": now,
        },
    )
