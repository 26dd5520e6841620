"""Whose notifications are sent next, and what becomes of those that were: receiver by receiver, in order of due time, under a lease.

A turn looks at lanes that are worth a look, never at what is blocked or not yet due. Time is the caller's `now`, by the
database's clock: `look` reads it.
Transactions: the caller's, each function in one of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.notification.notifier.lanes import (
    Evidence,
    Lane,
    Pace,
    Queue,
    Result,
    Room,
    after,
    bound,
    hanging,
    held_back,
    shares,
    slots,
)
from consumers.notification.rules import parse_rule
from outbox.errors import UnknownName
from outbox.rows import as_json

LEASE_S = 30.0
"""How long a claimed notification is its sender's: longer than an attempt may take, and than it takes to write down."""
LANES_MAX = 200
"""Lanes of each kind looked at in a claim."""
LOOK_AGAIN = timedelta(seconds=1)
"""After it a lane is looked at again that has attempts under way, and could have more if there were places."""
WAKES_MAX = 2_000
EXPIRED_MAX = 1_000
LEGIBLE_MAX = 2_000
"""Characters kept of an answer and of an error."""
IS_PROMPT, IS_OTHER = "pace = 'PROMPT'", "pace IS DISTINCT FROM 'PROMPT'"
"""As the indexes of each kind's lanes have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A notification that the caller may send until its lease ends."""

    id: UUID
    queue: str
    merchant_no: str
    body: str
    rule: str
    attempt: int
    rule_begin: int
    planned_at: datetime
    postponed: bool
    leased_until: datetime
    url: str | None
    secret: str | None
    old_secret: str | None
    prompt: bool = False
    """Its receiver was prompt the last time: the attempt has a slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An attempt that was made."""

    claimed: Claimed
    started_at: datetime
    ended_at: datetime
    result: Result
    http_status: int | None = None
    response: str = ""
    error: str = ""
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NextState:
    """What becomes of a notification after an attempt."""

    status: str
    finished_at: datetime | None
    planned_at: datetime
    """By the rule; of a finished notification as it was."""
    postponed_to: datetime | None = None
    cause: str | None = None


def queue_of(connection: Connection, queue: str) -> Queue:
    """Return a queue's limits; raises Refused for an unknown queue."""
    row = connection.execute(text("SELECT * FROM notify_queue WHERE queue = :queue"), {"queue": queue}).first()
    if row is None:
        raise UnknownName(f"there is no queue {queue!r}. The queues are shown by: payrelay notify rule list")
    return Queue(**{field.name: getattr(row, field.name) for field in fields(Queue)})


def verdict(ended: Ended, lane: Lane) -> NextState:
    """Return what becomes of a notification, by its rule and the lane as it is after the attempt. Pure."""
    if ended.result is Result.SUCCESS:
        return NextState(status="SUCCESS", finished_at=ended.ended_at, planned_at=ended.claimed.planned_at)
    attempt = ended.claimed.attempt - ended.claimed.rule_begin
    planned = parse_rule(ended.claimed.rule).next_at(attempt, started_at=ended.started_at, ended_at=ended.ended_at)
    if planned is None:
        return NextState(status="FAILED", finished_at=ended.ended_at, planned_at=ended.claimed.planned_at)
    if lane.blocked_until is not None and lane.blocked_until > planned:
        return NextState(
            status=ended.result,
            finished_at=None,
            planned_at=planned,
            postponed_to=lane.blocked_until,
            cause=lane.blocked_cause,
        )
    return NextState(status=ended.result, finished_at=None, planned_at=planned)


def look(connection: Connection, queue: str, room: Room) -> tuple[datetime, bool]:
    """Return the database's time, and whether a turn may find something to claim into the room that is left."""
    row = connection.execute(_LOOK, {"queue": queue, "prompt": room.prompt > 0, "other": room.other > 0}).one()
    return row.now, row.is_due


