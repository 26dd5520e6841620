"""Notifications as an operator reads them, and what an operator does with them: send again, pause, resume, change a rule.

`ops` reads; acts are the notifying service's own functions, with its DSN, each with a row in its audit table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.notification.control import pause, resend_notifications, resume, set_rule
from consumers.notification.notifier.bulk import COUNTED_MAX
from consumers.notification.notifier.filter import NotificationFilter, conditions
from consumers.notification.queues import QUEUES
from outbox.database import engine_for
from outbox.errors import UnknownName
from outbox.settings import Settings

NOTIFYING_SERVICES = tuple(sorted(set(QUEUES.values())))
"""The services that notify: each has the tables of a notifier in its schema."""

BATCH = 500
"""Notifications made due in a transaction."""


@dataclass(frozen=True, kw_only=True)
class NotificationCount:
    """Notifications of a queue in one state."""

    queue: str
    status: str
    records: int
    merchants: int
    oldest: datetime


@dataclass(frozen=True, kw_only=True)
class RecordRow:
    """A notification in a list."""

    id: UUID
    service: str
    """Whose it is."""
    queue: str
    merchant_no: str
    order_no: str
    payment_no: str
    status: str
    attempts: int
    http_status: int | None
    planned_at: datetime
    created_at: datetime
    finished_at: datetime | None
    last_error: str


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How many notifications match, and the newest of them."""

    count: int
    newest: UUID | None


@dataclass(frozen=True, kw_only=True)
class LaneRow:
    """A receiver's part of a queue, if it is not simply open."""

    queue: str
    merchant_no: str
    state: str
    since: datetime | None
    until: datetime | None
    failures: int


@dataclass(frozen=True, kw_only=True)
class LatenessRow:
    """Attempts by how late they began."""

    queue: str
    up_to_ms: float | None
    """The bucket's upper bound; none for the rest."""
    attempts: int
    not_postponed: int


def counts(connection: Connection, wanted: NotificationFilter) -> list[NotificationCount]:
    """Return how many notifications there are, by queue and state."""
    where, given = conditions(wanted)
    statement = f"""
        SELECT queue, status, count(*) AS records, count(DISTINCT merchant_no) AS merchants, min(created_at) AS oldest
        FROM {{service}}.notify_record WHERE {where} GROUP BY queue, status ORDER BY queue, status"""  # noqa: S608
    return [NotificationCount(**row._mapping) for row in _rows(connection, statement, given)]


def matching(connection: Connection, wanted: NotificationFilter) -> Matching:
    """Return how many notifications match, counted up to 100,000 of a service, and the newest of them."""
    where, given = conditions(wanted)
    statement = f"""
        SELECT count(*) FROM (SELECT FROM {{service}}.notify_record WHERE {where} LIMIT :most) AS record"""  # noqa: S608
    count = sum(row.count for row in _rows(connection, statement, {**given, "most": COUNTED_MAX}))
    newest = records(connection, wanted, limit=1) if count else []
    return Matching(count=count, newest=newest[0].id if newest else None)


def records(
    connection: Connection, wanted: NotificationFilter, *, limit: int, before: UUID | None = None
) -> list[RecordRow]:
    """Return notifications, the newest first, at most so many; only those made before that one, where it is given."""
    where, given = conditions(wanted)
    statement = f"""
        SELECT id, '{{service}}' AS service, queue, merchant_no, order_no, payment_no, status, attempts, http_status, planned_at, created_at, finished_at,
               left(coalesce(last_error, ''), 200) AS last_error
        FROM {{service}}.notify_record
        WHERE {where} AND (CAST(:before AS uuid) IS NULL OR id < :before) ORDER BY id DESC LIMIT :limit"""  # noqa: S608
    rows = _rows(connection, statement, {**given, "before": before, "limit": limit})
    return sorted((RecordRow(**row._mapping) for row in rows), key=lambda row: row.id, reverse=True)[:limit]


