"""Records the event of a deposit that has none."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, text

from consumers.funds.funds import deposited
from outbox.record import Outgoing, record

_DEPOSIT = text("""
    SELECT deposit.* FROM deposit
    WHERE deposit_no = :number AND pg_advisory_xact_lock(hashtextextended('deposit ' || :number, 0)) IS NOT NULL""")

_RECORDED = text("SELECT EXISTS (SELECT FROM outbox WHERE key = :number AND type LIKE 'funds.deposited.%')")


def record_deposit(connection: Connection, number: str) -> list[UUID]:
    """An outbox row records the deposit, if the caller commits; returns the new event, if there is one.

    Transaction: the caller's. Repeatable.
    """
    row = connection.execute(_DEPOSIT, {"number": number}).first()
    if row is None or connection.execute(_RECORDED, {"number": number}).scalar():
        return []
    event = deposited(dict(row._mapping))
    return record(connection, [Outgoing(event=event, version=1, correlation=event.deposit_no)])