_LOOK = text(f"""
    SELECT now, EXISTS (SELECT FROM notify_wake WHERE queue = :queue)
        OR :prompt AND EXISTS (SELECT FROM notify_lane WHERE queue = :queue AND {IS_PROMPT} AND ready_at <= now)
        OR :other AND EXISTS (SELECT FROM notify_lane WHERE queue = :queue AND {IS_OTHER} AND ready_at <= now) AS is_due
    FROM (SELECT clock_timestamp() AS now) AS clock""")  # noqa: S608 - constants of ours


def take_wakes(connection: Connection, queue: str) -> int:
    """Lanes that something was made due in are worth a look by then; returns how many. May be repeated, and run beside itself.

    In a transaction of its own: it waits for lanes, in order, and must hold none meanwhile.
    """
    return connection.execute(_WAKE, {"queue": queue, "limit": WAKES_MAX}).rowcount


_WAKE = text("""
    WITH woken AS (
      DELETE FROM notify_wake WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM notify_wake WHERE queue = :queue LIMIT :limit FOR UPDATE SKIP LOCKED))
      RETURNING merchant_no, planned_at)
    INSERT INTO notify_lane AS lane (queue, merchant_no, ready_at)
    SELECT :queue, merchant_no, min(planned_at) FROM woken GROUP BY merchant_no ORDER BY merchant_no
    ON CONFLICT (queue, merchant_no) DO UPDATE
    SET ready_at = least(lane.ready_at, greatest(EXCLUDED.ready_at, lane.blocked_until))
    WHERE lane.paused_at IS NULL""")


def turn(
    connection: Connection,
    queue: Queue,
    ended: Sequence[Ended] = (),
    *,
    now: datetime,
    limit: int = 0,
    room: Room | None = None,
    lease_s: float = LEASE_S,
    slow: Collection[str] = (),
    newly_slow: Collection[str] = (),
) -> list[Claimed]:
    """Finish what has ended, and return as many due notifications, now the caller's until their lease ends.

    Each attempt that ended is in the log. Its notification is finished, or due by its rule, unless somebody else has claimed it since;
    a SUCCESS counts even then. `slow` names the receivers with an attempt under way for more than a second, `newly_slow` those of
    them that no turn knows of yet: they are prompt no more. Claimed are the longest waiting receivers' notifications first, of each
    the longest due, shared out evenly: into the room of their kind, or `limit` of each. What a lane had held back is noted with
    its cause. Several senders may take turns side by side. Not repeatable: the log would have the attempts twice.
    """
    room = room or Room(prompt=limit, other=limit)
    known = _finish(connection, queue, ended, newly_slow, now=now)
    known |= {merchant_no: hanging(known[merchant_no]) for merchant_no in known.keys() & {*slow, *newly_slow}}
    rows = _ready(connection, queue, room, known, now=now)
    if not rows:
        return []
    lanes = {row.merchant_no: known.get(row.merchant_no) or _lane(row) for row in rows}
    free = {
        row.merchant_no: slots(lanes[row.merchant_no], row.in_flight, queue, now=now)
        if row.next and row.next <= now
        else 0
        for row in rows
    }
    given = _given(rows, lanes, free, room)
    orders = [_order(merchant_no, lanes[merchant_no], share, queue) for merchant_no, share in given.items() if share]
    claimed = _claim(connection, queue, orders, now=now, lease_s=lease_s) if orders else ()
    places = {row.merchant_no: min(row.ready_at or now, now) for row in rows}
    places |= {row.merchant_no: now for row in claimed}
    for row in rows:
        is_left_over = row.in_flight and free[row.merchant_no] and not given[row.merchant_no]
        if is_left_over and not _is_prompt(lanes[row.merchant_no]):
            places[row.merchant_no] = now + LOOK_AGAIN
    _save(connection, queue, lanes, places, now=now)
    return [
        Claimed(**row._mapping, prompt=_is_prompt(lanes[row.merchant_no]))
        for row in sorted(claimed, key=lambda row: (row.planned_at, row.id))
    ]


def _claim(
    connection: Connection, queue: Queue, orders: Sequence[Mapping[str, Any]], *, now: datetime, lease_s: float
) -> Sequence[Any]:
    until = now + timedelta(seconds=lease_s)
    parameters = {"queue": queue.queue, "now": now, "until": until, "orders": as_json(orders)}
    return connection.execute(_CLAIM, parameters).all()