def record(connection: Connection, identity: UUID) -> dict[str, Any]:
    """Return everything of a notification: its row, attempts planned and actual, postponements, its lane; raises Refused for none."""
    for service in NOTIFYING_SERVICES:

        def rows(statement: str, service: str = service, **given: object) -> list[dict[str, Any]]:
            result = connection.execute(text(statement.format(service=service)), {"id": identity, **given})
            return [dict(row._mapping) for row in result]

        if not (matching := rows("SELECT * FROM {service}.notify_record WHERE id = :id")):
            continue
        [own] = matching
        lane = rows(
            "SELECT * FROM {service}.notify_lane WHERE queue = :queue AND merchant_no = :merchant_no",
            queue=own["queue"],
            merchant_no=own["merchant_no"],
        )
        return {
            **own,
            "service": service,
            "log": rows("SELECT * FROM {service}.notify_record_log WHERE record_id = :id ORDER BY id"),
            "postponements": rows("SELECT * FROM {service}.notify_postponement WHERE record_id = :id ORDER BY id"),
            "audit": rows("SELECT * FROM {service}.notify_audit WHERE record_id = :id ORDER BY id"),
            "lane": lane[0] if lane else None,
            "held_up_by": held_up(connection, [identity]).get(identity),
        }
    raise UnknownName(f"there is no notification {identity}. Notifications are shown by: payrelay notify list")


def resend(
    settings: Settings, chosen: Sequence[RecordRow], *, reason: str, actor: str
) -> Iterator[tuple[RecordRow, bool]]:
    """Give each notification, and whether it is due now: what is just being sent is not. Own transactions, of at most 500 notifications.

    May be repeated: each call sends again. If it is cut off, what was given is done.
    """
    for service in NOTIFYING_SERVICES:
        mine = [row for row in chosen if row.service == service]
        for first in range(0, len(mine), BATCH):
            part = mine[first : first + BATCH]
            with _acting(settings, service) as connection:
                due = set(resend_notifications(connection, [row.id for row in part], reason=reason, actor=actor))
            yield from ((row, row.id in due) for row in part)


def pause_receiver(settings: Settings, queue: str, merchant_no: str, *, reason: str, actor: str) -> bool:
    """Nothing of the queue is sent to the merchant; returns whether that was news. Own transaction. Raises Refused for an unknown one."""
    with _acting(settings, service_of(queue)) as connection:
        return pause(connection, queue, merchant_no, reason=reason, actor=actor)


def resume_receiver(settings: Settings, queue: str, merchant_no: str, *, reason: str, actor: str) -> bool:
    """The queue is sent to the merchant again; returns whether that was news. Own transaction. Raises Refused for an unknown one."""
    with _acting(settings, service_of(queue)) as connection:
        return resume(connection, queue, merchant_no, reason=reason, actor=actor)


def change_rule(settings: Settings, queue: str, rule: str, *, reason: str, actor: str) -> None:
    """Notifications of the queue made from now on have this rule. Own transaction. Raises Refused for what is no rule."""
    with _acting(settings, service_of(queue)) as connection:
        set_rule(connection, queue, rule, reason=reason, actor=actor)


def queues(connection: Connection) -> list[dict[str, Any]]:
    """Return each queue with its rule, word and limits."""
    statement = "SELECT '{service}' AS service, * FROM {service}.notify_queue ORDER BY queue"
    return [dict(row._mapping) for row in _rows(connection, statement, {})]


def waiting(connection: Connection, queue: str, merchant_no: str) -> int:
    """Return how many notifications of a queue wait for a merchant. Raises UnknownName for a queue that is none."""
    statement = f"""
        SELECT count(*) FROM {service_of(queue)}.notify_record
        WHERE queue = :queue AND merchant_no = :merchant_no AND finished_at IS NULL"""  # noqa: S608 - a schema of ours
    count: int = connection.execute(text(statement), {"queue": queue, "merchant_no": merchant_no}).scalar_one()
    return count


