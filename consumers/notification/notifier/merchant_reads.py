"""What merchants may ask of their own notifications: one, those of an order, and a feed of all from a cursor on.

The feed is in the order of ids, which are made before their transaction commits: a notification that commits late has an id behind
a cursor that was given out meanwhile. So nothing is shown that is younger than the oldest transaction that still runs, nor than
the earlier of two clocks, the database's and ours. A cursor ahead of both was given out before a clock was set back: what was
written since has ids behind it, so the feed begins again a week before.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from outbox.clock import first_id_at

FEED_MAX = 200
AGAIN = timedelta(days=7)
"""How much of the feed a cursor from a clock that was ahead is shown again: longer than a merchant stays away."""
ORDER_MAX = 100


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """What a merchant's requests may be signed with."""

    merchant_no: str
    secret: str
    old_secret: str | None


def secrets_of(connection: Connection, merchant_no: str) -> Secrets | None:
    """Return a merchant's secrets, the old one until its end by the database's clock; None for one that has no receiver."""
    row = connection.execute(_SECRETS, {"merchant_no": merchant_no}).first()
    return Secrets(**row._mapping) if row is not None else None


_SECRETS = text("""
    SELECT merchant_no, secret, CASE WHEN old_secret_until > clock_timestamp() THEN old_secret END AS old_secret
    FROM receiver WHERE merchant_no = :merchant_no""")

_SHOWN = """SELECT id, queue, payment_no, order_no, status, attempts, created_at, finished_at,
                   CASE WHEN finished_at IS NULL THEN planned_at END AS next_attempt_at, body FROM notify_record"""


def notification_of(connection: Connection, merchant_no: str, identity: UUID) -> dict[str, Any] | None:
    """Return a merchant's own notification; None where there is none of that id."""
    parameters = {"merchant_no": merchant_no, "id": identity}
    row = connection.execute(text(f"{_SHOWN} WHERE merchant_no = :merchant_no AND id = :id"), parameters).first()
    return dict(row._mapping) if row is not None else None


def of_order(connection: Connection, merchant_no: str, order_no: str) -> list[dict[str, Any]]:
    """Return a merchant's own notifications of an order, the oldest first."""
    parameters = {"merchant_no": merchant_no, "order_no": order_no, "limit": ORDER_MAX}
    statement = f"{_SHOWN} WHERE merchant_no = :merchant_no AND order_no = :order_no ORDER BY id LIMIT :limit"
    return [dict(row._mapping) for row in connection.execute(text(statement), parameters)]


def feed(
    connection: Connection, merchant_no: str, *, after: UUID, is_cursor: bool, missed: bool, limit: int, now: datetime
) -> tuple[list[dict[str, Any]], UUID]:
    """Return a merchant's notifications behind a cursor, oldest first, and the cursor to ask with next: none is ever passed over.

    `is_cursor`: whether the cursor was given out by an earlier call. `missed`: only those that are not known to be delivered.
    Transaction: the caller's, READ COMMITTED, with nothing written in it.
    """
    clock = connection.execute(_STEADY).one()
    steady = first_id_at(min(clock.steady, now))
    if after > first_id_at(max(clock.at, now)):
        after = first_id_at(clock.at - AGAIN) if is_cursor else UUID(int=steady.int - 1)
    parameters = {"merchant_no": merchant_no, "after": after, "before": steady, "missed": missed, "limit": limit}
    rows = [dict(row._mapping) for row in connection.execute(_FEED, parameters)]
    if len(rows) == limit:
        return rows, rows[-1]["id"]
    return rows, max(after, UUID(int=steady.int - 1))


# The statement's own time, from before it looked around: who begins meanwhile, and is not seen, makes younger ids.
_STEADY = text("""
    SELECT least(min(xact_start), statement_timestamp()) AS steady, statement_timestamp() AS at FROM pg_stat_activity
    WHERE usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()""")

_FEED = text(f"""
    {_SHOWN} WHERE merchant_no = :merchant_no AND id > :after AND id < :before
      AND (NOT :missed OR status <> 'SUCCESS') ORDER BY id LIMIT :limit""")
