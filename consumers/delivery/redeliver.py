"""Redelivery: events of the past go to the handler again, with dedupe on, beside the live stream. Owns its transactions.

Progress and Kafka's offsets stay where they are. Why it is safe, per key, beside the live stream (L), a retry (R) and itself:

- Once: the inbox decides. Whoever inserts an event's row second waits for the first and then finds it applied, or, if the first
  has rolled back, applies it. That alone holds for every interleaving.
- R, a skip, another redelivery: one after the other, by the lock of the key (outbox/parking.py).
- L with a key that is parked: it looks into the lot, takes the same lock, and looks again.
- L with a key that is not parked takes no lock, and needs none. What is redelivered lies below L's progress (checked in the
  transaction), so in its log before everything that L has in hand: applied before or after L's batch, it comes out of its turn
  either way, since later events of its key may have been applied long ago. That is what `superseded` is for. And what L parks
  meanwhile comes after it too. So the live path is as it was: not a statement, look or lock more.
- An event that the parking lot holds, or that is later than what it holds of its key and topic, is not applied past it. An
  earlier one is: it may be what the parked event fails for the want of.
- Locks are taken in L's order: keys by number, inbox rows in id order by one statement, the handler's rows by one call. A set
  that fails is halved into transactions of their own, not under savepoints, so that this order holds; nobody here takes a lock on
  progress. L that searches for poison under savepoints takes handler's rows in several turns; should the two meet then, the
  database ends one of them, and either tries again.

An event that fails here is reported, not parked: it is as missing as it was, and to park it would hold up its key for a past event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from uuid import UUID

from sqlalchemy import Connection, Engine

from consumers.delivery.loop import Delivery
from consumers.delivery.messages import DecodedEvent, Poison, headers_of
from consumers.delivery.processor import error_line, is_transient
from consumers.delivery.retry import transact
from outbox.inbox import Log, applied_before, positions
from outbox.parking import lock_keys, parked_from
from schemas.codec import ID

SET_MAX = 500
"""Events in one transaction. The live stream may wait for its rows: at this size for a fraction of a second."""

FAILURES_MAX = 100
"""If more events than this fail, the handler is broken, and the run ends."""

FROM_OUTBOX = -1
"""Partition and offset of an event that was read from its outbox: its place on the topic, if it has one, is not known."""


@dataclass(slots=True, kw_only=True)
class PastMessage:
    """A message of the past: read from its topic again, or made of its outbox row as the connector makes it."""

    log: Log
    offset: int
    key: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    value: bytes | None


@dataclass(kw_only=True)
class Redelivered:
    """What became of redelivered events; or, if nothing was executed, what would become of them as things stand."""

    applied: int = 0
    superseded: int = 0
    """Passed over by the handler as older than what their key has; they count as applied from now on."""
    known: int = 0
    """Already applied, or skipped by an operator."""
    resent: int = 0
    """Of these, those whose notifications are sent again, under the same ids."""
    parked: int = 0
    """Parked, or behind what is parked of their key: payrelay parked retry."""
    waiting: int = 0
    """The live stream has yet to come to them, or to an earlier one of their key."""
    outside: int = 0
    """Of those applied, those that are notified for the first time."""
    unreadable: int = 0
    refused: dict[UUID, str] = field(default_factory=dict)
    """Older than the inbox's days, or ahead of the clock: whether they were applied cannot be known."""
    failed: dict[UUID, str] = field(default_factory=dict)
    """Why each event failed, alone, or was not tried since an earlier one of its key has failed."""
    missing: set[UUID] = field(default_factory=set)
    """Requested by id, and neither on a topic nor in an outbox."""
    cut_short: bool = False
    """Too many have failed: the rest was not tried."""

    @property
    def is_whole(self) -> bool:
        """Whether every requested event was there, and each that could be applied is."""
        return not (self.refused or self.failed or self.missing or self.cut_short)

    def add(self, other: Redelivered) -> None:
        """The other's outcome is counted here too."""
        for name in ("applied", "superseded", "known", "resent", "parked", "waiting", "outside", "unreadable"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refused |= other.refused
        self.failed |= other.failed
        self.missing |= other.missing
        self.cut_short |= other.cut_short


Key = tuple[str, bytes]
"""A topic and a message key."""


def redeliver(
    engine: Engine, delivery: Delivery, messages: Iterable[PastMessage], *, notifies_again: bool = False
) -> Redelivered:
    """Each message's event that was not applied before is, unless the outcome says why not; progress is where it was.

    Messages come in the order of their log, or of their key's versions. Own transactions, one for many events; for a set that
    fails, one for each half. May be repeated, cut off anywhere, and run beside the live stream, retries and itself.
    `notifies_again`: the notifications of events that were already applied are sent again. Raises what `is_transient` knows
    once it has lasted.
    """
    total = Redelivered()
    failing: dict[Key, UUID] = {}
    iterator = iter(messages)
    while part := list(islice(iterator, SET_MAX)):
        _redeliver_part(engine, delivery, part, total, failing, notifies_again=notifies_again)
        if len(total.failed) > FAILURES_MAX:
            total.cut_short = next(iterator, None) is not None
            break
    return total


def _redeliver_part(
    engine: Engine,
    delivery: Delivery,
    part: Sequence[PastMessage],
    total: Redelivered,
    failing: dict[Key, UUID],
    *,
    notifies_again: bool,
) -> None:
    """The part's outcome is in the total. In one transaction; if something in it fails, as two halves, the first half first."""
    try:
        outcome = transact(engine, lambda connection: _apply_part(connection, delivery, part, failing, notifies_again))
    except Exception as error:
        if is_transient(error):
            raise
        if len(part) == 1:
            [message] = part
            event_id = UUID(headers_of(message)[ID].decode())
            total.failed[event_id] = error_line(error)
            failing[message.log.topic, message.key or b""] = event_id
            return
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            _redeliver_part(engine, delivery, half, total, failing, notifies_again=notifies_again)
    else:
        total.add(outcome)


def _apply_part(
    connection: Connection,
    delivery: Delivery,
    part: Sequence[PastMessage],
    failing: dict[Key, UUID],
    notifies_again: bool,
) -> Redelivered:
    """Return what becomes of the part if the caller commits. Raises whatever the handler raises at one of its events."""
    lock_keys(connection, delivery.consumer, {message.key for message in part if message.key is not None})
    outcome, chosen = sort_out(connection, delivery, part, failing=failing)
    _apply_chosen(connection, delivery, chosen, outcome, notifies_again=notifies_again)
    return outcome


def sort_out(
    connection: Connection,
    delivery: Delivery,
    part: Sequence[PastMessage],
    *,
    failing: Mapping[Key, UUID] | None = None,
) -> tuple[Redelivered, list[DecodedEvent]]:
    """Return what is not to be applied, counted, and what is, in order, unless it was applied before. Reads only.

    `failing` maps a key to its event that has failed. The caller has locked the keys, or looks only.
    """
    outcome, chosen = Redelivered(), []
    held_back: list[tuple[UUID, UUID]] = []
    parked = parked_from(connection, delivery.consumer, {message.key for message in part if message.key is not None})
    logs = {message.log for message in part if message.log.partition != FROM_OUTBOX}
    begun = positions(connection, delivery.consumer, list(logs))
    for message in part:
        decoded = delivery.decode(connection, message.log, message)
        envelope, key = decoded.envelope, (message.log.topic, message.key or b"")
        if envelope is None:
            outcome.unreadable += 1
        elif isinstance(decoded, Poison):
            outcome.refused[envelope.id] = decoded.error
        elif message.log in logs and message.offset >= begun.get(message.log, (0, None))[0]:
            outcome.waiting += 1
        elif key in parked and envelope.version >= parked[key]:
            outcome.parked += 1
        elif failing and key in failing:
            held_back.append((envelope.id, failing[key]))
        else:
            chosen.append(decoded)
    applied = applied_before(connection, delivery.consumer, {held for held, _ in held_back}) if held_back else set()
    for event_id, culprit in held_back:
        if event_id in applied:
            outcome.known += 1
        elif event_id != culprit:
            outcome.failed[event_id] = f"an earlier event of its key has failed: {culprit}"
    return outcome, chosen


def _apply_chosen(
    connection: Connection,
    delivery: Delivery,
    chosen: Sequence[DecodedEvent],
    outcome: Redelivered,
    *,
    notifies_again: bool,
) -> None:
    """The chosen events are applied and counted, and notified again if that is wanted, if the caller commits."""
    processor = delivery.processor
    handled = delivery.apply(connection, chosen)
    outcome.superseded = handled.superseded
    outcome.applied = len(handled.fresh) - handled.superseded
    outcome.known += len(chosen) - len(handled.fresh)
    outcome.outside = sum(processor.notifies(envelope.event) for envelope in handled.fresh)
    if notifies_again and processor.resend is not None:
        fresh = {envelope.id for envelope in handled.fresh}
        applied = [event.envelope for event in chosen if event.envelope.id not in fresh]
        notified = {envelope.id for envelope in applied if processor.notifies(envelope.event)}
        outcome.resent = processor.resend(connection, notified) if notified else 0
