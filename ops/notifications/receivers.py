"""Receivers, queue by queue: who is sent to, who is paused, and who is held up by a breaker or at its own word. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from ops.notifications.operations import NOTIFYING_SERVICES

RECEIVERS_MAX = 500
STATES = ("sending", "paused", "held up")


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


_LANES = """
    SELECT lane.queue, lane.merchant_no, coalesce(receiver.url, '') AS url, lane.failures,
           CASE WHEN lane.paused_at IS NOT NULL THEN 'paused'
                WHEN lane.blocked_until > clock_timestamp() THEN lane.blocked_cause ELSE 'sending' END AS state,
           CASE WHEN lane.paused_at IS NULL AND lane.blocked_until > clock_timestamp() THEN lane.blocked_until END AS until,
           (SELECT count(*) FROM (
              SELECT FROM {service}.notify_record AS record
              WHERE record.queue = lane.queue AND record.merchant_no = lane.merchant_no AND record.finished_at IS NULL
                AND record.leased_until IS NULL LIMIT 1000) AS record) AS waiting
    FROM (SELECT * FROM {service}.notify_lane
          WHERE (:queue = '' OR queue = :queue) AND (:merchant_no = '' OR merchant_no = :merchant_no)
            AND CASE :state WHEN 'paused' THEN paused_at IS NOT NULL
                            WHEN 'held up' THEN paused_at IS NULL AND blocked_until > clock_timestamp()
                            WHEN 'sending' THEN paused_at IS NULL AND coalesce(blocked_until <= clock_timestamp(), true)
                            ELSE true END
          ORDER BY queue, merchant_no LIMIT :limit) AS lane
         LEFT JOIN {service}.receiver USING (merchant_no)"""


def receivers(
    connection: Connection, *, queue: str = "", merchant_no: str = "", state: str = "", limit: int = RECEIVERS_MAX
) -> list[ReceiverRow]:
    """Return the receivers that match, in order; what is empty leaves all in."""
    given = {"queue": queue, "merchant_no": merchant_no, "state": state, "limit": limit}
    rows = [
        ReceiverRow(**row._mapping)
        for service in NOTIFYING_SERVICES
        for row in connection.execute(text(_LANES.format(service=service)), given)
    ]
    return sorted(rows, key=lambda row: (row.queue, row.merchant_no))[:limit]
