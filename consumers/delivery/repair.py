"""Repairs a consumer whose inbox and effects contradict each other about an event. Owns its transactions.

The inbox decides whether an event is applied, so neither the live stream nor a redelivery repairs this. A repair holds the key's
lock, as a retry does; the effect's business key keeps anything from having its effect twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, Engine

from consumers.delivery.processor import DuplicateFact, Processor, error_line, is_transient
from consumers.delivery.retry import transact
from outbox.inbox import Arrival, applied_before, arrive, behind_horizons
from outbox.parking import lock_keys
from schemas.codec import Envelope


class ReapplyOutcome(StrEnum):
    """What became of an event."""

    APPLIED = "APPLIED"
    STANDS = "STANDS"
    """Its effect was there already."""
    UNKNOWN = "UNKNOWN"
    """It is not in the inbox: it is to be redelivered."""
    FAILED = "FAILED"


@dataclass(frozen=True, kw_only=True)
class Reapplied:
    """An event's outcome, and why it failed."""

    outcome: ReapplyOutcome
    error: str = ""


def reapply(engine: Engine, processor: Processor, consumer: str, envelope: Envelope) -> Reapplied:
    """An event that the inbox has is applied, or not, as the outcome says; the handler has run at most once.

    Own transaction, as the service. May be repeated and cut off anywhere, and run beside the live stream and itself. Not for an
    event that an operator has skipped: the inbox has it so that it is never applied.
    """

    def step(connection: Connection) -> ReapplyOutcome:
        lock_keys(connection, consumer, [envelope.event.key.encode()])
        if not applied_before(connection, consumer, [envelope.id]):
            return ReapplyOutcome.UNKNOWN
        processor.handle(connection, [envelope])
        return ReapplyOutcome.APPLIED

    try:
        return Reapplied(outcome=transact(engine, step))
    except DuplicateFact:
        return Reapplied(outcome=ReapplyOutcome.STANDS)
    except Exception as error:
        if is_transient(error):
            raise
        return Reapplied(outcome=ReapplyOutcome.FAILED, error=error_line(error))


def remember(engine: Engine, consumer: str, arrival: Arrival, key: str) -> None:
    """The inbox has the event, whose effect the caller has seen. Own transaction. May be repeated, and run beside the live stream."""

    def step(connection: Connection) -> None:
        lock_keys(connection, consumer, [key.encode()])
        arrive(connection, consumer, [arrival], behind=behind_horizons(connection, consumer))

    transact(engine, step)
