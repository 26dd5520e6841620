"""Acting on everything that matches: in steps, each a transaction, each item in the audit table. Cut off anywhere, it goes on.

An act is kept with its filter, how far it has come, who wants it and why. Transactions: the caller's, one a step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.notification.search import Filter, conditions, parsed
from outbox.errors import Refused

STEP = 500
"""Records of a step: few enough that no sender waits long for one of them."""


class Action(StrEnum):
    """What is done to each that matches."""

    RESEND = "RESEND"


class Outcome(StrEnum):
    """What came of it."""

    DUE = "DUE"
    """Due now, its rule beginning anew."""
    UNDER_WAY = "UNDER_WAY"
    """Just being sent: left as it was."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an act has come."""

    id: int
    matched: int
    """When it began."""
    done: int
    left: int
    """Looked at, and left as they were."""
    ended: bool


def begin_resend(connection: Connection, wanted: Filter, *, matched: int, newest: UUID, reason: str, actor: str) -> int:
    """Everything that matches and is no newer than that record is to be sent again; returns the act's number.

    Raises Refused without a reason.
    """
    if not reason.strip():
        raise Refused("say why: the reason is kept in the audit table")
    given = {"matched": matched, "newest": newest, "reason": reason.strip(), "actor": actor}
    number: int = connection.execute(_BEGIN, {**given, "wanted": json.dumps(wanted.given())}).scalar_one()
    return number


_BEGIN = text("""
    INSERT INTO notify_act (action, wanted, matched, newest, reason, actor)
    VALUES ('RESEND', CAST(:wanted AS jsonb), :matched, :newest, :reason, :actor) RETURNING id""")


def step(connection: Connection, number: int, *, limit: int = STEP) -> Progress:
    """The act's next records are due, each with its row in the audit table. May be repeated, and run beside itself.

    Raises Refused for a number that is no act's.
    """
    act = connection.execute(_ACT, {"id": number}).first()
    if act is None:
        raise Refused(f"there is no act {number}")
    if act.ended_at is not None:
        return _progress(act)
    ids = _next(connection, act, limit)
    due = resend_records(connection, ids, reason=act.reason, actor=act.actor, act_id=number)
    given = {"id": number, "last": max(ids, default=act.last), "due": len(due), "left": len(ids) - len(due)}
    return _progress(connection.execute(_ADVANCE, {**given, "ended": len(ids) < limit}).one())


_ACT = text("SELECT * FROM notify_act WHERE id = :id FOR UPDATE")

_ADVANCE = text("""
    UPDATE notify_act SET last = :last, done = done + :due, "left" = "left" + :left,
                          ended_at = CASE WHEN :ended THEN clock_timestamp() END
    WHERE id = :id RETURNING *""")


def stop(connection: Connection, number: int, *, actor: str) -> bool:
    """The act goes no further; what it did stands. Returns whether it had not ended before. May be repeated."""
    return bool(connection.execute(_STOP, {"id": number, "actor": actor}).rowcount)


_STOP = text("""
    UPDATE notify_act SET ended_at = clock_timestamp(), stopped_by = :actor WHERE id = :id AND ended_at IS NULL""")


def _next(connection: Connection, act: Any, limit: int) -> list[UUID]:
    where, given = conditions(parsed(act.wanted))
    statement = f"""
        SELECT id FROM notify_record
        WHERE {where} AND id <= :newest AND (CAST(:last AS uuid) IS NULL OR id > :last) ORDER BY id LIMIT :limit"""  # noqa: S608
    asked = {**given, "newest": act.newest, "last": act.last, "limit": limit}
    return list(connection.execute(text(statement), asked).scalars())


def _progress(act: Any) -> Progress:
    return Progress(id=act.id, matched=act.matched, done=act.done, left=act.left, ended=act.ended_at is not None)


def resend_records(
    connection: Connection, ids: Sequence[UUID], *, reason: str, actor: str, act_id: int | None = None
) -> set[UUID]:
    """The records are due now, under their ids, their rules beginning anew; returns which. Those just being sent are left.

    Each has a row in the audit table, those left too. May be repeated: each call sends once more.
    """
    given = {"ids": list(ids), "reason": reason, "actor": actor, "act_id": act_id}
    return set(connection.execute(_RESEND, given).scalars())


# Rows under a lease are not locked: their sender updates them in an order of its own.
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
             :reason, :actor, :act_id
      FROM notify_record AS record LEFT JOIN due USING (id) WHERE record.id = ANY (CAST(:ids AS uuid[])))
    SELECT id FROM due""")


def unfinished(connection: Connection) -> list[int]:
    """Return the acts that have not come to their end."""
    return list(connection.execute(text("SELECT id FROM notify_act WHERE ended_at IS NULL ORDER BY id")).scalars())
