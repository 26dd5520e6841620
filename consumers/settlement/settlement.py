"""Scene 4, from the balance: funds' answer finishes the payment, and an event of that is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from consumers.delivery.processor import DuplicateFact
from outbox.record import Outgoing, record
from outbox.rows import as_json
from producers.payments.events import failed, settled
from producers.payments.fees import Charges
from producers.payments.orders import free_limit
from schemas.codec import Envelope
from schemas.events import BalancePaid, BalanceRefused, Event

_ORDERS = text("""
    SELECT * FROM payment WHERE payment_no = ANY (CAST(:payments AS text[]))
    ORDER BY payment_no FOR NO KEY UPDATE""")

# Payments are named beside the join: planned while the table was empty, it would read the whole of it by an index.
_FINISH = text("""
    UPDATE payment SET status = answer.status, version = version + 1, fee_fen = answer.fee_fen, points = answer.points,
                       cost_fen = CASE answer.status WHEN 'SETTLED' THEN 0 END, reason = answer.reason, finished_at = answer.at
    FROM json_to_recordset(CAST(:rows AS json))
         AS answer (payment_no text, status text, fee_fen bigint, points bigint, reason text, at timestamptz)
    WHERE payment.payment_no = answer.payment_no AND payment.status = 'PAYING'
      AND payment.payment_no = ANY (CAST(:payments AS text[]))""")


def finish_balance_payments(connection: Connection, events: Sequence[Envelope]) -> None:
    """Payments that funds has paid are SETTLED, those that it has refused FAILED with their limit free; an event of each is recorded.

    Transaction: the caller's. Raises DuplicateFact for a payment that had its answer, ValueError for one that waits for none, or
    that funds has paid with another amount or currency.
    """
    answers = [
        (envelope, envelope.event) for envelope in events if isinstance(envelope.event, BalancePaid | BalanceRefused)
    ]
    if not answers:
        return
    ended = [event for _, event in answers]
    numbers = [event.payment_no for event in ended]
    orders = {row.payment_no: row for row in connection.execute(_ORDERS, {"payments": numbers})}
    for event in ended:
        _require_same_money(orders.get(event.payment_no), event)
    rows = as_json([_row(event) for event in ended])
    if connection.execute(_FINISH, {"rows": rows, "payments": numbers}).rowcount != len(ended):
        for event in ended:
            status = order.status if (order := orders.get(event.payment_no)) else "unknown"
            if status not in ("PAYING", "SETTLED", "FAILED"):
                raise ValueError(
                    f"payment {event.payment_no} is {status}: funds was not asked for it, and has answered"
                )
        raise DuplicateFact("a payment had its answer from funds before")
    refused = [orders[event.payment_no] for event in ended if isinstance(event, BalanceRefused)]
    for order in sorted(refused, key=lambda order: (order.payer_no, order.limit_day)):
        free_limit(connection, order.payer_no, order.limit_day, order.amount_fen)
    record(
        connection,
        [
            Outgoing(
                event=_result(orders[event.payment_no], event),
                version=orders[event.payment_no].version + 1,
                correlation=envelope.correlation,
                causation=str(envelope.id),
            )
            for envelope, event in answers
        ],
    )


def _require_same_money(order: Row[Any] | None, answer: BalancePaid | BalanceRefused) -> None:
    """Raises ValueError where funds has paid something else than the order asks for."""
    if order is None or isinstance(answer, BalanceRefused):
        return
    if (order.amount_fen, order.currency) != (answer.amount_fen, answer.currency):
        raise ValueError(
            f"payment {order.payment_no} is {order.amount_fen} {order.currency}, "
            f"and funds has paid {answer.amount_fen} {answer.currency}"
        )


def _row(answer: BalancePaid | BalanceRefused) -> dict[str, object]:
    row: dict[str, object] = {"payment_no": answer.payment_no}
    if isinstance(answer, BalanceRefused):
        return {**row, "status": "FAILED", "reason": answer.reason, "at": answer.refused_at}
    return {**row, "status": "SETTLED", "fee_fen": answer.fee_fen, "points": answer.points, "at": answer.paid_at}


def _result(order: Row[Any], answer: BalancePaid | BalanceRefused) -> Event:
    if isinstance(answer, BalanceRefused):
        return failed(order, reason=answer.reason, at=answer.refused_at)
    charges = Charges(fee_fen=answer.fee_fen, fee_rule=answer.fee_rule, cost_fen=0, cost_rule="", points=answer.points)
    return settled(order, charges, at=answer.paid_at, bank_transaction_no=None)
