"""What can be done about notifications: send again, pause, resume, change a rule. Each leaves a row in the audit table."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.notification.rules import parse_rule
from outbox.errors import UnknownName


def resend(
    connection: Connection, event_ids: Collection[UUID], *, reason: str = "redelivered", actor: str = "payrelay"
) -> int:
    """The finished notifications of these events, delivered or given up, are due again, under the same ids; returns how many.

    The unfinished ones will be sent anyway. Transaction: the caller's. May be repeated.
    """
    ids = connection.execute(_FINISHED, {"events": list(event_ids)}).scalars().all()
    return len(resend_notifications(connection, ids, reason=reason, actor=actor))


_FINISHED = text("""
    SELECT id FROM notify_record WHERE event_id = ANY (CAST(:events AS uuid[])) AND finished_at IS NOT NULL""")


def resend_notifications(
    connection: Connection, ids: Collection[UUID], *, reason: str, actor: str, act_id: UUID | None = None
) -> list[UUID]:
    """The notifications are due now, under the ids they had, and their rules begin again; returns their ids.

    Whatever their status, but for those being sent just now. Each has a row in the audit table, what was left too, which
    names the bulk action that it is an item of. Transaction: the caller's. May be repeated: each call sends again.
    """
    parameters = {"ids": list(ids), "reason": reason, "actor": actor, "act_id": act_id}
    return list(connection.execute(_RESEND, parameters).scalars())


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
    """Nothing of the queue is sent to the merchant until it is resumed; its notifications wait. Returns whether that was news.

    What is under way is finished. Transaction: the caller's. May be repeated. Raises Refused for an unknown merchant or queue. The
    time is the database's, or `now`.
    """
    require_merchant(connection, queue, merchant_no)
    parameters = {"queue": queue, "merchant_no": merchant_no, "now": now}
    changed = bool(connection.execute(_PAUSE, parameters).rowcount)
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
    parameters = {"queue": queue, "merchant_no": merchant_no, "now": now}
    changed = bool(connection.execute(_RESUME, parameters).rowcount)
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
            f"there is no merchant {merchant_no!r}: it has no receiver, and no notification in queue {queue}. Merchants are shown by: payrelay notify list"
        )


_KNOWN = text("""
    SELECT EXISTS (SELECT FROM receiver WHERE merchant_no = :merchant_no)
        OR EXISTS (SELECT FROM notify_lane WHERE queue = :queue AND merchant_no = :merchant_no)
        OR EXISTS (SELECT FROM notify_record WHERE queue = :queue AND merchant_no = :merchant_no)""")


def rule_of(connection: Connection, queue: str) -> str:
    """Return a queue's present rule; raises Refused for an unknown queue."""
    rule: str | None = connection.execute(_RULE, {"queue": queue}).scalar()
    if rule is None:
        raise UnknownName(f"there is no queue {queue!r}. The queues are shown by: payrelay notify rule list")
    return rule


_RULE = text("SELECT rule FROM notify_queue WHERE queue = :queue")


def set_rule(connection: Connection, queue: str, rule: str, *, reason: str, actor: str) -> None:
    """Notifications made from now on have this rule; those made before keep theirs. Raises Refused for what is no rule.

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
