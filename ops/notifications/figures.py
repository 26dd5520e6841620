"""How sending goes, in figures over the last minutes. Reads only; bounded, whatever waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

from consumers.notification.notifier.bulk import COUNTED_MAX
from consumers.notification.notifier.filter import UNFINISHED
from ops.notifications.operations import NOTIFYING_SERVICES

SLOWEST = timedelta(seconds=60)
"""No attempt takes longer: what started before is not looked at."""

_ATTEMPTS = """
    SELECT (floor(extract(epoch FROM ended_at) / :step_s) * :step_s)::bigint AS at,
           count(*) FILTER (WHERE result = 'SUCCESS') AS sent,
           count(*) FILTER (WHERE result <> 'SUCCESS') AS failed,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - planned_at))
             FILTER (WHERE NOT postponed) AS late_p50_s,
           percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - planned_at))
             FILTER (WHERE NOT postponed) AS late_p99_s
    FROM {service}.notify_record_log
    WHERE started_at >= CAST(:begin AS timestamptz) - CAST(:slowest AS interval) AND ended_at >= :begin AND ended_at < :end
    GROUP BY 1 ORDER BY 1"""

_WAITING = f"""
    SELECT count(*) AS waiting, count(*) FILTER (WHERE planned_at <= clock_timestamp()) AS due,
           extract(epoch FROM clock_timestamp() - min(planned_at)) AS oldest_due_s
    FROM (SELECT planned_at FROM {{service}}.notify_record WHERE {UNFINISHED} LIMIT :most) AS record"""  # noqa: S608

_FAILED = """
    SELECT count(*) FROM (SELECT FROM {service}.notify_record WHERE status = 'FAILED' LIMIT :most) AS record"""

_RECEIVERS = """
    SELECT count(*) FILTER (WHERE paused_at IS NOT NULL) AS paused,
           count(*) FILTER (WHERE blocked_until > clock_timestamp()) AS blocked
    FROM {service}.notify_lane"""


@dataclass(frozen=True, slots=True)
class TimeStep:
    """Attempts that ended within one step of time."""

    at: int
    """When it begins, in Unix seconds."""
    sent: int
    failed: int
    late_p50_s: float | None
    """Actual less last planned start, of attempts that nothing postponed; None where there were none."""
    late_p99_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """What is there just now. Counts stop at 100,000 of a service."""

    waiting: int
    due: int
    oldest_due_s: float
    """How long the oldest due notification waits; 0 where none does."""
    failed: int
    """Given up by their rules."""
    paused: int
    """Receivers."""
    blocked: int
    """Receivers that a breaker or their own word holds up."""


def database_now(connection: Connection) -> datetime:
    """Return the time that rows are compared with: the database's, not this host's."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now


def attempts_by_step(connection: Connection, *, begin: datetime, end: datetime, step_s: int) -> list[TimeStep]:
    """Return the steps that had attempts, in order; of several services, the later one's lateness."""
    given = {"begin": begin, "end": end, "step_s": step_s, "slowest": SLOWEST}
    steps: dict[int, TimeStep] = {}
    for row in _each(connection, _ATTEMPTS, **given):
        step = TimeStep(row.at, row.sent, row.failed, _seconds(row.late_p50_s), _seconds(row.late_p99_s))
        steps[row.at] = together(steps[row.at], step) if row.at in steps else step
    return [steps[at] for at in sorted(steps)]


def together(first: TimeStep, other: TimeStep) -> TimeStep:
    """Return two services' attempts of one step as one.

    >>> together(TimeStep(5, 1, 0, 0.1, 0.2), TimeStep(5, 2, 3, None, 0.4))
    TimeStep(at=5, sent=3, failed=3, late_p50_s=0.1, late_p99_s=0.4)
    """
    return TimeStep(
        first.at,
        first.sent + other.sent,
        first.failed + other.failed,
        max((late for late in (first.late_p50_s, other.late_p50_s) if late is not None), default=None),
        max((late for late in (first.late_p99_s, other.late_p99_s) if late is not None), default=None),
    )


def standing(connection: Connection) -> QueueFigures:
    """Return what waits, failed and is held up just now."""
    waiting = list(_each(connection, _WAITING, most=COUNTED_MAX))
    receivers = list(_each(connection, _RECEIVERS))
    return QueueFigures(
        waiting=sum(row.waiting for row in waiting),
        due=sum(row.due for row in waiting),
        oldest_due_s=max(0.0, *(float(row.oldest_due_s or 0) for row in waiting)),
        failed=sum(row.count for row in _each(connection, _FAILED, most=COUNTED_MAX)),
        paused=sum(row.paused for row in receivers),
        blocked=sum(row.blocked for row in receivers),
    )


def _each(connection: Connection, statement: str, **given: object) -> Iterator[Any]:
    for service in NOTIFYING_SERVICES:
        yield from connection.execute(text(statement.format(service=service)), given)


def joined(before: Sequence[TimeStep], fresh: Sequence[TimeStep], *, since: int, begin: int) -> list[TimeStep]:
    """Return the steps of `begin` and later: those read before, but for what was read again since.

    >>> old, new = [TimeStep(0, 1, 0, None, None), TimeStep(5, 1, 0, None, None)], [TimeStep(5, 3, 0, None, None)]
    >>> [(step.at, step.sent) for step in joined(old, new, since=5, begin=0)]
    [(0, 1), (5, 3)]
    """
    return [*(step for step in before if begin <= step.at < since), *fresh]


def _seconds(value: float | None) -> float | None:
    return None if value is None else float(value)
