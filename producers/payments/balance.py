"""Scene 4, from the balance: the payer confirms, and funds is asked to move the money."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from outbox.errors import Refused
from outbox.record import Outgoing, record
from producers.payments import events
from producers.payments.settlement import charges_of, locked_order
from producers.payments.tables import payment


def confirm_payment(connection: Connection, payment_no: str, *, now: datetime) -> str:
    """A balance payment in time is PAYING: fee and points are decided, and funds is asked, if the caller commits.

    Transaction: the caller's. Returns the payment's status. Repeatable: confirmed again, nothing changes. What is PAYING does
    not expire: funds' answer ends it. Raises Refused where there is no such balance payment, or its time is over.
    """
    order = locked_order(connection, payment_no)
    if order is None or order.method != "balance":
        raise Refused(f"there is no balance payment {payment_no!r}")
    if order.status == "EXPIRED" or (order.status == "CREATED" and order.expires_at <= now):
        raise Refused("the payment was not confirmed in time and has expired: order again")
    if order.status != "CREATED":
        return str(order.status)
    charges = charges_of(order)
    version = order.version + 1
    connection.execute(
        payment.update().where(payment.c.payment_no == payment_no).values(status="PAYING", version=version)
    )
    event = events.balance_requested(order, charges, at=now)
    record(connection, [Outgoing(event=event, version=version, correlation=order.order_no)])
    return "PAYING"
