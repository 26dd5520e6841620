"""Clocks as the pipeline sees them: how far they are apart, what was recorded ahead of them, and what waits for its day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from ops.pipeline.health import reader_engine
from ops.pipeline.verdict import Verdict
from outbox.clock import APART_MAX, time_of
from outbox.database import database_now
from outbox.inbox import horizon
from outbox.record import AHEAD_MAX
from outbox.settings import SERVICES, Settings


@dataclass(frozen=True, kw_only=True)
class AheadKey:
    """A parked event that was recorded too far ahead of the clock, the first of its key."""

    id: str
    """As `payrelay parked show` takes it."""
    consumer: str
    key: bytes | None
    has_day: bool
    """Whether the inbox has the event's day: then it can be applied."""


_WAITING = """
    SELECT '{service}:' || id AS id, consumer, key, event_id < :high AS has_day FROM {service}.parked AS ahead
    WHERE cause = 'AHEAD_OF_CLOCK' AND event_id IS NOT NULL AND consumer = ANY (:consumers) AND NOT EXISTS (
      SELECT FROM {service}.parked AS earlier
      WHERE earlier.consumer = ahead.consumer AND sha256(earlier.key) = sha256(ahead.key) AND earlier.id < ahead.id)
    ORDER BY has_day DESC, ahead.id LIMIT :limit"""

WAITING_MAX = 1_000
"""Keys of a service looked at in one go."""


def waiting_ahead(connection: Connection, settings: Settings) -> list[AheadKey]:
    """Return this version's parked keys whose first event was recorded too far ahead, at most so many of a service.

    Those that can be applied come first, oldest first.
    """
    from ops.delivery.registry import known_processors  # here: the supervisor starts faster without the processors

    consumers = list(known_processors(settings))
    return [
        AheadKey(**row._mapping)
        for service in SERVICES
        for row in connection.execute(
            text(_WAITING.format(service=service)),
            {"high": horizon(connection, service)[1], "limit": WAITING_MAX, "consumers": consumers},
        )
    ]


def clock_finding(settings: Settings, *, now: datetime) -> Verdict:
    """Return whether the clocks agree and nothing waits because they did not. Reads only."""
    with reader_engine(settings).connect() as connection:
        database = database_now(connection)
        newest = [
            time_of(identity)
            for service in SERVICES
            for identity in connection.execute(
                text(f"SELECT id FROM {service}.outbox ORDER BY id DESC LIMIT 1")  # noqa: S608 - a schema of ours
            ).scalars()
        ]
        waiting = waiting_ahead(connection, settings)
    last = max((at for at in newest if at is not None), default=database)
    return judge_clocks(apart=now - database, recorded_ahead=last - database, waiting=waiting)


def judge_clocks(*, apart: timedelta, recorded_ahead: timedelta, waiting: Sequence[AheadKey]) -> Verdict:
    """Return what the clocks, the newest event and the parked ones amount to. Pure.

    >>> judge_clocks(apart=timedelta(), recorded_ahead=timedelta(), waiting=[]).found
    'host and database agree within 0 s'
    """
    if abs(apart) > APART_MAX:
        state = f"the host's clock is {_span(apart)} {'ahead of' if apart > timedelta() else 'behind'} the database's"
        return Verdict(False, state, "set the wrong clock right, then: payrelay upkeep")
    step = ""
    if recorded_ahead > AHEAD_MAX:
        step = (
            f"events were recorded up to {_span(recorded_ahead)} ahead of the clock, which was set back since: "
            "consumers park these events, and apply the others; "
        )
    if not waiting:
        return Verdict(True, f"{step}host and database agree within {_span(apart)}")
    ready = sum(key.has_day for key in waiting)
    state = f"{step}{len(waiting)} parked keys wait with events ahead of the clock, {ready} of them can be applied now"
    return Verdict(
        False, state, "payrelay upkeep" if ready else "wait: once their days are 14 days away, upkeep retries them"
    )


def _span(span: timedelta) -> str:
    """Return a length of time in words.

    >>> _span(timedelta(days=-400)), _span(timedelta(minutes=90)), _span(timedelta(seconds=7))
    ('400.0 days', '1.5 h', '7 s')
    """
    seconds = abs(span.total_seconds())
    if seconds >= 86_400:
        return f"{seconds / 86_400:.1f} days"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"
