"""What a consumer's inbox and its effects say against each other, mended: the edge that owns the transactions.

The inbox decides whether an event is applied, so neither the live stream nor a redelivery mends these two. Who does so holds the
key's lock, as a retry does; the effect's business key sees to it that nothing has its effect twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, Engine

from consumers.delivery.loop import DuplicateFact, Processor, is_transient, told
from consumers.delivery.retry import transact
from outbox.inbox import Arrival, applied_before, arrive, behind_horizons
from outbox.parking import lock_keys
from schemas.codec import Envelope


class Outcome(StrEnum):
    """What became of an event."""

    APPLIED = "APPLIED"
    STANDS = "STANDS"
    """Its effect was there."""
    UNKNOWN = "UNKNOWN"
    """The inbox does not know it: it is to be redelivered."""
    FAILED = "FAILED"


@dataclass(frozen=True, kw_only=True)
class Reapplied:
    """An event's outcome, and why it failed."""

    outcome: Outcome
    error: str = ""


def reapply(engine: Engine, processor: Processor, consumer: str, envelope: Envelope) -> Reapplied:
    """An event that the inbox knows has its effect, or still none, as the outcome says; the handler has run at most once.

    Own transaction, as the service. May be repeated and cut off anywhere, and run beside the live stream and itself. Not for an
    event that an operator has skipped: the inbox knows it for a reason.
    """

    def step(connection: Connection) -> Outcome:
        lock_keys(connection, consumer, [envelope.event.key.encode()])
        if not applied_before(connection, consumer, [envelope.id]):
            return Outcome.UNKNOWN
        processor.handle(connection, [envelope])
        return Outcome.APPLIED

    try:
        return Reapplied(outcome=transact(engine, step))
    except DuplicateFact:
        return Reapplied(outcome=Outcome.STANDS)
    except Exception as error:
        if is_transient(error):
            raise
        return Reapplied(outcome=Outcome.FAILED, error=told(error))


def remember(engine: Engine, consumer: str, arrival: Arrival, key: str) -> None:
    """The inbox knows the event, whose effect the caller has seen. Own transaction. May be repeated, and run beside the live stream."""

    def step(connection: Connection) -> None:
        lock_keys(connection, consumer, [key.encode()])
        arrive(connection, consumer, [arrival], behind=behind_horizons(connection, consumer))

    transact(engine, step)