def _is_prompt(lane: Lane) -> bool:
    return lane.pace == Pace.PROMPT


def _ready(connection: Connection, queue: Queue, room: Room, known: Mapping[str, Lane], *, now: datetime) -> list[Any]:
    """Return the lanes to look at, locked, the longest waiting first: those known, and of each kind those that may have room.

    Where only the last slots are left, they are for receivers that hold none: only those are looked at.
    """
    parameters = {
        "queue": queue.queue,
        "now": now,
        "known": sorted(known),
        "limit": max(0, min(room.prompt, LANES_MAX)),
        "others": max(0, min(room.other, LANES_MAX)),
        "last": room.prompt <= room.prompt_kept,
    }
    rows = connection.execute(_READY, parameters).all()
    return sorted(rows, key=lambda row: row.ready_at or now)


def _given(rows: Sequence[Any], lanes: Mapping[str, Lane], free: Mapping[str, int], room: Room) -> dict[str, int]:
    """Return how many places each lane takes, of its kind."""
    given: dict[str, int] = {}
    for is_prompt, left, kept in ((True, room.prompt, room.prompt_kept), (False, room.other, room.other_kept)):
        mine = [row for row in rows if _is_prompt(lanes[row.merchant_no]) is is_prompt]
        holds = [row.in_flight for row in mine]
        shared = shares([free[row.merchant_no] for row in mine], left, holds=holds, kept=kept)
        given |= {row.merchant_no: share for row, share in zip(mine, shared, strict=True)}
    return given


def _order(merchant_no: str, lane: Lane, share: int, queue: Queue) -> dict[str, Any]:
    until, cause = held_back(lane) or (None, None)
    # The bound is checked again: another sender may have claimed of the lane while it was being locked here.
    return {
        "merchant_no": merchant_no,
        "share": share,
        "bound": bound(lane, queue),
        "held_until": until,
        "cause": cause,
    }


_READY = text(f"""
    WITH prompt AS MATERIALIZED (
      SELECT * FROM notify_lane AS lane
      WHERE queue = :queue AND {IS_PROMPT} AND ready_at <= :now AND merchant_no <> ALL (CAST(:known AS text[]))
        AND NOT (:last AND EXISTS (SELECT FROM notify_record AS record
                                   WHERE record.queue = :queue AND record.merchant_no = lane.merchant_no
                                     AND record.leased_until IS NOT NULL))
      ORDER BY ready_at LIMIT :limit FOR UPDATE SKIP LOCKED),
    other AS MATERIALIZED (
      SELECT * FROM notify_lane
      WHERE queue = :queue AND {IS_OTHER} AND ready_at <= :now AND merchant_no <> ALL (CAST(:known AS text[]))
      ORDER BY ready_at LIMIT :others FOR UPDATE SKIP LOCKED),
    looked_at AS (
      SELECT * FROM prompt
      UNION ALL
      SELECT * FROM other
      UNION ALL
      SELECT lane.* FROM unnest(CAST(:known AS text[])) AS known (merchant_no) CROSS JOIN LATERAL (
        SELECT * FROM notify_lane WHERE queue = :queue AND merchant_no = known.merchant_no LIMIT 1) AS lane)
    SELECT *, (SELECT count(*) FROM notify_record AS record
               WHERE record.queue = :queue AND record.merchant_no = looked_at.merchant_no
                 AND record.leased_until IS NOT NULL) AS in_flight,
           (SELECT record.planned_at FROM notify_record AS record
            WHERE record.queue = :queue AND record.merchant_no = looked_at.merchant_no
              AND record.leased_until IS NULL AND record.finished_at IS NULL
            ORDER BY record.planned_at, record.id LIMIT 1) AS next
    FROM looked_at""")  # noqa: S608 - constants of ours