def lanes(connection: Connection) -> list[LaneRow]:
    """Return the lanes that are paused or blocked, or whose breaker is not known to be closed."""
    statement = """
        SELECT lane.queue, merchant_no, failures,
               CASE WHEN paused_at IS NOT NULL THEN 'PAUSED' WHEN blocked_until > now THEN blocked_cause ELSE 'PROBING' END AS state,
               coalesce(paused_at, opened_at) AS since, CASE WHEN paused_at IS NULL AND blocked_until > now THEN blocked_until END AS until
        FROM {service}.notify_lane AS lane JOIN {service}.notify_queue AS queue USING (queue),
             (SELECT clock_timestamp() AS now) AS clock
        WHERE paused_at IS NOT NULL OR blocked_until > now OR failures >= breaker_failures ORDER BY 1, 2"""
    return [LaneRow(**row._mapping) for row in _rows(connection, statement, {})]


HELD_UP = """CASE WHEN lane.paused_at IS NOT NULL THEN 'PAUSED'
                     WHEN lane.blocked_until > clock_timestamp() THEN lane.blocked_cause END"""
"""Why a lane sends nothing just now; NULL where it sends."""


def held_up(connection: Connection, ids: Collection[UUID]) -> dict[UUID, str]:
    """Return which of these notifications are due or will be, and are not sent: their receiver is PAUSED, or held up, and by what."""
    statement = f"""
        SELECT record.id, {HELD_UP} AS cause
        FROM {{service}}.notify_record AS record JOIN {{service}}.notify_lane AS lane USING (queue, merchant_no)
        WHERE record.id = ANY (CAST(:ids AS uuid[])) AND record.finished_at IS NULL AND {HELD_UP} IS NOT NULL"""  # noqa: S608
    return {row.id: row.cause for row in _rows(connection, statement, {"ids": list(ids)})}


def require_receiver(connection: Connection, queue: str, merchant_no: str) -> None:
    """The queue has, or may have, something for this merchant. Reads only. Raises Refused otherwise."""
    service = service_of(queue)
    statement = f"""
        SELECT EXISTS (SELECT FROM {service}.receiver WHERE merchant_no = :merchant_no)
            OR EXISTS (SELECT FROM {service}.notify_lane WHERE queue = :queue AND merchant_no = :merchant_no)
            OR EXISTS (SELECT FROM {service}.notify_record WHERE queue = :queue AND merchant_no = :merchant_no)"""  # noqa: S608
    if not connection.execute(text(statement), {"queue": queue, "merchant_no": merchant_no}).scalar_one():
        raise UnknownName(
            f"there is no merchant {merchant_no!r} in queue {queue}. Merchants are shown by: payrelay notify list"
        )


BOUNDS_MS = (10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 5_000.0, 30_000.0)


def lateness(connection: Connection, *, begin: datetime | None = None, queue: str = "") -> list[LatenessRow]:
    """Return attempts begun since then, or within the last hour, by how much later than last planned they began, in total and without postponed ones."""
    statement = """
        SELECT queue, bound.up_to AS up_to_ms, count(*) AS attempts, count(*) FILTER (WHERE NOT postponed) AS not_postponed
        FROM {service}.notify_record_log,
             LATERAL (SELECT min(up_to) AS up_to FROM unnest(CAST(:bounds AS double precision[])) AS up_to
                      WHERE up_to >= 1000 * extract(epoch FROM started_at - planned_at)) AS bound
        WHERE started_at >= coalesce(CAST(:begin AS timestamptz), clock_timestamp() - interval '1 hour') AND (:queue = '' OR queue = :queue) GROUP BY queue, bound.up_to ORDER BY 1, 2"""
    given = {"queue": queue, "begin": begin, "bounds": list(BOUNDS_MS)}
    return [LatenessRow(**row._mapping) for row in _rows(connection, statement, given)]


def service_of(queue: str) -> str:
    """Return the service that a queue lives in; raises Refused for one that is none."""
    if queue not in QUEUES:
        raise UnknownName(f"there is no queue {queue!r}; there are: {', '.join(QUEUES)}")
    return QUEUES[queue]


@contextmanager
def _acting(settings: Settings, service: str) -> Iterator[Connection]:
    """Give one transaction of a service; its connection is closed afterwards."""
    engine = engine_for(settings.dsn_of(service), name=f"notify {service}", pool_size=1)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _rows(connection: Connection, statement: str, given: Mapping[str, object]) -> Iterator[Any]:
    for service in NOTIFYING_SERVICES:
        yield from connection.execute(text(statement.format(service=service)), given)
