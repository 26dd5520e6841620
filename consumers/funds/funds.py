"""Merchants are credited what was paid, less the fee; payers deposit, and pay out of their balance, never below its floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.delivery.processor import DuplicateFact
from consumers.funds.effects import payer_account
from outbox.errors import Refused
from outbox.record import Outgoing, record
from outbox.rows import as_json
from schemas.codec import Envelope
from schemas.events import BalancePaid, BalancePaymentRequested, BalanceRefused, Event, FundsDeposited, PaymentSettled
from schemas.money import CNY

REFUSED = "the balance is not enough"
FOREIGN = f"balances are kept in {CNY}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A line of an account: what came in (credit, deposit) or went out (debit)."""

    payment_no: str
    account_no: str
    kind: str
    amount_fen: int
    event_id: UUID


# An insert takes its rows, and so their locks, in the order of the select: no two workers lock accounts crosswise.
_MOVE = text("""
    INSERT INTO account (account_no, balance_fen)
    SELECT move.account_no, sum(CASE move.kind WHEN 'debit' THEN -move.amount_fen ELSE move.amount_fen END)
    FROM json_to_recordset(CAST(:rows AS json)) AS move (account_no text, kind text, amount_fen bigint)
    GROUP BY move.account_no ORDER BY move.account_no
    ON CONFLICT (account_no) DO UPDATE SET balance_fen = account.balance_fen + excluded.balance_fen""")

_ENTER = text("""
    INSERT INTO entry (payment_no, account_no, kind, amount_fen, event_id)
    SELECT * FROM json_to_recordset(CAST(:rows AS json))
        AS move (payment_no text, account_no text, kind text, amount_fen bigint, event_id uuid)
    ON CONFLICT (payment_no, account_no, kind) DO NOTHING""")

# Payers are locked before merchants are, by whoever touches both. Events tried one by one may lock crosswise: one of the two
# transactions is then tried again.
_ROOM = text("""
    SELECT account_no, balance_fen - floor_fen AS room_fen FROM account
    WHERE account_no = ANY (CAST(:accounts AS text[])) ORDER BY account_no FOR UPDATE""")

_DECIDED = text("""
    INSERT INTO balance_payment (payment_no, event_id, paid)
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS request (payment_no text, event_id uuid, paid boolean)
    ON CONFLICT (payment_no) DO NOTHING""")

_DEPOSIT = text("""
    INSERT INTO deposit (deposit_no, payer_no, amount_fen, currency, deposited_at)
    VALUES (:deposit_no, :payer_no, :amount_fen, :currency, :deposited_at) ON CONFLICT (deposit_no) DO NOTHING""")

_PAYER = text("""
    INSERT INTO account (account_no, floor_fen) VALUES (:account_no, 0) ON CONFLICT (account_no) DO NOTHING""")


def affordable(room_fen: Mapping[str, int], wanted: Sequence[tuple[str, int]]) -> list[bool]:
    """Return which debits of accounts are paid, in order: each that what is left above the floor allows. Pure.

    The same whether they come in one batch or one by one.

    >>> affordable({"A": 100}, [("A", 60), ("A", 50), ("B", 1), ("A", 40)])
    [True, False, False, True]
    """
    left_fen, paid = dict(room_fen), []
    for account_no, amount_fen in wanted:
        fits = left_fen.get(account_no, 0) >= amount_fen
        if fits:
            left_fen[account_no] -= amount_fen
        paid.append(fits)
    return paid


def move_funds(connection: Connection, events: Sequence[Envelope]) -> None:
    """Merchants are credited for settled payments; requests for balance payments are paid or refused, and answered.

    Each payment has its entries, each balance has moved by them, none is below its floor. A request in a currency that balances
    are not kept in is refused. Transaction: the caller's. Raises, before the caller may commit, DuplicateFact for a payment that
    had its effect before, and ValueError for one that was settled in such a currency.
    """
    moves = [*_balance_payments(connection, events), *_credits(events)]
    _apply(connection, moves)


def _credits(events: Sequence[Envelope]) -> list[Move]:
    """Return the credits of bank payments. A balance payment's merchant was credited when its payer was debited."""
    moves = []
    for envelope in events:
        event = envelope.event
        if not isinstance(event, PaymentSettled) or event.method != "bank_card":
            continue
        if event.currency != CNY:
            raise ValueError(f"payment {event.payment_no} was settled in {event.currency!r}, and {FOREIGN}")
        moves.append(
            Move(
                payment_no=event.payment_no,
                account_no=event.merchant_no,
                kind="credit",
                amount_fen=event.amount_fen - event.fee_fen,
                event_id=envelope.id,
            )
        )
    return moves