_CLAIM = text("""
    WITH due AS (
      SELECT first.*, wanted.held_until, wanted.cause
      FROM json_to_recordset(CAST(:orders AS json))
           AS wanted (merchant_no text, share integer, bound integer, held_until timestamptz, cause text)
      CROSS JOIN LATERAL (
        SELECT id, planned_at FROM notify_record AS record
        WHERE record.queue = :queue AND record.merchant_no = wanted.merchant_no
          AND record.leased_until IS NULL AND record.finished_at IS NULL AND record.planned_at <= :now
        ORDER BY record.planned_at, record.id
        LIMIT greatest(0, least(wanted.share, wanted.bound - (
          SELECT count(*) FROM notify_record AS leased
          WHERE leased.queue = :queue AND leased.merchant_no = wanted.merchant_no AND leased.leased_until IS NOT NULL)))
        FOR UPDATE SKIP LOCKED) AS first),
    claimed AS (
      UPDATE notify_record AS record
      SET leased_until = :until, postponed = record.postponed OR coalesce(due.planned_at < due.held_until, false),
          planned_at = greatest(due.planned_at, due.held_until)
      FROM due WHERE record.id = due.id
      RETURNING record.*, due.planned_at AS was, due.cause),
    noted AS (
      INSERT INTO notify_postponement (record_id, attempt, cause, planned_at, postponed_to)
      SELECT id, attempts + 1, cause, was, planned_at FROM claimed WHERE was < planned_at)
    SELECT claimed.id, claimed.queue, claimed.merchant_no, claimed.body, claimed.rule, claimed.attempts + 1 AS attempt,
           claimed.rule_begin, claimed.planned_at, claimed.postponed, claimed.leased_until, receiver.url, receiver.secret,
           CASE WHEN receiver.old_secret_until > :now THEN receiver.old_secret END AS old_secret
    FROM claimed LEFT JOIN receiver USING (merchant_no)""")


def _finish(
    connection: Connection, queue: Queue, ended: Sequence[Ended], newly_slow: Collection[str], *, now: datetime
) -> dict[str, Lane]:
    """Return their lanes, and those that were not known to be slow, locked, as they are known to be by now."""
    if not ended and not newly_slow:
        return {}
    of_lane: dict[str, list[Ended]] = {merchant_no: [] for merchant_no in newly_slow}
    for attempt in ended:
        of_lane.setdefault(attempt.claimed.merchant_no, []).append(attempt)
    locked = connection.execute(_LOCK, {"queue": queue.queue, "merchants": sorted(of_lane)}).all()
    lanes = {
        row.merchant_no: after(_lane(row), [_evidence(attempt) for attempt in of_lane[row.merchant_no]], queue, now=now)
        for row in locked
    }
    for part in _apart(ended):
        rows = [_row(attempt, verdict(attempt, lanes[attempt.claimed.merchant_no])) for attempt in part]
        connection.execute(_FINISH, {"queue": queue.queue, "rows": as_json(rows)})
    return lanes


def _apart(ended: Sequence[Ended]) -> list[list[Ended]]:
    """Return the attempts in parts, none with a notification twice: what was claimed again after its lease may end in one turn.

    A notification's SUCCESS comes first: nothing else may count before it.
    """
    parts: list[dict[UUID, Ended]] = []
    for finished in sorted(ended, key=lambda attempt: attempt.result is not Result.SUCCESS):
        part = next((part for part in parts if finished.claimed.id not in part), None)
        if part is None:
            parts.append(part := {})
        part[finished.claimed.id] = finished
    return [list(part.values()) for part in parts]


def _row(ended: Ended, what: NextState) -> dict[str, Any]:
    of = ended.claimed
    return {
        "id": of.id,
        "merchant_no": of.merchant_no,
        "lease": of.leased_until,
        "attempt": of.attempt,
        "rule_begin": of.rule_begin,
        "was_planned": of.planned_at,
        "was_postponed": of.postponed,
        "started_at": ended.started_at,
        "ended_at": ended.ended_at,
        "url": of.url or "",
        "result": ended.result,
        "http_status": ended.http_status,
        "response": legible(ended.response),
        "error": legible(ended.error),
        "status": what.status,
        "finished_at": what.finished_at,
        "planned_at": what.planned_at,
        "postponed_to": what.postponed_to,
        "cause": what.cause,
    }


