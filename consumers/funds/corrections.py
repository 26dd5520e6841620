"""Corrections of funds by hand, beside the entries, which stay; and deposits whose event was never recorded."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.funds.funds import deposited
from outbox.errors import Refused
from outbox.record import Outgoing, record

_LOCK = text("""
    SELECT FROM account WHERE account_no = ANY (CAST(:accounts AS text[])) ORDER BY account_no FOR UPDATE""")

_OPEN = text("INSERT INTO account (account_no) VALUES (:account_no) ON CONFLICT (account_no) DO NOTHING")

_ENTERED = text("""
    SELECT account_no, CAST(sum(CASE kind WHEN 'debit' THEN -amount_fen ELSE amount_fen END) AS bigint) AS amount_fen
    FROM entry WHERE payment_no = :payment_no AND account_no = ANY (CAST(:accounts AS text[])) GROUP BY account_no""")

_CORRECT = text("""
    INSERT INTO entry (payment_no, account_no, kind, amount_fen, event_id, reason, actor)
    VALUES (:payment_no, :account_no, 'correction', :amount_fen, :event_id, :reason, :actor)
    ON CONFLICT (payment_no, account_no, kind) DO NOTHING""")

_MOVE = text("UPDATE account SET balance_fen = balance_fen + :amount_fen WHERE account_no = :account_no")


def correct_moves(
    connection: Connection, payment_no: str, wanted_fen: Mapping[str, int], *, event_id: UUID, reason: str, actor: str
) -> dict[str, int]:
    """What a payment has moved on these accounts is what is wanted, and their balances have followed; returns the corrections (fen).

    Transaction: the caller's. Repeatable: what is right is left alone. Raises Refused where an account was corrected for the payment
    before, IntegrityError where a balance would fall below its floor.
    """
    accounts = {"payment_no": payment_no, "accounts": sorted(wanted_fen)}
    for account_no in sorted(wanted_fen):
        connection.execute(_OPEN, {"account_no": account_no})
    connection.execute(_LOCK, accounts)
    entered = {row.account_no: row.amount_fen for row in connection.execute(_ENTERED, accounts)}
    corrected = {}
    for account_no, amount_fen in sorted(wanted_fen.items()):
        difference_fen = amount_fen - entered.get(account_no, 0)
        if not difference_fen:
            continue
        move = {"account_no": account_no, "amount_fen": difference_fen}
        row = {"payment_no": payment_no, "event_id": event_id, "reason": reason, "actor": actor}
        if not connection.execute(_CORRECT, {**row, **move}).rowcount:
            raise Refused(
                f"payment {payment_no} was corrected before on account {account_no}, and nothing was changed: look at it with payrelay timeline"
            )
        connection.execute(_MOVE, move)
        corrected[account_no] = difference_fen
    return corrected


_DEPOSIT = text("""
    SELECT deposit.* FROM deposit
    WHERE deposit_no = :number AND pg_advisory_xact_lock(hashtextextended('deposit ' || :number, 0)) IS NOT NULL""")

_TOLD = text("SELECT EXISTS (SELECT FROM outbox WHERE key = :number AND type LIKE 'funds.deposited.%')")


def record_deposit(connection: Connection, number: str) -> list[UUID]:
    """An outbox row records the deposit, if the caller commits; returns the new event, if there is one.

    Transaction: the caller's. Repeatable.
    """
    row = connection.execute(_DEPOSIT, {"number": number}).first()
    if row is None or connection.execute(_TOLD, {"number": number}).scalar():
        return []
    event = deposited(dict(row._mapping))
    return record(connection, [Outgoing(event=event, version=1, correlation=event.deposit_no)])
