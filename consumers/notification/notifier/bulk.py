"""Bulk actions on everything that matches: in steps, each a transaction, each item in the audit table. One that is cut off goes on.

An act is kept with its filter, how far it has come, who wants it and why. Transactions: the caller's, one a step.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.notification.control import resend_notifications
from consumers.notification.notifier.filter import NotificationFilter, conditions, parsed
from outbox.errors import Refused

STEP = 500
"""Notifications of a step: few enough that no sender waits long for one of them."""
COUNTED_MAX = 100_000
"""What matches beyond is not counted, and acted on all the same."""


@dataclass(frozen=True, kw_only=True)
class BulkProgress:
    """How far a bulk action has come."""

    matched: int
    """When it began, counted up to 100,000."""
    done: int
    busy: int
    """Just being sent when it was their turn: left as they were."""
    ended: bool


def begin_resend(
    connection: Connection, identity: UUID, wanted: NotificationFilter, *, newest: UUID, reason: str, actor: str
) -> int:
    """Everything that matches and is no newer than that notification is to be sent again, by `step`; returns how much matches.

    Where nothing does there is no act. May be repeated: an act begun before is left as it is. Raises Refused without a reason.
    """
    if not reason.strip():
        raise Refused("the reason is empty: say why, because the audit table keeps it")
    matched = count_matching(connection, wanted, newest=newest)
    if matched:
        parameters = {"id": identity, "wanted": json.dumps(wanted.given()), "matched": matched, "newest": newest}
        connection.execute(_BEGIN, {**parameters, "reason": reason.strip(), "actor": actor})
    return matched


_BEGIN = text("""
    INSERT INTO notify_act (id, action, wanted, matched, newest, reason, actor)
    VALUES (:id, 'RESEND', CAST(:wanted AS jsonb), :matched, :newest, :reason, :actor) ON CONFLICT (id) DO NOTHING""")


def count_matching(connection: Connection, wanted: NotificationFilter, *, newest: UUID) -> int:
    """Return how many notifications match and are no newer than that one, counted up to 100,000."""
    where, given = conditions(wanted)
    statement = (
        f"SELECT count(*) FROM (SELECT FROM notify_record WHERE {where} AND id <= :newest LIMIT :most) AS record"  # noqa: S608
    )
    matched: int = connection.execute(text(statement), {**given, "newest": newest, "most": COUNTED_MAX}).scalar_one()
    return matched


def step(connection: Connection, identity: UUID, *, limit: int = STEP) -> BulkProgress:
    """The bulk action's next notifications are due, each with its row in the audit table. May be repeated, and run beside itself.

    Raises Refused for an id that is no act's.
    """
    act = connection.execute(_ACT, {"id": identity}).first()
    if act is None:
        raise Refused(f"there is no bulk action {identity}")
    if act.ended_at is not None:
        return _progress(act)
    ids = _next(connection, act, limit)
    due = resend_notifications(connection, ids, reason=act.reason, actor=act.actor, act_id=identity)
    given = {"id": identity, "last": max(ids, default=act.last), "due": len(due), "busy": len(ids) - len(due)}
    return _progress(connection.execute(_ADVANCE, {**given, "ended": len(ids) < limit}).one())


_ACT = text("SELECT * FROM notify_act WHERE id = :id FOR UPDATE")

_ADVANCE = text("""
    UPDATE notify_act SET last = :last, done = done + :due, busy = busy + :busy,
                          ended_at = CASE WHEN :ended THEN clock_timestamp() END
    WHERE id = :id RETURNING *""")


def stop(connection: Connection, identity: UUID, *, actor: str) -> bool:
    """The bulk action goes no further; what it did stays. Returns whether it had not ended before. May be repeated."""
    return bool(connection.execute(_STOP, {"id": identity, "actor": actor}).rowcount)


_STOP = text("""
    UPDATE notify_act SET ended_at = clock_timestamp(), stopped_by = :actor WHERE id = :id AND ended_at IS NULL""")


def unfinished(connection: Connection) -> list[UUID]:
    """Return the bulk actions that have not ended, the oldest first."""
    return list(connection.execute(text("SELECT id FROM notify_act WHERE ended_at IS NULL ORDER BY id")).scalars())


def _next(connection: Connection, act: Any, limit: int) -> list[UUID]:
    where, given = conditions(parsed(act.wanted))
    statement = f"""
        SELECT id FROM notify_record
        WHERE {where} AND id <= :newest AND (CAST(:last AS uuid) IS NULL OR id > :last) ORDER BY id LIMIT :limit"""  # noqa: S608
    parameters = {**given, "newest": act.newest, "last": act.last, "limit": limit}
    return list(connection.execute(text(statement), parameters).scalars())


def _progress(act: Any) -> BulkProgress:
    return BulkProgress(matched=act.matched, done=act.done, busy=act.busy, ended=act.ended_at is not None)