def legible(content: str) -> str:
    """Return what a text column takes of it: no NUL, no lone surrogate, at most 2,000 characters."""
    return content[:LEGIBLE_MAX].replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


_LOCK = text("""
    SELECT * FROM notify_lane WHERE queue = :queue AND merchant_no = ANY (CAST(:merchants AS text[]))
    ORDER BY merchant_no FOR UPDATE""")

_FINISH = text("""
    WITH ended AS (
      SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS ended (
        id uuid, merchant_no text, lease timestamptz, attempt integer, rule_begin integer, was_planned timestamptz, was_postponed boolean,
        started_at timestamptz, ended_at timestamptz, url text, result text, http_status integer, response text, error text,
        status text, finished_at timestamptz, planned_at timestamptz, postponed_to timestamptz, cause text)),
    counted AS (
      UPDATE notify_record AS record
      SET status = ended.status, attempts = record.attempts + 1, finished_at = ended.finished_at, leased_until = NULL,
          planned_at = coalesce(ended.postponed_to, ended.planned_at),
          postponed = CASE WHEN ended.finished_at IS NULL THEN ended.postponed_to IS NOT NULL ELSE record.postponed END,
          http_status = ended.http_status, last_error = nullif(ended.error, '')
      FROM ended
      WHERE record.id = ended.id AND record.rule_begin = ended.rule_begin
        AND CASE ended.result WHEN 'SUCCESS' THEN record.status <> 'SUCCESS'
            ELSE record.finished_at IS NULL AND record.attempts = ended.attempt - 1
                 AND coalesce(record.leased_until = ended.lease, true) END
      RETURNING ended.*, record.attempts AS number),
    noted AS (
      INSERT INTO notify_postponement (record_id, attempt, cause, planned_at, postponed_to)
      SELECT id, number + 1, cause, planned_at, postponed_to FROM counted WHERE postponed_to IS NOT NULL)
    INSERT INTO notify_record_log (record_id, attempt, queue, merchant_no, planned_at, postponed, started_at, ended_at, url,
                                   result, http_status, response, error, counted)
    SELECT id, number, :queue, merchant_no, was_planned, was_postponed, started_at, ended_at, url, result, http_status, response,
           error, true
    FROM counted
    UNION ALL
    SELECT id, attempt, :queue, merchant_no, was_planned, was_postponed, started_at, ended_at, url, result, http_status, response,
           error, false
    FROM ended WHERE ((id, lease) IN (SELECT id, lease FROM counted)) IS NOT TRUE""")
# IN as a value is looked up in a hash table: a join of what just ended would compare each with each.
# A SUCCESS counts whoever has the record by now: as the next attempt, once, unless it was sent again since, which starts a rule again.
# Anything else counts only as the attempt that it was, and while nobody else has claimed it.


def hand_back(connection: Connection, queue: str, unbegun: Sequence[Claimed]) -> None:
    """Notifications that were claimed and are not sent are due as they were, unless their lease was somebody else's by then.

    May be repeated, and run beside itself.
    """
    rows = [{"id": notification.id, "lease": notification.leased_until} for notification in unbegun]
    connection.execute(_HAND_BACK, {"queue": queue, "rows": as_json(rows)})


_HAND_BACK = text("""
    WITH handed_back AS (
      UPDATE notify_record AS record SET leased_until = NULL
      FROM json_to_recordset(CAST(:rows AS json)) AS unbegun (id uuid, lease timestamptz)
      WHERE record.id = unbegun.id AND record.leased_until = unbegun.lease
      RETURNING record.merchant_no, record.planned_at)
    INSERT INTO notify_wake (queue, merchant_no, planned_at)
    SELECT :queue, merchant_no, min(planned_at) FROM handed_back GROUP BY merchant_no""")


def release_expired(connection: Connection, queue: str, *, now: datetime | None = None) -> int:
    """Notifications whose senders did not report an outcome in time are due again, for the same attempt; returns how many.

    The time is the database's, or `now`. Each has a row with the cause. May be repeated, and run beside itself.
    """
    return connection.execute(_RELEASE, {"queue": queue, "now": now, "limit": EXPIRED_MAX}).rowcount