def _balance_payments(connection: Connection, events: Sequence[Envelope]) -> list[Move]:
    """The requests are decided, each once, and answered; returns what the paid ones move."""
    requests = [
        (envelope, envelope.event) for envelope in events if isinstance(envelope.event, BalancePaymentRequested)
    ]
    if not requests:
        return []
    accounts = [payer_account(event.payer_no) for _, event in requests]
    room_fen = {row.account_no: row.room_fen for row in connection.execute(_ROOM, {"accounts": accounts})}
    held = [event for _, event in requests if event.currency == CNY]
    fits = iter(affordable(room_fen, [(payer_account(event.payer_no), event.amount_fen) for event in held]))
    paid = [event.currency == CNY and next(fits) for _, event in requests]
    rows = [
        {"payment_no": event.payment_no, "event_id": envelope.id, "paid": is_paid}
        for (envelope, event), is_paid in zip(requests, paid, strict=True)
    ]
    if connection.execute(_DECIDED, {"rows": as_json(rows)}).rowcount != len(requests):
        raise DuplicateFact("a balance payment was decided before")
    answers = [
        Outgoing(event=_answer(event, is_paid), version=1, correlation=envelope.correlation, causation=str(envelope.id))
        for (envelope, event), is_paid in zip(requests, paid, strict=True)
    ]
    record(connection, answers)
    moves = []
    for (envelope, event), is_paid in zip(requests, paid, strict=True):
        if is_paid:
            moves += _paid_moves(envelope.id, event)
    return moves


def _answer(event: BalancePaymentRequested, is_paid: bool) -> Event:
    """Return the answer to payments. Its time is the request's, so that a replay gives the same."""
    if not is_paid:
        reason = REFUSED if event.currency == CNY else FOREIGN
        return BalanceRefused(payment_no=event.payment_no, reason=reason, refused_at=event.requested_at)
    return BalancePaid(
        payment_no=event.payment_no,
        amount_fen=event.amount_fen,
        currency=event.currency,
        fee_fen=event.fee_fen,
        fee_rule=event.fee_rule,
        points=event.points,
        paid_at=event.requested_at,
    )


def _paid_moves(event_id: UUID, event: BalancePaymentRequested) -> list[Move]:
    lines = (
        (payer_account(event.payer_no), "debit", event.amount_fen),
        (event.merchant_no, "credit", event.amount_fen - event.fee_fen),
    )
    return [
        Move(payment_no=event.payment_no, account_no=account_no, kind=kind, amount_fen=amount_fen, event_id=event_id)
        for account_no, kind, amount_fen in lines
    ]


def _apply(connection: Connection, moves: Sequence[Move]) -> None:
    if not moves:
        return
    rows = {"rows": as_json(moves)}
    connection.execute(_MOVE, rows)
    if connection.execute(_ENTER, rows).rowcount != len(moves):
        raise DuplicateFact("a payment was credited before")


def deposited(row: Mapping[str, Any]) -> FundsDeposited:
    """Return that a payer has deposited, given as the deposit's row."""
    return FundsDeposited(**row)


def deposit(
    connection: Connection, deposit_no: str, *, payer_no: str, amount_fen: int, currency: str, at: datetime
) -> None:
    """The payer's balance has grown by what came in through a bank, and an event for accounting is recorded, if the caller commits.

    Transaction: the caller's. Repeatable: a deposit counts once. Raises Refused for the number of another one, and for a
    currency that balances are not kept in.
    """
    if currency != CNY:
        raise Refused(f"{FOREIGN}: {currency!r} cannot be deposited")
    row = {"deposit_no": deposit_no, "payer_no": payer_no, "amount_fen": amount_fen, "currency": currency}
    if not connection.execute(_DEPOSIT, {**row, "deposited_at": at}).rowcount:
        first = connection.execute(
            text("SELECT deposit_no, payer_no, amount_fen, currency FROM deposit WHERE deposit_no = :deposit_no"), row
        ).one()
        if dict(first._mapping) != row:
            raise Refused(f"deposit {deposit_no!r} was made before, of another amount or for another payer")
        return
    account_no = payer_account(payer_no)
    connection.execute(_PAYER, {"account_no": account_no})
    event = deposited({**row, "deposited_at": at})
    [event_id] = record(connection, [Outgoing(event=event, version=1, correlation=deposit_no)])
    move = Move(payment_no=deposit_no, account_no=account_no, kind="deposit", amount_fen=amount_fen, event_id=event_id)
    _apply(connection, [move])
