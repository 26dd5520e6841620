"""Scene 3: the bank debits its own account and keeps the notification to be sent, in one local transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

import msgspec
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import insert

from outbox.retry import backoff_s
from producers.bank.tables import account
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
    held = connection.execute(_LOCK_ACCOUNT, {"account_no": link.account_no}).first()
    before = connection.execute(_BEFORE, {"payment_no": link.payment_no}).first()
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
    result = BankNotification(
        transaction_no=f"B{uuid4().hex}",
        payment_no=link.payment_no,
        amount_fen=link.amount_fen,
        currency=link.currency,
        status="FAILED" if reason else "SUCCESS",
        reason=reason,
    )
    body = msgspec.json.encode(result).decode()
    values = {**msgspec.structs.asdict(result), "account_no": link.account_no, "now": now, "body": body}
    connection.execute(_WRITE, values)
    return result


_LOCK_ACCOUNT = text("SELECT * FROM account WHERE account_no = :account_no FOR NO KEY UPDATE")

_BEFORE = text("SELECT * FROM transaction WHERE payment_no = :payment_no")

_WRITE = text("""
    WITH debited AS (
      UPDATE account SET balance_fen = balance_fen - :amount_fen
      WHERE account_no = :account_no AND :status = 'SUCCESS'),
    written AS (
      INSERT INTO transaction (transaction_no, payment_no, account_no, amount_fen, currency, status, reason, created_at)
      VALUES (:transaction_no, :payment_no, :account_no, :amount_fen, :currency, :status, :reason, :now)
      RETURNING transaction_no)
    INSERT INTO notification (transaction_no, body, due_at) SELECT transaction_no, :body, :now FROM written""")


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


def mark(connection: Connection, results: Sequence[tuple[Due, bool]], *, now: datetime) -> None:
    """Answered notifications are not sent again; the others are due after 0.5, 1, 2, 4 … 60 seconds, without end."""
    delays = [backoff_s(due.attempts, first_s=RETRY_FIRST_S, cap_s=RETRY_CAP_S) for due, _ in results]
    connection.execute(
        _MARK,
        {
            "transactions": [due.transaction_no for due, _ in results],
            "answered": [now if answered else None for _, answered in results],
            "due": [now + timedelta(seconds=delay_s) for delay_s in delays],
        },
    )


_MARK = text("""
    UPDATE notification SET answered_at = result.answered_at, due_at = result.due_at
    FROM unnest(CAST(:transactions AS text[]), CAST(:answered AS timestamptz[]), CAST(:due AS timestamptz[]))
         AS result (transaction_no, answered_at, due_at)
    WHERE notification.transaction_no = result.transaction_no""")


def open_account(connection: Connection, account_no: str, *, balance_fen: int, currency: str) -> None:
    """The account exists with this balance; one that exists keeps its own. May be repeated."""
    row = {"account_no": account_no, "balance_fen": balance_fen, "currency": currency}
    connection.execute(insert(account).values(row).on_conflict_do_nothing())
