"""Scene 3: the bank debits its own account and keeps the notification to be sent, in one local transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

import msgspec
from sqlalchemy import Connection, select, text
from sqlalchemy.dialects.postgresql import insert

from outbox.retry import backoff_s
from producers.bank.tables import account, notification, transaction
from schemas.bank import BankNotification, PaymentLink

LEASE_S = 20.0
"""How long a claimed notification is its sender's: longer than the post's own time-out."""
RETRY_FIRST_S = 0.5
RETRY_CAP_S = 60.0


def execute_transaction(connection: Connection, link: PaymentLink, *, now: datetime) -> BankNotification:
    """The payment has its one transaction, and the account is debited if it held enough, if the caller commits.

    Transaction: the caller's. Repeatable: a payment that was executed before gets the first result.
    """
    # The account first: its lock puts concurrent executions of one payment in a row.
    held = connection.execute(
        select(account).where(account.c.account_no == link.account_no).with_for_update()
    ).first()  # fmt: skip
    before = connection.execute(select(transaction).where(transaction.c.payment_no == link.payment_no)).first()
    if before is not None:
        return BankNotification(
            transaction_no=before.transaction_no,
            payment_no=before.payment_no,
            amount_fen=before.amount_fen,
            currency=before.currency,
            status=before.status,
            reason=before.reason,
        )
    reason = None
    if held is None or held.currency != link.currency:
        reason = "no such account"
    elif link.expires_at <= now.timestamp():
        reason = "the payment link has expired"
    elif held.balance_fen < link.amount_fen:
        reason = "insufficient balance"
    else:
        connection.execute(
            account.update()
            .where(account.c.account_no == link.account_no)
            .values(balance_fen=account.c.balance_fen - link.amount_fen)
        )
    result = BankNotification(
        transaction_no=f"B{uuid4().hex}",
        payment_no=link.payment_no,
        amount_fen=link.amount_fen,
        currency=link.currency,
        status="FAILED" if reason else "SUCCESS",
        reason=reason,
    )
    connection.execute(
        insert(transaction).values(**msgspec.structs.asdict(result), account_no=link.account_no, created_at=now)
    )
    connection.execute(
        insert(notification).values(
            transaction_no=result.transaction_no, body=msgspec.json.encode(result).decode(), attempts=0, due_at=now
        )
    )
    return result


@dataclass(frozen=True, kw_only=True)
class Due:
    """A notification to be posted now."""

    transaction_no: str
    body: str
    attempts: int


_CLAIM = text("""
    UPDATE notification SET due_at = clock_timestamp() + make_interval(secs => :lease_s), attempts = attempts + 1
    WHERE transaction_no IN (SELECT transaction_no FROM notification
                             WHERE answered_at IS NULL AND due_at <= clock_timestamp()
                             ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED)
    RETURNING transaction_no, body, attempts""")


def claim_notifications(connection: Connection, *, limit: int) -> list[Due]:
    """Return due notifications, now the caller's for 20 seconds."""
    rows = connection.execute(_CLAIM, {"limit": limit, "lease_s": LEASE_S})
    return [Due(transaction_no=row.transaction_no, body=row.body, attempts=row.attempts) for row in rows]


def mark_answered(connection: Connection, transaction_no: str, *, now: datetime) -> None:
    """The platform has the notification: it is not sent again."""
    connection.execute(
        notification.update().where(notification.c.transaction_no == transaction_no).values(answered_at=now)
    )


def postpone(connection: Connection, due: Due, *, now: datetime) -> None:
    """The notification is due again after 0.5, 1, 2, 4 … 60 seconds, without end: the platform must know."""
    delay_s = backoff_s(due.attempts, first_s=RETRY_FIRST_S, cap_s=RETRY_CAP_S)
    connection.execute(
        notification.update()
        .where(notification.c.transaction_no == due.transaction_no)
        .values(due_at=now + timedelta(seconds=delay_s))
    )


def open_account(connection: Connection, account_no: str, *, balance_fen: int, currency: str) -> None:
    """The account exists with this balance; one that exists keeps its own. May be repeated."""
    row = {"account_no": account_no, "balance_fen": balance_fen, "currency": currency}
    connection.execute(insert(account).values(row).on_conflict_do_nothing())
