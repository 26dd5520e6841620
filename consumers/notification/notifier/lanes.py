"""What a lane, one receiver's part of a queue, allows: its bound, its breaker, its pause, and whose turn it is. Pure.

A sender has places of two kinds. A receiver whose last attempt took at most a second is prompt, and its attempts have slots.
All others, those never tried included, have places of their own, and an attempt in a slot moves there after a second. So a slot
is free again within a second, whatever its receiver does. The last places of either kind are for receivers that hold none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, StrEnum, auto


class PostponedFor(StrEnum):
    """Why an attempt was not made when it was planned."""

    PAUSE = "PAUSE"
    BREAKER = "BREAKER"
    RETRY_AFTER = "RETRY_AFTER"
    BOUND = "BOUND"
    """As many attempts to the receiver were under way as may be."""
    LEASE = "LEASE"
    """Its sender was gone, or has not written down in time what came of it."""
    RESEND = "RESEND"


class Pace(StrEnum):
    """How fast a receiver was the last time; a lane without one was never tried, or did not answer in time."""

    PROMPT = "PROMPT"
    """It took at most a second, whatever came of it."""
    SLOW = "SLOW"
    """It answered, later than that; or it was prompt, and something under way takes longer."""


PROMPT_WITHIN = timedelta(seconds=1)
"""How long an attempt may hold a slot."""
OTHERS_PER_SLOT = 2
"""Places of receivers that are not prompt: each costs a connection, and hardly any time of others."""
OTHERS_PER_TURN = 20
"""Attempts to receivers that are not prompt, begun in one turn: a hundred at once would keep the event loop and the database
busy for a tenth of a second when they begin, and again when their time is out."""

IDLE_S = 0.05
IDLE_S_MAX = 0.2
"""Between two turns: each that had nothing to do doubles the time to the next, up to here."""


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
    """Slots of one sender: attempts to prompt receivers, of at most a second."""
    receiver_in_flight_max: int = 10
    """To one prompt receiver, of all senders."""
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
    pace: str | None = None
    """A Pace."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Places that are left of each kind, and how many of those are kept for receivers that hold none."""

    prompt: int
    other: int
    prompt_kept: int = 0
    other_kept: int = 0


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an attempt says of its receiver."""

    started_at: datetime
    ended_at: datetime
    result: Result
    retry_after: timedelta | None = None
    answered: bool = False
    """With a status, whichever."""


def after(lane: Lane, attempts: Sequence[Evidence], queue: Queue, *, now: datetime) -> Lane:
    """Return the lane once these attempts have ended.

    Failures in a row open the breaker: nothing is sent for a while, then one attempt at a time, until one is answered with
    2xx; each that fails meanwhile doubles the while, up to the queue's cap.
    """
    for evidence in sorted(attempts, key=lambda attempt: attempt.ended_at):
        lane = replace(_after_one(lane, evidence, queue), pace=pace_of(evidence))
    return replace(lane, crowded=False, freed_at=now) if lane.crowded else lane


def _after_one(lane: Lane, attempt: Evidence, queue: Queue) -> Lane:
    if attempt.result is not Result.HTTP_REQUEST_FAILED:
        if lane.failures < queue.breaker_failures:
            return replace(lane, failures=0) if lane.failures else lane
        return _blocked(
            replace(lane, failures=0, opened_at=None, blocked_until=None), attempt.ended_at, PostponedFor.BREAKER
        )
    if lane.opened_at is None or attempt.started_at >= lane.opened_at:
        lane = replace(lane, failures=lane.failures + 1)
        if lane.failures >= queue.breaker_failures:
            doublings = min(lane.failures - queue.breaker_failures, 30)
            open_s = min(queue.breaker_cap_s, queue.breaker_first_s * 2.0**doublings)
            lane = replace(lane, opened_at=attempt.ended_at)
            lane = _blocked(lane, attempt.ended_at + timedelta(seconds=open_s), PostponedFor.BREAKER)
    if attempt.retry_after is not None:
        limit = timedelta(seconds=queue.retry_after_cap_s)
        lane = _blocked(lane, attempt.ended_at + min(attempt.retry_after, limit), PostponedFor.RETRY_AFTER)
    return lane


def pace_of(attempt: Evidence) -> Pace | None:
    """Return how fast an attempt shows its receiver to be."""
    if attempt.ended_at - attempt.started_at <= PROMPT_WITHIN:
        return Pace.PROMPT
    return Pace.SLOW if attempt.answered else None


def hanging(lane: Lane) -> Lane:
    """Return the lane as it is while something under way takes longer than a second: prompt no more."""
    return replace(lane, pace=Pace.SLOW) if lane.pace == Pace.PROMPT else lane


def _blocked(lane: Lane, until: datetime, cause: PostponedFor) -> Lane:
    if lane.blocked_until is not None and lane.blocked_until >= until:
        return lane
    return replace(lane, blocked_until=until, blocked_cause=cause)


def bound(lane: Lane, queue: Queue) -> int:
    """Return how many attempts of a lane may be under way: none while paused, one while its breaker is not known to be closed.

    One as well while it is not known to answer; half of a prompt receiver's while it is slow.
    """
    if lane.paused_at is not None:
        return 0
    if lane.failures >= queue.breaker_failures or lane.pace is None:
        return 1
    return queue.receiver_in_flight_max if lane.pace == Pace.PROMPT else max(1, queue.receiver_in_flight_max // 2)


def slots(lane: Lane, in_flight: int, queue: Queue, *, now: datetime) -> int:
    """Return how many attempts of a lane may begin now."""
    if lane.blocked_until is not None and lane.blocked_until > now:
        return 0
    return max(0, bound(lane, queue) - in_flight)


def held_back(lane: Lane) -> tuple[datetime, PostponedFor] | None:
    """Return until when the lane held back what was due, and why; None if it never did. Whatever is planned later was not."""
    ends = [
        (lane.blocked_until, PostponedFor(lane.blocked_cause or PostponedFor.BREAKER)),
        (lane.resumed_at, PostponedFor.PAUSE),
        (lane.freed_at, PostponedFor.BOUND),
    ]
    known = [(until, cause) for until, cause in ends if until is not None]
    return max(known) if known else None


def room_of(queue: Queue, *, prompt: int, other: int, ended: int = 0) -> Room:
    """Return the places that a sender has left while so many attempts have slots, or wait for one, and so many other places.

    It claims ahead of prompt receivers as many as end in two turns, this one and the next. What moved from a slot to the other
    places, beyond their number, takes slots away: all together are never more than both kinds have.
    """
    slots_, others = queue.in_flight_max, OTHERS_PER_SLOT * queue.in_flight_max
    ahead = 2 * min(slots_, ended)
    other_free = max(0, others - other)
    other_now = min(other_free, OTHERS_PER_TURN)
    return Room(
        prompt=max(0, slots_ + ahead - prompt - max(0, other - others)),
        other=other_now,
        prompt_kept=slots_ // 8,
        other_kept=max(0, others // 2 - (other_free - other_now)),
    )


def shares(free: Sequence[int], limit: int, *, holds: Sequence[int] = (), kept: int = 0) -> list[int]:
    """Return how many places each lane may take of `limit` in all, and none more than its free ones.

    Each that holds none comes first. The rest is shared evenly, what does not divide to the first, until `kept` are left.

    >>> shares([10, 10, 1], 12)
    [6, 5, 1]
    >>> shares([10, 10, 1], 12, holds=[3, 3, 0], kept=8)
    [2, 1, 1]
    """
    given, left = [0] * len(free), max(0, limit)
    for lane, slots_ in enumerate(free):
        if left and slots_ > 0 and not (holds and holds[lane]):
            given[lane], left = 1, left - 1
    level = 1
    while left > kept and any(given[lane] < slots_ for lane, slots_ in enumerate(free)):
        for lane, slots_ in enumerate(free):
            if left > kept and given[lane] < min(level, slots_):
                given[lane], left = given[lane] + 1, left - 1
        level += 1
    return given


class TurnOutcome(Enum):
    """What a turn of the sender has brought."""

    IDLE = auto()
    """There was nothing to write down, and nothing due."""
    WORKED = auto()
    MORE = auto()
    """A turn's share of the other places was used up: more may be due."""


def idle_s(idle_turns: int) -> float:
    """Return how long to wait before the next turn, after so many in a row that were idle.

    >>> [idle_s(turns) for turns in (0, 1, 2, 3, 1000)]
    [0.05, 0.1, 0.2, 0.2, 0.2]
    """
    return min(IDLE_S * 2.0 ** min(idle_turns, 10), IDLE_S_MAX)
