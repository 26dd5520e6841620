"""Scene 3: the bank debits its own account and records what it has to tell the platform, in one local transaction."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import msgspec
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import insert

from outbox.record import Outgoing, record
from producers.bank.tables import account
from schemas.bank import BankNotification, PaymentLink
from schemas.events import BankTransactionExecuted


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
            executed_at=before.created_at.astimezone(UTC),
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
        executed_at=now,
    )
    values = msgspec.structs.asdict(result)
    connection.execute(_WRITE, {**values, "account_no": link.account_no})
    event = BankTransactionExecuted(**values)
    record(connection, [Outgoing(event=event, version=1, correlation=link.payment_no)])
    return result


_LOCK_ACCOUNT = text("SELECT * FROM account WHERE account_no = :account_no FOR NO KEY UPDATE")

_BEFORE = text("SELECT * FROM transaction WHERE payment_no = :payment_no")

_WRITE = text("""
    WITH debited AS (
      UPDATE account SET balance_fen = balance_fen - :amount_fen
      WHERE account_no = :account_no AND :status = 'SUCCESS')
    INSERT INTO transaction (transaction_no, payment_no, account_no, amount_fen, currency, status, reason, created_at)
    VALUES (:transaction_no, :payment_no, :account_no, :amount_fen, :currency, :status, :reason, :executed_at)""")


def open_account(connection: Connection, account_no: str, *, balance_fen: int, currency: str) -> None:
    """The account exists with this balance; one that exists keeps its own. May be repeated."""
    row = {"account_no": account_no, "balance_fen": balance_fen, "currency": currency}
    connection.execute(insert(account).values(row).on_conflict_do_nothing(index_elements=["account_no"]))
