"""Events become notifications, as rows. The notifier sends them, after the commit."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from consumers.delivery.processor import DuplicateFact
from consumers.notification.bodies import bank_body_of, body_of
from consumers.notification.control import rule_of
from consumers.notification.queues import BANK, MERCHANT, PLATFORM
from consumers.notification.rules import parse_rule
from outbox.record import refuse_ahead
from outbox.rows import as_json
from schemas.codec import Envelope
from schemas.events import BankTransactionExecuted


def write_merchant_notifications(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each settled or failed payment has a notification to be sent. Transaction: the caller's. Raises DuplicateFact."""
    rows = [
        {
            "event_id": envelope.id,
            "merchant_no": envelope.event.merchant_no,  # type: ignore[attr-defined]
            "payment_no": envelope.event.payment_no,  # type: ignore[attr-defined]
            "order_no": envelope.correlation,
            "body": body,
        }
        for envelope in events
        if (body := body_of(envelope.event))
    ]
    write(connection, MERCHANT, rows)


def write_bank_notifications(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each transaction of the bank has a notification to be sent to the platform. Transaction: the caller's. Raises DuplicateFact."""
    rows = [
        {
            "event_id": envelope.id,
            "merchant_no": PLATFORM,
            "payment_no": envelope.event.payment_no,
            "order_no": envelope.correlation,
            "body": bank_body_of(envelope.event),
        }
        for envelope in events
        if isinstance(envelope.event, BankTransactionExecuted)
    ]
    write(connection, BANK, rows)


def write(connection: Connection, queue: str, rows: Sequence[dict[str, object]]) -> None:
    """Each row is a notification of the queue, with the queue's rule as it is now, due by it. Raises DuplicateFact.

    A row is event_id, merchant_no, payment_no, order_no, body. Transaction: the caller's. Raises AheadOfClock as `record` does.
    """
    if not rows:
        return
    rule = rule_of(connection, queue)
    parameters = {
        "queue": queue,
        "rule": rule,
        "first_s": parse_rule(rule).delays[0].total_seconds(),
        "rows": as_json(rows),
    }
    written = connection.execute(_WRITE, parameters).one()
    if written.records != len(rows):
        raise DuplicateFact("a notification of this event was written before")
    refuse_ahead(connection, written.last, written.at)


_WRITE = text("""
    WITH made AS MATERIALIZED (SELECT clock_timestamp() AS at),
    written AS (
      INSERT INTO notify_record (queue, rule, created_at, planned_at, event_id, merchant_no, payment_no, order_no, body)
      SELECT :queue, :rule, made.at, made.at + make_interval(secs => :first_s), event.*
      FROM made, json_to_recordset(CAST(:rows AS json))
           AS event (event_id uuid, merchant_no text, payment_no text, order_no text, body text)
      ON CONFLICT (queue, event_id) DO NOTHING
      RETURNING id, merchant_no, planned_at),
    woken AS (
      INSERT INTO notify_wake (queue, merchant_no, planned_at)
      SELECT :queue, merchant_no, min(planned_at) FROM written GROUP BY merchant_no)
    SELECT count(*) AS records, (array_agg(id ORDER BY id DESC))[1] AS last, (SELECT at FROM made) AS at FROM written""")