_RELEASE = text("""
    WITH clock AS MATERIALIZED (SELECT coalesce(CAST(:now AS timestamptz), clock_timestamp()) AS now),
    expired AS (
      SELECT id, planned_at FROM notify_record
      WHERE queue = :queue AND leased_until IS NOT NULL AND leased_until < (SELECT now FROM clock)
      LIMIT :limit FOR UPDATE SKIP LOCKED),
    released AS (
      UPDATE notify_record AS record SET leased_until = NULL, planned_at = (SELECT now FROM clock), postponed = true
      FROM expired WHERE record.id = expired.id
      RETURNING record.id, record.merchant_no, record.attempts, record.planned_at, expired.planned_at AS was),
    woken AS (
      INSERT INTO notify_wake (queue, merchant_no, planned_at) SELECT DISTINCT :queue, merchant_no, planned_at FROM released)
    INSERT INTO notify_postponement (record_id, attempt, cause, planned_at, postponed_to)
    SELECT id, attempts + 1, 'LEASE', was, planned_at FROM released""")


_LANE = [field.name for field in fields(Lane)]


def _lane(row: Any) -> Lane:
    known = row._mapping
    return Lane(**{name: known[name] for name in _LANE})


def _evidence(ended: Ended) -> Evidence:
    return Evidence(
        started_at=ended.started_at,
        ended_at=ended.ended_at,
        result=ended.result,
        retry_after=ended.retry_after,
        answered=ended.http_status is not None,
    )


def _save(
    connection: Connection,
    queue: Queue,
    lanes: Mapping[str, Lane],
    places: Mapping[str, datetime],
    *,
    now: datetime,
) -> None:
    """The lanes, which the caller has locked, are as they are known to be, and worth a look when they next will be.

    Their places say since when each waits for its turn. What is full or paused is looked at when that is over.
    """
    rows = [
        {
            "merchant_no": merchant_no,
            "failures": lane.failures,
            "opened_at": lane.opened_at,
            "blocked_until": lane.blocked_until,
            "blocked_cause": lane.blocked_cause,
            "freed_at": lane.freed_at,
            "bound": bound(lane, queue),
            "probing": lane.failures >= queue.breaker_failures,
            "place": places[merchant_no],
            "pace": lane.pace,
        }
        for merchant_no, lane in lanes.items()
    ]
    connection.execute(_SAVE, {"queue": queue.queue, "now": now, "lanes": as_json(rows)})


_SAVE = text("""
    UPDATE notify_lane AS lane
    SET failures = known.failures, opened_at = known.opened_at, blocked_until = known.blocked_until,
        blocked_cause = known.blocked_cause, freed_at = known.freed_at, pace = known.pace,
        crowded = NOT known.probing AND known.bound > 0 AND known.bound <= seen.in_flight,
        ready_at = CASE WHEN seen.next IS NOT NULL AND known.bound > seen.in_flight
                        THEN greatest(seen.next, known.blocked_until, known.place) END
    FROM (
      SELECT known.*, (SELECT count(*) FROM notify_record AS record
              WHERE record.queue = :queue AND record.merchant_no = known.merchant_no
                AND record.leased_until IS NOT NULL) AS in_flight,
             (SELECT record.planned_at FROM notify_record AS record
              WHERE record.queue = :queue AND record.merchant_no = known.merchant_no
                AND record.leased_until IS NULL AND record.finished_at IS NULL
              ORDER BY record.planned_at, record.id LIMIT 1) AS next
      FROM json_to_recordset(CAST(:lanes AS json)) AS known (
        merchant_no text, failures integer, opened_at timestamptz, blocked_until timestamptz, blocked_cause text,
        freed_at timestamptz, bound integer, probing boolean, place timestamptz, pace text)) AS known,
      LATERAL (SELECT known.in_flight, known.next) AS seen
    WHERE lane.queue = :queue AND lane.merchant_no = known.merchant_no""")
