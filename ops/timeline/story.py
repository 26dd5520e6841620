"""One payment's whole story over every table and topic, in order of time, with what is missing in it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from ops.pipeline.health import reader_engine, slot_of
from ops.pipeline.positions import consumer_positions
from ops.timeline.facts import PaymentFacts, consumers_by_topic, payments_of, read_facts
from ops.timeline.places import find_records
from ops.timeline.steps import MISSING, ReadProgress, StoryStep, steps_of
from outbox.inbox import horizon
from outbox.settings import SERVICES, Settings


@dataclass(frozen=True, kw_only=True)
class StoryLine:
    """A step in its place in the story."""

    at: datetime | None
    since_first_ms: float | None
    since_cause_ms: float | None
    where: str
    what: str
    detail: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Story:
    """A payment and what happened around it."""

    payment_no: str
    order_no: str
    merchant_no: str
    status: str
    amount_fen: int
    currency: str
    method: str
    lines: list[StoryLine]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing; what only waits is not missing."""
        return all(line.what != MISSING for line in self.lines)


def timeline(settings: Settings, number: str, *, merchant_no: str = "") -> list[Story]:
    """Return the story of each payment of an order number (several merchants may use one), or of a payment number.

    None where there is no such number. Reads only. Raises Unreachable while Kafka does not answer.
    """
    progress = read_progress(settings)
    with reader_engine(settings).connect() as connection:
        payments = payments_of(connection, number, merchant_no=merchant_no)
        facts = [read_facts(connection, settings, payment) for payment in payments]
    consumers = consumers_by_topic(settings)
    return [story_of(own, steps_of(own, find_records(settings, own), progress, consumers)) for own in facts]


def read_progress(settings: Settings) -> ReadProgress:
    """Return how far slot and consumers are. Reads only; raises Unreachable."""
    positions = {
        (position.consumer, *position.place): position.next_offset for position in consumer_positions(settings)
    }
    with reader_engine(settings).connect() as connection:
        slot = slot_of(connection, settings.slot)
        return ReadProgress(
            at=connection.execute(text("SELECT clock_timestamp()")).scalar_one(),
            slot_found=slot.found and slot.wal_status != "lost",
            confirmed_lsn=slot.confirmed_lsn,
            remembered={service: horizon(connection, service)[0] for service in SERVICES},
            positions=positions,
        )


def story_of(facts: PaymentFacts, steps: Sequence[StoryStep]) -> Story:
    """Return the steps in order of time, what has caused another before it, with latencies. Pure.

    What has not happened stands behind its cause. A latency may be negative by a millisecond, a topic's unit, and by what the
    clocks of broker and database differ.
    """
    times = {step.key: step.at for step in steps if step.at is not None}
    first = min(times.values())
    place = places_in_time(steps, first)
    lines = [
        StoryLine(
            at=step.at,
            since_first_ms=_ms(first, step.at),
            since_cause_ms=_ms(times.get(step.cause), step.at),
            where=step.where,
            what=step.what,
            detail=step.detail,
            fix=step.fix,
        )
        for step in sorted(steps, key=lambda step: place[step.key])
    ]
    names = ("payment_no", "order_no", "merchant_no", "status", "amount_fen", "currency", "method")
    return Story(**{name: getattr(facts.payment, name) for name in names}, lines=lines)


def places_in_time(steps: Sequence[StoryStep], first: datetime) -> dict[Hashable, datetime]:
    """Return each step's place in time: when it happened, and not before its cause. Pure."""
    by_key = {step.key: step for step in steps}
    places: dict[Hashable, datetime] = {}

    def place(key: Hashable) -> datetime:
        if key not in by_key:
            return first
        if key not in places:
            places[key] = by_key[key].at or first  # before its cause is asked: nothing goes round in circles
            places[key] = max(places[key], place(by_key[key].cause))
        return places[key]

    for step in steps:
        place(step.key)
    return places


def _ms(begin: datetime | None, end: datetime | None) -> float | None:
    return None if begin is None or end is None else round((end - begin).total_seconds() * 1000, 3)
