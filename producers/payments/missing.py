"""Records events that are missing from the outbox, from the rows of their facts, as they were decided."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from outbox.clock import first_id_at
from outbox.record import Outgoing, record
from producers.payments import events
from producers.payments.fees import Charges
from schemas.events import Event

RULE = "as settled; recorded again from the payment's row"
"""Which rule had given fee and cost is not kept; what they came to is."""

EARLIER = timedelta(hours=1)
"""An event is made after its payment was, give or take a clock."""

_ENDED = text("""
    SELECT * FROM payment WHERE payment_no = ANY (CAST(:numbers AS text[])) AND status IN ('SETTLED', 'FAILED')
    ORDER BY payment_no FOR NO KEY UPDATE""")

_RECORDED = text("""
    SELECT key FROM outbox
    WHERE id >= :low AND key = ANY (CAST(:numbers AS text[])) AND type SIMILAR TO 'payment.(settled|failed).v[0-9]+'""")

# The lock of whoever books the transaction: two that record it again meet here.
_SUSPENDED = text("""
    SELECT suspense.*, (SELECT order_no FROM payment WHERE payment.payment_no = suspense.payment_no) AS order_no
    FROM suspense WHERE bank_transaction_no = :number AND pg_advisory_xact_lock(hashtextextended(:number, 0)) IS NOT NULL""")

_TOLD_SUSPENSE = text("""
    SELECT EXISTS (SELECT FROM outbox WHERE id >= :low AND type LIKE 'payment.suspense_recorded.%'
                   AND CAST(payload AS json) ->> 'bank_transaction_no' = :number)""")


def record_ended(connection: Connection, numbers: Sequence[str]) -> list[UUID]:
    """Of each of these payments that is SETTLED or FAILED, an outbox row tells, if the caller commits; returns the new events.

    Transaction: the caller's. Repeatable: one that has its row, of whatever id, gets no other. What consumers have had of it under
    a row that was removed since, they would take for a second fact: it is for the caller to have looked.
    """
    payments = connection.execute(_ENDED, {"numbers": list(numbers)}).all()
    if not payments:
        return []
    low = first_id_at(min(payment.created_at for payment in payments) - EARLIER)
    recorded = set(connection.execute(_RECORDED, {"numbers": list(numbers), "low": low}).scalars())
    missing = [payment for payment in payments if payment.payment_no not in recorded]
    return record(
        connection,
        [
            Outgoing(event=_ended(payment), version=max(1, payment.version), correlation=payment.order_no)
            for payment in missing
        ],
    )


def record_suspense(connection: Connection, number: str) -> list[UUID]:
    """Of a bank's transaction that is in suspense, an outbox row tells, if the caller commits; returns the new event, if there is one.

    Transaction: the caller's. Repeatable.
    """
    row = connection.execute(_SUSPENDED, {"number": number}).first()
    if row is None:
        return []
    low = first_id_at(row.recorded_at - EARLIER)
    if connection.execute(_TOLD_SUSPENSE, {"number": number, "low": low}).scalar():
        return []
    return record(
        connection,
        [Outgoing(event=events.suspended(dict(row._mapping)), version=1, correlation=row.order_no or row.payment_no)],
    )


def _ended(payment: Row[Any]) -> Event:
    if payment.status == "FAILED":
        return events.failed(payment, reason=payment.reason, at=payment.finished_at)
    charges = Charges(
        fee_fen=payment.fee_fen,
        fee_rule=RULE,
        cost_fen=payment.cost_fen or 0,
        cost_rule=RULE,
        points=payment.points,
    )
    return events.settled(payment, charges, at=payment.finished_at, bank_transaction_no=payment.bank_transaction_no)
