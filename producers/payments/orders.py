"""Scene 2: a payment is opened within the payer's limits, in one local transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from hashlib import sha256
from typing import Any, Literal
from uuid import uuid4
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Row, literal_column, select, text
from sqlalchemy.dialects.postgresql import insert

from outbox.errors import Refused
from producers.payments.fees import FeeRule
from producers.payments.tables import account, channel, limit_use, merchant, payment
from schemas.events import Amount, Method, Number
from schemas.signature import SECRET_FORM, is_secret

EXPIRE_BATCH = 200


class PaymentRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a merchant asks for."""

    payer_no: Number
    amount_fen: Amount
    currency: Literal["CNY"] = "CNY"
    order_no: Number
    method: Method = "bank_card"


class OrderConflict(Refused):
    """The order number was used before, with another body."""


class LimitExceeded(Refused):
    """A limit of the payer's account does not allow the amount."""


class NoAccount(Refused):
    """There is no open account of this payer."""


@dataclass(frozen=True, kw_only=True)
class OpenedPayment:
    """A payment that waits for the payer, at the bank or at the platform."""

    payment_no: str
    account_no: str
    amount_fen: int
    currency: str
    expires_at: datetime
    method: Method


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an account may pay: in one payment, in a day, in a calendar month."""

    single_fen: int
    daily_fen: int
    monthly_fen: int


def broken_limit(limits: Limits, *, amount_fen: int, day_fen: int, month_fen: int) -> str | None:
    """Return the limit that an amount would break, given what the day and the month hold already; None if none.

    >>> limits = Limits(single_fen=500, daily_fen=800, monthly_fen=1000)
    >>> broken_limit(limits, amount_fen=500, day_fen=300, month_fen=500)
    >>> broken_limit(limits, amount_fen=501, day_fen=0, month_fen=0)
    'single'
    >>> broken_limit(limits, amount_fen=400, day_fen=401, month_fen=401), broken_limit(limits, amount_fen=101, day_fen=0, month_fen=900)
    ('daily', 'monthly')
    """
    if amount_fen > limits.single_fen:
        return "single"
    if day_fen + amount_fen > limits.daily_fen:
        return "daily"
    if month_fen + amount_fen > limits.monthly_fen:
        return "monthly"
    return None


def open_payment(
    connection: Connection, merchant_no: str, request: PaymentRequest, *, now: datetime, zone: ZoneInfo, ttl: timedelta
) -> OpenedPayment:
    """The payment exists and uses its part of the payer's limits, if the caller commits.

    Transaction: the caller's. Repeatable: the same order number with the same body gets the first answer. Raises
    OrderConflict, NoAccount, LimitExceeded; the caller must then roll back.
    """
    digest = _digest(request)
    day = now.astimezone(zone).date()
    opened = connection.execute(
        _OPEN,
        {
            "payment_no": f"P{uuid4().hex}",
            "merchant_no": merchant_no,
            **msgspec.structs.asdict(request),
            "digest": digest,
            "day": day,
            "now": now,
            "expires_at": now + ttl,
        },
    ).first()
    if opened is None:
        return _opened_before(connection, merchant_no, request, digest)
    _use_limit(connection, opened, request.amount_fen, day)
    return OpenedPayment(
        payment_no=opened.payment_no,
        account_no=opened.bank_account_no,
        amount_fen=request.amount_fen,
        currency=request.currency,
        expires_at=opened.expires_at,
        method=request.method,
    )


def _digest(request: PaymentRequest) -> bytes:
    """Return what tells one body from another. Without `method` it is what it was before there was one."""
    body = msgspec.structs.asdict(request)
    if request.method == "bank_card":
        del body["method"]
    return sha256(msgspec.json.encode(body)).digest()


def _opened_before(connection: Connection, merchant_no: str, request: PaymentRequest, digest: bytes) -> OpenedPayment:
    first = connection.execute(
        select(payment, account.c.bank_account_no)
        .join(account, account.c.payer_no == payment.c.payer_no)
        .where(payment.c.merchant_no == merchant_no, payment.c.order_no == request.order_no)
    ).first()
    if first is None:
        raise NoAccount(f"payer {request.payer_no!r} has no open account")
    if first.request_sha256 != digest:
        raise OrderConflict(f"order {request.order_no!r} was made before with another body: use another order number")
    return OpenedPayment(
        payment_no=first.payment_no,
        account_no=first.bank_account_no,
        amount_fen=first.amount_fen,
        currency=first.currency,
        expires_at=first.expires_at,
        method=first.method,
    )


def _use_limit(connection: Connection, held: Row[Any], amount_fen: int, day: date) -> None:
    """The amount counts against the payer's day, whose account row the caller has locked; raises LimitExceeded."""
    parameters = {"payer_no": held.payer_no, "month": day.replace(day=1), "day": day, "amount_fen": amount_fen}
    used = connection.execute(_USE, parameters).one()
    limits = Limits(
        single_fen=held.single_limit_fen, daily_fen=held.daily_limit_fen, monthly_fen=held.monthly_limit_fen
    )
    day_fen = used.day_fen - amount_fen
    if name := broken_limit(limits, amount_fen=amount_fen, day_fen=day_fen, month_fen=used.earlier_fen + day_fen):
        raise LimitExceeded(f"the {name} limit of payer {held.payer_no!r} does not allow {amount_fen} fen")


