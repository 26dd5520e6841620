"""Points set right by hand: a correction beside what was entered, which stays."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, text

from outbox.errors import Refused

_OPEN = text("INSERT INTO account (account_no, balance) VALUES (:account_no, 0) ON CONFLICT (account_no) DO NOTHING")

_LOCK = text("SELECT FROM account WHERE account_no = :account_no FOR UPDATE")

_ENTERED = text("""
    SELECT CAST(coalesce(sum(points), 0) AS bigint) FROM entry
    WHERE payment_no = :payment_no AND account_no = :account_no""")

_CORRECT = text("""
    INSERT INTO entry (payment_no, account_no, kind, points, event_id, reason, actor)
    VALUES (:payment_no, :account_no, 'correction', :points, :event_id, :reason, :actor)
    ON CONFLICT (payment_no, account_no, kind) DO NOTHING""")

_MOVE = text("UPDATE account SET balance = balance + :points WHERE account_no = :account_no")


def correct_points(
    connection: Connection, payment_no: str, account_no: str, wanted: int, *, event_id: UUID, reason: str, actor: str
) -> int:
    """What a payment has earned an account is what is wanted, and its balance has followed; returns the correction.

    Transaction: the caller's. Repeatable: what is right is left alone. Raises Refused where it was corrected before.
    """
    about = {"payment_no": payment_no, "account_no": account_no}
    connection.execute(_OPEN, about)
    connection.execute(_LOCK, about)
    difference = wanted - int(connection.execute(_ENTERED, about).scalar_one())
    if not difference:
        return 0
    row = {"points": difference, "event_id": event_id, "reason": reason, "actor": actor}
    if not connection.execute(_CORRECT, {**about, **row}).rowcount:
        raise Refused(
            f"payment {payment_no} was corrected before on account {account_no}, and nothing was changed: look at it with payrelay timeline"
        )
    connection.execute(_MOVE, {**about, "points": difference})
    return difference
