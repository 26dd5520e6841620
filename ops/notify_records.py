"""Notification records, receivers and acts as an operator reads them. Reads only, as `ops`; bounded, whatever there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.notification.search import Filter, conditions
from outbox.errors import Refused

COUNTED_MAX = 100_000
"""What matches beyond is not counted."""
PAGE = 50
HISTORY_MAX = 200
"""Attempts, postponements and acts shown of one record, the latest."""


@dataclass(frozen=True, kw_only=True)
class RecordRow:
    """A record in a list."""

    id: UUID
    queue: str
    merchant_no: str
    order_no: str
    payment_no: str
    status: str
    attempts: int
    http_status: int | None
    last_error: str
    created_at: datetime
    planned_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """How many records match, and the newest of them."""

    count: int
    """Up to 100,000."""
    newest: UUID | None


@dataclass(frozen=True, kw_only=True)
class ReceiverRow:
    """A receiver's part of a queue."""

    queue: str
    merchant_no: str
    url: str
    state: str
    """sending, paused, BREAKER or RETRY_AFTER."""
    until: datetime | None
    """Held up until then."""
    failures: int
    """In a row."""
    waiting: int
    """Up to 1,000."""


def found(connection: Connection, wanted: Filter) -> Found:
    """Return how many records match, counted up to 100,000, and the newest."""
    where, given = conditions(wanted)
    count = connection.execute(
        text(f"SELECT count(*) FROM (SELECT FROM notification.notify_record WHERE {where} LIMIT :most) AS record"),  # noqa: S608
        {**given, "most": COUNTED_MAX},
    ).scalar_one()
    newest = records(connection, wanted, limit=1)
    return Found(count=count, newest=newest[0].id if newest else None)


def records(
    connection: Connection, wanted: Filter, *, before: UUID | None = None, limit: int = PAGE
) -> list[RecordRow]:
    """Return records that match, the newest first; those older than `before` where it is given."""
    where, given = conditions(wanted)
    rows = connection.execute(
        text(f"""
            SELECT id, queue, merchant_no, order_no, payment_no, status, attempts, http_status,
                   coalesce(left(last_error, 200), '') AS last_error, created_at, planned_at, finished_at
            FROM notification.notify_record
            WHERE {where} AND (CAST(:before AS uuid) IS NULL OR id < :before)
            ORDER BY id DESC LIMIT :limit"""),  # noqa: S608 - conditions of ours, values bound
        {**given, "before": before, "limit": limit},
    )
    return [RecordRow(**row._mapping) for row in rows]


def record(connection: Connection, identity: UUID) -> dict[str, Any]:
    """Return everything of a record: its row, receiver, attempts, postponements and acts, in order; raises Refused for none."""
    row = connection.execute(text("SELECT * FROM notification.notify_record WHERE id = :id"), {"id": identity}).first()
    if row is None:
        raise Refused(f"there is no notification {identity}")
    return {
        **row._mapping,
        "receiver": _receiver(connection, row.queue, row.merchant_no),
        "attempts_made": _history(connection, "notify_record_log", "record_id", identity),
        "postponements": _history(connection, "notify_postponement", "record_id", identity),
        "acts": _history(connection, "notify_audit", "record_id", identity),
    }


def _history(connection: Connection, table: str, column: str, value: object) -> list[dict[str, Any]]:
    """Return a table's rows of a record or an act, the oldest first."""
    rows = connection.execute(
        text(f"SELECT * FROM notification.{table} WHERE {column} = :value ORDER BY id DESC LIMIT :limit"),  # noqa: S608
        {"value": value, "limit": HISTORY_MAX},
    )
    return [dict(row._mapping) for row in rows][::-1]


_LANES = """
    SELECT lane.queue, lane.merchant_no, coalesce(receiver.url, '') AS url, lane.failures,
           CASE WHEN lane.paused_at IS NOT NULL THEN 'paused'
                WHEN lane.blocked_until > clock_timestamp() THEN lane.blocked_cause ELSE 'sending' END AS state,
           CASE WHEN lane.paused_at IS NULL AND lane.blocked_until > clock_timestamp() THEN lane.blocked_until END AS until,
           (SELECT count(*) FROM (
              SELECT FROM notification.notify_record AS record
              WHERE record.queue = lane.queue AND record.merchant_no = lane.merchant_no AND record.finished_at IS NULL
                AND record.leased_until IS NULL LIMIT 1000) AS record) AS waiting
    FROM (SELECT * FROM notification.notify_lane
          WHERE (:queue = '' OR queue = :queue) AND (:merchant_no = '' OR merchant_no = :merchant_no)
            AND CASE :state WHEN 'paused' THEN paused_at IS NOT NULL
                            WHEN 'held up' THEN paused_at IS NULL AND blocked_until > clock_timestamp()
                            WHEN 'sending' THEN paused_at IS NULL AND coalesce(blocked_until <= clock_timestamp(), true)
                            ELSE true END
          ORDER BY queue, merchant_no LIMIT :limit) AS lane
         LEFT JOIN notification.receiver USING (merchant_no)
    ORDER BY lane.queue, lane.merchant_no"""