# The account is locked in the same statement; its row is then the newest. NO KEY: the foreign keys of payment and limit_use
# hold a share of the row already, in transactions beside us too.
_OPEN = text("""
    WITH inserted AS (
      INSERT INTO payment (payment_no, merchant_no, order_no, payer_no, amount_fen, currency, request_sha256, status,
                           limit_day, created_at, expires_at, method)
      SELECT :payment_no, :merchant_no, :order_no, payer_no, :amount_fen, :currency, :digest, 'CREATED',
             :day, :now, :expires_at, :method
      FROM account WHERE payer_no = :payer_no AND open
      ON CONFLICT (merchant_no, order_no) DO NOTHING
      RETURNING payment_no, payer_no, expires_at)
    SELECT inserted.payment_no, inserted.expires_at, account.*
    FROM inserted JOIN account USING (payer_no) FOR NO KEY UPDATE OF account""")

# A statement of its own: it must see what was committed before the account's lock was ours.
_USE = text("""
    INSERT INTO limit_use (payer_no, day, used_fen) VALUES (:payer_no, :day, :amount_fen)
    ON CONFLICT (payer_no, day) DO UPDATE SET used_fen = limit_use.used_fen + excluded.used_fen
    RETURNING used_fen AS day_fen,
              (SELECT coalesce(sum(earlier.used_fen), 0)::bigint FROM limit_use AS earlier
               WHERE earlier.payer_no = :payer_no AND earlier.day >= :month AND earlier.day < :day) AS earlier_fen""")


def free_limit(connection: Connection, payer_no: str, day: date, amount_fen: int) -> None:
    """The amount counts no more against the payer's day. Transaction: the caller's. Not repeatable."""
    connection.execute(
        limit_use.update()
        .where(limit_use.c.payer_no == payer_no, limit_use.c.day == day)
        .values(used_fen=limit_use.c.used_fen - amount_fen)
    )


def count_again(connection: Connection, payer_no: str, day: date, amount_fen: int) -> None:
    """The amount counts against the payer's day, whatever the limits allow: the money has moved. Transaction: the caller's.

    Not repeatable.
    """
    connection.execute(_COUNT_AGAIN, {"payer_no": payer_no, "day": day, "amount_fen": amount_fen})


_COUNT_AGAIN = text("""
    INSERT INTO limit_use (payer_no, day, used_fen) VALUES (:payer_no, :day, :amount_fen)
    ON CONFLICT (payer_no, day) DO UPDATE SET used_fen = limit_use.used_fen + excluded.used_fen""")

# In the statement's text: as a parameter it would keep a prepared plan from the index of these payments alone.
_CREATED: ColumnElement[str] = literal_column("'CREATED'")


