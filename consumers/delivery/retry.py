"""Retries and skips of parked events, key by key, in order. Owns its transactions; outbox/parking.py says why that is safe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from consumers.delivery.loop import Delivery
from consumers.delivery.processor import is_transient
from outbox.inbox import Arrival, arrive, behind_horizons, note_lot
from outbox.parking import Act, Cause, Held, head_of, held, lock_keys, note_failure, take_out
from outbox.retry import backoff_s

EVENTS_MAX = 100_000
"""Events of one key that one call takes out at most: the live stream may park behind them as fast as they go."""

TRIES_MAX = 5
"""Attempts at a transaction whose failure may pass, over a second and a half: a deadlock is over by then."""

APPLIED, KNOWN, SKIPPED = "APPLIED", "KNOWN", "SKIPPED"
"""Outcomes in the audit table; KNOWN: already applied. Any other outcome is the cause for which the event stays."""

NO_DAY = "23514"
"""SQLSTATE of a row that no partition takes."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Drained:
    """What became of a key's events, or of one without a key."""

    applied: int = 0
    known: int = 0
    """Already applied."""
    cause: Cause | None = None
    """Why the first of the events that are left fails."""
    error: str = ""


def retry_key(engine: Engine, delivery: Delivery, key: bytes, act: Act) -> Drained:
    """Nothing of the key is parked and it flows again; or its first event still fails and the others wait behind it, in order.

    Own transactions, one an event. May be repeated and cut off at any point, and run beside the live stream and itself.
    """

    def step(connection: Connection) -> str | Drained | None:
        lock_keys(connection, delivery.consumer, [key])
        return _retry(connection, delivery, head_of(connection, delivery.consumer, key), act)

    return _drain(engine, step)


def retry_keyless(engine: Engine, delivery: Delivery, number: int, act: Act) -> Drained:
    """The message, which has no key, is parked no more, or still fails. Own transaction. May be repeated, and run beside itself."""

    def step(connection: Connection) -> str | Drained | None:
        return _retry(connection, delivery, held(connection, delivery.consumer, number), act)

    return _drain(engine, step)


def skip(engine: Engine, consumer: str, number: int, act: Act) -> bool:
    """The event is no longer parked, and the audit table keeps it whole; returns whether it was parked.

    It will not be applied, nor will a repeat of it: the inbox has it from now on. Only a message that is no event is decoded
    again if it comes again. Own transaction. May be repeated, and run beside the live stream and a retry.
    """

    def step(connection: Connection) -> bool:
        if (event := held(connection, consumer, number)) is None:
            return False
        take_out(connection, event, act, outcome=SKIPPED)
        if event.event_id is not None:
            remember(connection, consumer, Arrival(event_id=event.event_id, log=event.log, offset=event.offset))
        return True

    return transact(engine, step)


def remember(connection: Connection, consumer: str, arrival: Arrival) -> None:
    """The inbox has the event, unless it has no day for it: such an event is behind its horizon or ahead of the clock.

    Such an event is not applied anyway. Transaction: the caller's.
    """
    try:
        with connection.begin_nested():
            arrive(connection, consumer, [arrival], behind=behind_horizons(connection, consumer))
    except IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) != NO_DAY:
            raise


def settle_lot(engine: Engine, consumer: str) -> None:
    """The live stream looks into the parking lot only while something of the consumer's is there. Own transaction; may be repeated."""
    transact(engine, lambda connection: note_lot(connection, consumer))


def _drain(engine: Engine, step: Callable[[Connection], str | Drained | None]) -> Drained:
    counts = {APPLIED: 0, KNOWN: 0}
    left = Drained()
    for _ in range(EVENTS_MAX):
        outcome = transact(engine, step)
        if isinstance(outcome, str):
            counts[outcome] += 1
            continue
        left = outcome or left
        break
    return Drained(applied=counts[APPLIED], known=counts[KNOWN], cause=left.cause, error=left.error)


def _retry(connection: Connection, delivery: Delivery, event: Held | None, act: Act) -> str | Drained | None:
    """Return the outcome of an event that was taken out, why it stays, or None if there is none."""
    if event is None:
        return None
    retried = delivery.retry(connection, event.log, event)
    if retried.cause is not None:
        note_failure(connection, event, act, cause=retried.cause, error=retried.error)
        return Drained(cause=retried.cause, error=retried.error)
    outcome = APPLIED if retried.applied else KNOWN
    take_out(connection, event, act, outcome=outcome)
    return outcome


def transact(engine: Engine, step: Callable[[Connection], T]) -> T:
    """Return what the step returns, committed. A failure that may pass is tried again a few times."""
    for attempt in range(1, TRIES_MAX):
        try:
            with engine.begin() as connection:
                return step(connection)
        except Exception as error:
            if not is_transient(error):
                raise
            time.sleep(backoff_s(attempt))
    with engine.begin() as connection:
        return step(connection)