RECEIVER_STATES = ("sending", "paused", "held up")
RECEIVERS_MAX = 500


def receivers(
    connection: Connection, *, queue: str = "", merchant_no: str = "", state: str = "", limit: int = RECEIVERS_MAX
) -> list[ReceiverRow]:
    """Return the receivers that match, in order; what is empty leaves all in."""
    given = {"queue": queue, "merchant_no": merchant_no, "state": state, "limit": limit}
    return [ReceiverRow(**row._mapping) for row in connection.execute(text(_LANES), given)]


def _receiver(connection: Connection, queue: str, merchant_no: str) -> ReceiverRow | None:
    lanes = receivers(connection, queue=queue, merchant_no=merchant_no)
    return lanes[0] if lanes else None


def queues(connection: Connection) -> list[str]:
    """Return the queues' names."""
    return list(connection.execute(text("SELECT queue FROM notification.notify_queue ORDER BY queue")).scalars())


def acts(connection: Connection, *, limit: int = PAGE) -> list[dict[str, Any]]:
    """Return acts on everything that matched, the latest first."""
    rows = connection.execute(
        text("SELECT * FROM notification.notify_act ORDER BY id DESC LIMIT :limit"), {"limit": limit}
    )
    return [dict(row._mapping) for row in rows]


def act(connection: Connection, number: int) -> dict[str, Any]:
    """Return an act with what has become of its items since: how many by their status; raises Refused for none."""
    row = connection.execute(text("SELECT * FROM notification.notify_act WHERE id = :id"), {"id": number}).first()
    if row is None:
        raise Refused(f"there is no act {number}")
    now = connection.execute(
        text("""
            SELECT record.status, count(*) FROM (
              SELECT record_id FROM notification.notify_audit
              WHERE act_id = :id AND outcome = 'DUE' ORDER BY id LIMIT :most) AS item
            JOIN notification.notify_record AS record ON record.id = item.record_id GROUP BY 1 ORDER BY 1"""),
        {"id": number, "most": ITEMS_FOLLOWED_MAX},
    )
    return {**row._mapping, "now": dict(now.all())}


ITEMS_FOLLOWED_MAX = 10_000


def items(connection: Connection, number: int, *, limit: int = HISTORY_MAX) -> list[dict[str, Any]]:
    """Return an act's latest items: what came of each, and what it is now."""
    rows = connection.execute(
        text("""
            SELECT item.id, item.record_id, item.merchant_no, item.outcome, item.acted_at, record.status, record.http_status,
                   record.order_no
            FROM (SELECT * FROM notification.notify_audit WHERE act_id = :id ORDER BY id DESC LIMIT :limit) AS item
            JOIN notification.notify_record AS record ON record.id = item.record_id ORDER BY item.id DESC"""),
        {"id": number, "limit": limit},
    )
    return [dict(row._mapping) for row in rows]


def audit(connection: Connection, *, limit: int = PAGE) -> list[dict[str, Any]]:
    """Return who did what to one record, receiver or rule, and why, the latest first; items of acts are with their acts."""
    rows = connection.execute(
        text("SELECT * FROM notification.notify_audit WHERE act_id IS NULL ORDER BY id DESC LIMIT :limit"),
        {"limit": limit},
    )
    return [dict(row._mapping) for row in rows]


def timeline(whole: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Return a record's history in order: attempts as they went, postponements, acts. Pure."""
    lines = [{"kind": "attempt", "when": one["started_at"], **one} for one in whole["attempts_made"]]
    lines += [{"kind": "postponed", "when": one["made_at"], **one} for one in whole["postponements"]]
    lines += [{"kind": "act", "when": one["acted_at"], **one} for one in whole["acts"]]
    return sorted(lines, key=lambda line: line["when"])