def expire_payments(connection: Connection, *, now: datetime) -> int:
    """Up to 200 payments whose time is over are EXPIRED and free their limits; returns how many. The caller's transaction."""
    due = connection.execute(
        select(payment.c.payment_no, payment.c.payer_no, payment.c.limit_day, payment.c.amount_fen)
        .where(payment.c.status == _CREATED, payment.c.expires_at <= now)
        .order_by(payment.c.payer_no, payment.c.limit_day, payment.c.payment_no)
        .limit(EXPIRE_BATCH)
        .with_for_update(skip_locked=True, key_share=True)
    ).all()
    for row in due:
        connection.execute(
            payment.update()
            .where(payment.c.payment_no == row.payment_no)
            .values(status="EXPIRED", finished_at=now, reason="not paid in time")
        )
        free_limit(connection, row.payer_no, row.limit_day, row.amount_fen)
    return len(due)


def find_payment(connection: Connection, merchant_no: str, payment_no: str) -> dict[str, Any] | None:
    """Return a merchant's own payment as the merchant may see it."""
    row = connection.execute(
        select(payment).where(payment.c.merchant_no == merchant_no, payment.c.payment_no == payment_no)
    ).first()
    if row is None:
        return None
    names = (
        "payment_no",
        "order_no",
        "payer_no",
        "amount_fen",
        "currency",
        "method",
        "status",
        "fee_fen",
        "points",
        "reason",
    )
    times = {name: getattr(row, name) for name in ("created_at", "expires_at", "finished_at")}
    return {name: getattr(row, name) for name in names} | {
        name: at.isoformat() if at else None for name, at in times.items()
    }


def register_merchant(
    connection: Connection,
    merchant_no: str,
    *,
    api_key: str,
    secret: str,
    fee_rate_bp: int,
    fee_fixed_fen: int = 0,
    fee_min_fen: int = 0,
    fee_cap_fen: int | None = None,
) -> None:
    """The merchant may ask for payments with this key and secret, for this fee. May be repeated: the last one holds.

    Raises Refused for a number that events cannot carry, and for a key or a secret that no request can be signed with.
    """
    if not api_key.isprintable() or not api_key.isascii() or not 1 <= len(api_key.strip()) == len(api_key) <= 200:
        raise Refused("a merchant's key is 1 to 200 printable ASCII characters, without spaces around them")
    _require_secret("merchant", merchant_no, secret)
    row = {
        "merchant_no": _number(merchant_no),
        "api_key": api_key,
        "secret": secret,
        "fee_rate_bp": fee_rate_bp,
        "fee_fixed_fen": fee_fixed_fen,
        "fee_min_fen": fee_min_fen,
        "fee_cap_fen": fee_cap_fen,
    }
    statement = insert(merchant).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=["merchant_no"], set_=row))


def set_channel_cost(connection: Connection, channel_name: str, cost: FeeRule) -> None:
    """Payments that are settled from now on cost this through the channel. May be repeated: the last one holds."""
    row = {
        "channel": channel_name,
        "cost_rate_bp": cost.rate_bp,
        "cost_fixed_fen": cost.fixed_fen,
        "cost_min_fen": cost.min_fen,
        "cost_cap_fen": cost.cap_fen,
    }
    statement = insert(channel).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=["channel"], set_=row))


def open_account(
    connection: Connection, payer_no: str, *, bank_account_no: str, limits: Limits, secret: str | None = None
) -> None:
    """The payer has an account with these limits. May be repeated: the last one holds.

    Balance payments are confirmed by who signs with the payer's secret; without one, nobody confirms any. Raises Refused for a
    number that events cannot carry, and for a secret that nothing can be signed with.
    """
    if secret is not None:
        _require_secret("payer", payer_no, secret)
    row = {
        "payer_no": _number(payer_no),
        "secret": secret,
        "bank_account_no": bank_account_no,
        "single_limit_fen": limits.single_fen,
        "daily_limit_fen": limits.daily_fen,
        "monthly_limit_fen": limits.monthly_fen,
        "open": True,
    }
    statement = insert(account).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=["payer_no"], set_=row))


def _require_secret(who: str, number: str, secret: str) -> None:
    if not is_secret(secret):
        raise Refused(f"the secret of {who} {number!r} must be {SECRET_FORM}")


def _number(given: str) -> str:
    try:
        return msgspec.convert(given, Number)
    except msgspec.ValidationError as error:
        raise Refused(f"number {given!r}: {error}") from error
