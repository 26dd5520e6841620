"""What merchants are to be told, as rows; telling them is the sender's, after the commit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import insert

from consumers.delivery import DuplicateFact
from consumers.notification.tables import receiver
from outbox.rows import as_json
from schemas.codec import Envelope
from schemas.events import Event, PaymentFailed, PaymentSettled

MERCHANT = "merchant"
LEASE_S = 30
"""How long a claimed record is its sender's; after that, sent or not, it is due again."""

_WRITE = text("""
    INSERT INTO notify_record (queue, event_id, merchant_no, payment_no, order_no, body)
    SELECT :queue, told.* FROM json_to_recordset(CAST(:rows AS json))
        AS told (event_id uuid, merchant_no text, payment_no text, order_no text, body text)
    ON CONFLICT DO NOTHING""")

_CLAIM = text("""
    UPDATE notify_record SET claimed_until = clock_timestamp() + make_interval(secs => :lease_s), attempts = attempts + 1
    WHERE id IN (SELECT id FROM notify_record WHERE status = 'CREATED' AND claimed_until <= clock_timestamp()
                 ORDER BY claimed_until, id LIMIT :limit FOR UPDATE SKIP LOCKED)
    RETURNING id, queue, merchant_no, body""")

_RESEND = text("""
    UPDATE notify_record
    SET status = 'CREATED', finished_at = NULL, claimed_until = clock_timestamp()
    WHERE id IN (SELECT id FROM notify_record WHERE event_id = ANY (CAST(:ids AS uuid[])) AND status = 'SUCCESS'
                 ORDER BY id FOR UPDATE)""")

_RECEIVERS = text("SELECT merchant_no, url, secret FROM receiver WHERE merchant_no = ANY (CAST(:merchants AS text[]))")

_MARK = text("""
    UPDATE notify_record
    SET status = CASE WHEN result.error IS NULL THEN 'SUCCESS' ELSE 'CREATED' END,
        finished_at = CASE WHEN result.error IS NULL THEN clock_timestamp() END,
        last_error = result.error
    FROM unnest(CAST(:ids AS uuid[]), CAST(:errors AS text[])) AS result (id, error)
    WHERE notify_record.id = result.id AND notify_record.status = 'CREATED'""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A record that the caller may send until its lease ends."""

    id: UUID
    queue: str
    merchant_no: str
    body: str
    url: str | None
    secret: str | None


def body_of(event: Event) -> str | None:
    """Return what the merchant is told of an event; None where nothing."""
    match event:
        case PaymentSettled():
            told = {"status": "SETTLED", "bank_transaction_no": event.bank_transaction_no, "at": event.settled_at}
        case PaymentFailed():
            told = {"status": "FAILED", "reason": event.reason, "at": event.failed_at}
        case _:
            return None
    common = {"payment_no": event.payment_no, "order_no": event.order_no, "amount_fen": event.amount_fen}
    return msgspec.json.encode({"type": event.type, **common, "currency": event.currency, **told}).decode()


def write_records(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each settled or failed payment has a record to be sent. Transaction: the caller's. Raises DuplicateFact."""
    told = [(envelope, body) for envelope in events if (body := body_of(envelope.event))]
    if not told:
        return
    rows = [
        {
            "event_id": envelope.id,
            "merchant_no": envelope.event.merchant_no,  # type: ignore[attr-defined]
            "payment_no": envelope.event.payment_no,  # type: ignore[attr-defined]
            "order_no": envelope.correlation,
            "body": body,
        }
        for envelope, body in told
    ]
    if connection.execute(_WRITE, {"queue": MERCHANT, "rows": as_json(rows)}).rowcount != len(told):
        raise DuplicateFact("a record of this event was written before")


def resend(connection: Connection, event_ids: Collection[UUID]) -> int:
    """Merchants will be told once more, under the same ids, of those of these events that they were told of; returns of how many.

    Of the others they are yet to be told anyway. Transaction: the caller's. May be repeated.
    """
    return connection.execute(_RESEND, {"ids": list(event_ids)}).rowcount


def claim(connection: Connection, *, limit: int) -> list[Claimed]:
    """Return due records, now the caller's for 30 seconds, in order of due time. Several senders may claim beside it."""
    rows = connection.execute(_CLAIM, {"lease_s": LEASE_S, "limit": limit}).all()
    merchants = sorted({row.merchant_no for row in rows})
    receivers = (
        {row.merchant_no: row for row in connection.execute(_RECEIVERS, {"merchants": merchants})} if rows else {}
    )
    return [
        Claimed(
            id=row.id,
            queue=row.queue,
            merchant_no=row.merchant_no,
            body=row.body,
            url=found.url if (found := receivers.get(row.merchant_no)) else None,
            secret=found.secret if found else None,
        )
        for row in rows
    ]


def mark(connection: Connection, results: Sequence[tuple[UUID, str | None]]) -> None:
    """Sent records are SUCCESS; the others keep their error and are due again when their lease ends."""
    errors = {"ids": [identity for identity, _ in results], "errors": [error for _, error in results]}
    connection.execute(_MARK, errors)


def register_receiver(connection: Connection, merchant_no: str, *, url: str, secret: str) -> None:
    """The merchant is told at this address, signed with this secret. May be repeated: the last one holds."""
    row = {"merchant_no": merchant_no, "url": url, "secret": secret}
    statement = insert(receiver).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=["merchant_no"], set_=row))
