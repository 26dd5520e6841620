"""What merchants are to be told, as rows; telling them is the sender's, after the commit. And who is told, and how."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.delivery.loop import DuplicateFact
from consumers.notification.bodies import bank_body_of, body_of
from consumers.notification.notifier.ssrf import ForbiddenAddress, check_url
from consumers.notification.queues import BANK, MERCHANT, PLATFORM
from consumers.notification.rules import parse_rule
from outbox.errors import Refused, UnknownName
from outbox.record import refuse_ahead
from outbox.rows import as_json
from schemas.codec import Envelope
from schemas.events import BankTransactionExecuted
from schemas.signature import SECRET_FORM, is_secret


def write_records(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each settled or failed payment has a record to be sent. Transaction: the caller's. Raises DuplicateFact."""
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


def write_bank_records(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each transaction of the bank has a record to be sent to the platform. Transaction: the caller's. Raises DuplicateFact."""
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
    """Each row is a record of the queue, with the queue's rule as it is now, due by it. Raises DuplicateFact.

    A row is event_id, merchant_no, payment_no, order_no, body. Transaction: the caller's. Raises AheadOfClock as `record` does.
    """
    if not rows:
        return
    rule = rule_of(connection, queue)
    asked = {"queue": queue, "rule": rule, "first_s": parse_rule(rule).delays[0].total_seconds(), "rows": as_json(rows)}
    written = connection.execute(_WRITE, asked).one()
    if written.records != len(rows):
        raise DuplicateFact("a record of this event was written before")
    refuse_ahead(connection, written.last, written.at)


_WRITE = text("""
    WITH made AS MATERIALIZED (SELECT clock_timestamp() AS at),
    written AS (
      INSERT INTO notify_record (queue, rule, created_at, planned_at, event_id, merchant_no, payment_no, order_no, body)
      SELECT :queue, :rule, made.at, made.at + make_interval(secs => :first_s), told.*
      FROM made, json_to_recordset(CAST(:rows AS json))
           AS told (event_id uuid, merchant_no text, payment_no text, order_no text, body text)
      ON CONFLICT (queue, event_id) DO NOTHING
      RETURNING id, merchant_no, planned_at),
    woken AS (
      INSERT INTO notify_wake (queue, merchant_no, planned_at)
      SELECT :queue, merchant_no, min(planned_at) FROM written GROUP BY merchant_no)
    SELECT count(*) AS records, (array_agg(id ORDER BY id DESC))[1] AS last, (SELECT at FROM made) AS at FROM written""")


def resend(
    connection: Connection, event_ids: Collection[UUID], *, reason: str = "redelivered", actor: str = "payrelay"
) -> int:
    """Receivers will be told once more, under the same ids, of those of these events that they were told of; returns of how many.

    Or that were given up: of the others they are yet to be told anyway. Transaction: the caller's. May be repeated.
    """
    ids = connection.execute(_FINISHED, {"events": list(event_ids)}).scalars().all()
    return len(resend_records(connection, ids, reason=reason, actor=actor))


_FINISHED = text("""
    SELECT id FROM notify_record WHERE event_id = ANY (CAST(:events AS uuid[])) AND finished_at IS NOT NULL""")


def resend_records(
    connection: Connection, ids: Collection[UUID], *, reason: str, actor: str, act_id: UUID | None = None
) -> list[UUID]:
    """The records are due now, under the ids they had, their rules beginning anew; returns their ids.

    Whatever their status, but for those being sent just now. Each has a row in the audit table, what was left too, which
    names the act that it is an item of. Transaction: the caller's. May be repeated: each call sends once more.
    """
    asked = {"ids": list(ids), "reason": reason, "actor": actor, "act_id": act_id}
    return list(connection.execute(_RESEND, asked).scalars())


# What is under a lease is not locked: its sender updates it in an order of its own.
_RESEND = text("""
    WITH chosen AS (
      SELECT id, planned_at FROM notify_record WHERE id = ANY (CAST(:ids AS uuid[])) AND leased_until IS NULL
      ORDER BY id FOR UPDATE),
    due AS (
      UPDATE notify_record AS record
      SET status = 'CREATED', finished_at = NULL, rule_begin = record.attempts, planned_at = clock_timestamp(), postponed = true
      FROM chosen WHERE record.id = chosen.id
      RETURNING record.id, record.queue, record.merchant_no, record.attempts, record.planned_at, chosen.planned_at AS was),
    woken AS (
      INSERT INTO notify_wake (queue, merchant_no, planned_at)
      SELECT queue, merchant_no, min(planned_at) FROM due GROUP BY queue, merchant_no),
    noted AS (
      INSERT INTO notify_postponement (record_id, attempt, cause, planned_at, postponed_to)
      SELECT id, attempts + 1, 'RESEND', was, planned_at FROM due),
    audited AS (
      INSERT INTO notify_audit (action, queue, merchant_no, record_id, outcome, reason, actor, act_id)
      SELECT 'RESEND', record.queue, record.merchant_no, record.id, CASE WHEN due.id IS NULL THEN 'UNDER_WAY' ELSE 'DUE' END,
             :reason, :actor, CAST(:act_id AS uuid)
      FROM notify_record AS record LEFT JOIN due USING (id) WHERE record.id = ANY (CAST(:ids AS uuid[])))
    SELECT id FROM due ORDER BY id""")


def pause(
    connection: Connection, queue: str, merchant_no: str, *, reason: str, actor: str, now: datetime | None = None
) -> bool:
    """Nothing of the queue is sent to the merchant until it is resumed; its records wait. Returns whether that was news.

    What is under way is finished. Transaction: the caller's. May be repeated. Raises Refused for an unknown merchant or queue. The
    time is the database's, or `now`.
    """
    require_merchant(connection, queue, merchant_no)
    asked = {"queue": queue, "merchant_no": merchant_no, "now": now}
    changed = bool(connection.execute(_PAUSE, asked).rowcount)
    _audit(connection, "PAUSE", queue, merchant_no, "PAUSED" if changed else "WAS_PAUSED", reason=reason, actor=actor)
    return changed


_PAUSE = text("""
    INSERT INTO notify_lane AS lane (queue, merchant_no, paused_at)
    VALUES (:queue, :merchant_no, coalesce(CAST(:now AS timestamptz), clock_timestamp()))
    ON CONFLICT (queue, merchant_no) DO UPDATE SET paused_at = EXCLUDED.paused_at, ready_at = NULL WHERE lane.paused_at IS NULL""")


def resume(
    connection: Connection, queue: str, merchant_no: str, *, reason: str, actor: str, now: datetime | None = None
) -> bool:
    """The queue is sent to the merchant again, from what waited longest on; its breaker is closed. Returns whether that was news.

    Transaction: the caller's. May be repeated. Raises Refused for an unknown merchant or queue. The time is the database's, or `now`.
    """
    require_merchant(connection, queue, merchant_no)
    asked = {"queue": queue, "merchant_no": merchant_no, "now": now}
    changed = bool(connection.execute(_RESUME, asked).rowcount)
    _audit(connection, "RESUME", queue, merchant_no, "RESUMED" if changed else "NOT_PAUSED", reason=reason, actor=actor)
    return changed


_RESUME = text("""
    UPDATE notify_lane SET paused_at = NULL, resumed_at = clock.now, ready_at = clock.now, failures = 0, opened_at = NULL,
                           blocked_until = NULL, blocked_cause = NULL
    FROM (SELECT coalesce(CAST(:now AS timestamptz), clock_timestamp()) AS now) AS clock
    WHERE queue = :queue AND merchant_no = :merchant_no
      AND (paused_at IS NOT NULL OR blocked_until > clock.now OR failures > 0)""")


def require_merchant(connection: Connection, queue: str, merchant_no: str) -> None:
    """The queue has, or may have, something for this merchant; raises Refused otherwise."""
    rule_of(connection, queue)
    if not connection.execute(_KNOWN, {"queue": queue, "merchant_no": merchant_no}).scalar_one():
        raise UnknownName(
            f"no merchant {merchant_no!r}: it has no receiver, and no notification in queue {queue}; payrelay notify list shows some"
        )


_KNOWN = text("""
    SELECT EXISTS (SELECT FROM receiver WHERE merchant_no = :merchant_no)
        OR EXISTS (SELECT FROM notify_lane WHERE queue = :queue AND merchant_no = :merchant_no)
        OR EXISTS (SELECT FROM notify_record WHERE queue = :queue AND merchant_no = :merchant_no)""")


def rule_of(connection: Connection, queue: str) -> str:
    """Return a queue's rule as it is now; raises Refused for a queue that is none."""
    rule: str | None = connection.execute(_RULE, {"queue": queue}).scalar()
    if rule is None:
        raise UnknownName(f"no queue {queue!r}: payrelay notify rule list")
    return rule


_RULE = text("SELECT rule FROM notify_queue WHERE queue = :queue")


def set_rule(connection: Connection, queue: str, rule: str, *, reason: str, actor: str) -> None:
    """Records made from now on have this rule; those made before keep theirs. Raises Refused for what is no rule.

    Transaction: the caller's. May be repeated.
    """
    parse_rule(rule)
    before = rule_of(connection, queue)
    connection.execute(_SET_RULE, {"queue": queue, "rule": rule})
    _audit(connection, "RULE", queue, None, f"{before} became {rule}", reason=reason, actor=actor)


_SET_RULE = text("UPDATE notify_queue SET rule = :rule WHERE queue = :queue")


def _audit(
    connection: Connection, action: str, queue: str, merchant_no: str | None, outcome: str, *, reason: str, actor: str
) -> None:
    given = {"action": action, "queue": queue, "merchant_no": merchant_no, "outcome": outcome}
    connection.execute(_AUDIT, {**given, "reason": reason, "actor": actor})


_AUDIT = text("""
    INSERT INTO notify_audit (action, queue, merchant_no, outcome, reason, actor)
    VALUES (:action, :queue, :merchant_no, :outcome, :reason, :actor)""")


def register_receiver(connection: Connection, merchant_no: str, *, url: str, secret: str) -> None:
    """The merchant is notified at this address, signed with this secret alone. May be repeated: the last one holds.

    Transaction: the caller's. Raises Refused for an address or a secret that cannot be a receiver's. Whether it may be a private
    address depends on where it is sent from: the notifier's setting.
    """
    try:
        check_url(url, allow_private=True)
    except ForbiddenAddress as error:
        raise Refused(f"{url[:200]!r} cannot be a receiver's address: {error}") from error
    if not is_secret(secret):
        raise Refused(f"the secret of receiver {merchant_no!r} must be {SECRET_FORM}")
    connection.execute(_REGISTER, {"merchant_no": merchant_no, "url": url, "secret": secret})


_REGISTER = text("""
    INSERT INTO receiver (merchant_no, url, secret) VALUES (:merchant_no, :url, :secret)
    ON CONFLICT (merchant_no) DO UPDATE
    SET url = EXCLUDED.url, secret = EXCLUDED.secret, old_secret = NULL, old_secret_until = NULL""")


def rotate_secret(connection: Connection, merchant_no: str, *, secret: str, old_until: datetime) -> None:
    """Notifications are signed with the new secret, and with the one before it too until then: either verifies.

    Transaction: the caller's. Repeatable: the same secret again only moves the end. Raises Refused.
    """
    if not is_secret(secret):
        raise Refused(f"a secret is {SECRET_FORM}")
    asked = {"merchant_no": merchant_no, "secret": secret, "until": old_until}
    if not connection.execute(_ROTATE, asked).rowcount:
        raise UnknownName(f"merchant {merchant_no!r} has no receiver")


_ROTATE = text("""
    UPDATE receiver
    SET old_secret = CASE WHEN secret = :secret THEN old_secret ELSE secret END, secret = :secret,
        old_secret_until = CASE WHEN secret <> :secret OR old_secret IS NOT NULL THEN CAST(:until AS timestamptz) END
    WHERE merchant_no = :merchant_no""")
