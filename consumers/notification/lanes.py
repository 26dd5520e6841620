"""What a lane, one receiver's part of a queue, allows: its bound, its breaker, its pause, and whose turn it is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum


class Cause(StrEnum):
    """Why an attempt was not made when it was planned."""

    PAUSE = "PAUSE"
    BREAKER = "BREAKER"
    RETRY_AFTER = "RETRY_AFTER"
    BOUND = "BOUND"
    """As many attempts to the receiver were under way as may be."""
    LEASE = "LEASE"
    """Its sender was gone, or has not written down in time what came of it."""
    RESEND = "RESEND"


class Result(StrEnum):
    """What came of an attempt."""

    SUCCESS = "SUCCESS"
    HTTP_REQUEST_SUCCESS = "HTTP_REQUEST_SUCCESS"
    """2xx, without the agreed word."""
    HTTP_REQUEST_FAILED = "HTTP_REQUEST_FAILED"
    """Any other answer, or none."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """A queue's success word and limits."""

    queue: str
    success_word: str = "success"
    in_flight_max: int = 100
    """Of one sender."""
    receiver_in_flight_max: int = 10
    """To one receiver, of all senders."""
    breaker_failures: int = 5
    breaker_first_s: float = 30.0
    breaker_cap_s: float = 600.0
    retry_after_cap_s: float = 3_600.0
    private_receivers: bool = False
    """Its receivers are named by the operator, and may be private."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """What is known of a lane."""

    failures: int = 0
    """In a row; each that began before the breaker opened counts for nothing after it."""
    opened_at: datetime | None = None
    blocked_until: datetime | None = None
    blocked_cause: str | None = None
    crowded: bool = False
    """Something due waits for one of its attempts to end."""
    freed_at: datetime | None = None
    paused_at: datetime | None = None
    resumed_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an attempt says of its receiver."""

    started_at: datetime
    ended_at: datetime
    result: Result
    retry_after: timedelta | None = None


def after(lane: Lane, attempts: Sequence[Evidence], queue: Queue, *, now: datetime) -> Lane:
    """Return the lane once these attempts have ended.

    Failures in a row open the breaker: nothing is sent for a while, then one attempt at a time, until one is answered with
    2xx; each that fails meanwhile doubles the while, up to the queue's cap.
    """
    for one in sorted(attempts, key=lambda attempt: attempt.ended_at):
        lane = _after_one(lane, one, queue)
    return replace(lane, crowded=False, freed_at=now) if lane.crowded else lane


def _after_one(lane: Lane, one: Evidence, queue: Queue) -> Lane:
    if one.result is not Result.HTTP_REQUEST_FAILED:
        if lane.failures < queue.breaker_failures:
            return replace(lane, failures=0) if lane.failures else lane
        return _blocked(replace(lane, failures=0, opened_at=None, blocked_until=None), one.ended_at, Cause.BREAKER)
    if lane.opened_at is None or one.started_at >= lane.opened_at:
        lane = replace(lane, failures=lane.failures + 1)
        if lane.failures >= queue.breaker_failures:
            doublings = min(lane.failures - queue.breaker_failures, 30)
            open_s = min(queue.breaker_cap_s, queue.breaker_first_s * 2.0**doublings)
            lane = replace(lane, opened_at=one.ended_at)
            lane = _blocked(lane, one.ended_at + timedelta(seconds=open_s), Cause.BREAKER)
    if one.retry_after is not None:
        limit = timedelta(seconds=queue.retry_after_cap_s)
        lane = _blocked(lane, one.ended_at + min(one.retry_after, limit), Cause.RETRY_AFTER)
    return lane


def _blocked(lane: Lane, until: datetime, cause: Cause) -> Lane:
    if lane.blocked_until is not None and lane.blocked_until >= until:
        return lane
    return replace(lane, blocked_until=until, blocked_cause=cause)


def bound(lane: Lane, queue: Queue) -> int:
    """Return how many attempts of a lane may be under way: one while its breaker is not known to be closed, none while paused."""
    if lane.paused_at is not None:
        return 0
    return 1 if lane.failures >= queue.breaker_failures else queue.receiver_in_flight_max


def slots(lane: Lane, in_flight: int, queue: Queue, *, now: datetime) -> int:
    """Return how many attempts of a lane may begin now."""
    if lane.blocked_until is not None and lane.blocked_until > now:
        return 0
    return max(0, bound(lane, queue) - in_flight)


def held_back(lane: Lane) -> tuple[datetime, Cause] | None:
    """Return until when the lane held back what was due, and why; None if it never did. Whatever is planned later was not."""
    ends = [
        (lane.blocked_until, Cause(lane.blocked_cause or Cause.BREAKER)),
        (lane.resumed_at, Cause.PAUSE),
        (lane.freed_at, Cause.BOUND),
    ]
    known = [(until, cause) for until, cause in ends if until is not None]
    return max(known) if known else None


def shares(free: Sequence[int], limit: int) -> list[int]:
    """Return how many each lane may begin of `limit` in all: none more than its free slots, none more than one ahead of another
    that could take more; what does not divide goes to the first.

    >>> shares([10, 10, 1], 12)
    [6, 5, 1]
    """
    given = [0] * len(free)
    left = max(0, limit)
    while left and (open_lanes := [lane for lane, slots in enumerate(free) if given[lane] < slots]):
        each = max(1, left // len(open_lanes))
        for lane in open_lanes:
            more = min(each, free[lane] - given[lane], left)
            given[lane] += more
            left -= more
    return given
