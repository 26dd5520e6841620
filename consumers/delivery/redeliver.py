"""Events handed to a processor's handler once more, with dedupe on, beside the live stream: the edge that owns the transactions.

Progress and Kafka's offsets stay where they are. Why it is safe, per key, beside the live stream (L), a retry (R) and itself:

- Once: the inbox decides. Whoever inserts an event's row second waits for the first and then knows the event, or, if the first
  has rolled back, applies it. That alone holds for every interleaving.
- R, a skip, another redelivery: one after the other, by the lock of the key (outbox/parking.py).
- L with a key that is parked: it looks into the lot, takes the same lock, and looks again.
- L with a key that is not parked takes no lock, and needs none. What is handed over here lies below L's progress (it is checked
  in the transaction), so in its log before everything that L has in hand: applied before or after L's batch, it comes out of
  its turn either way, since later events of its key may have been applied long ago. That is what `superseded` is for. And what L
  parks meanwhile comes after it too. So the live path is as it was: no statement more, no look, no lock.
- An event that the parking lot holds, or that is later than what it holds of its key and topic, is not applied past it. An
  earlier one is: it may be what the parked one fails for the want of.
- Locks are taken in L's order: keys by number, inbox rows in id order by one statement, the handler's rows by one call. A set
  that fails is halved into transactions of their own, not under savepoints, so that this order holds; nobody here takes a lock on
  progress. L that searches for poison under savepoints takes handler's rows in several turns; should the two meet then, the
  database ends one of them, and either tries again.

What fails here is told, not parked: it is as missing as it was, and to park it would hold up its key for what lies in the past.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from uuid import UUID

from sqlalchemy import Connection, Engine

from consumers.delivery.loop import Delivery, Opened, headers_of, is_transient, told
from consumers.delivery.retry import transact
from outbox.inbox import Log, applied_before, positions
from outbox.parking import lock_keys, parked_from
from schemas.codec import ID

SET_MAX = 500
"""Events of one transaction: rows that the live stream may wait for are held for a fraction of a second."""

FAILURES_MAX = 100
"""More failing events than this are a broken handler: the run ends."""

FROM_OUTBOX = -1
"""Partition and offset of an event that was read from its outbox: it lies nowhere on a topic, or nobody has looked where."""


@dataclass(slots=True, kw_only=True)
class Found:
    """A record found again: on its topic, or made of its outbox row as the connector would make it."""

    log: Log
    offset: int
    key: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    value: bytes | None


@dataclass(kw_only=True)
class Redelivered:
    """What became of events that were handed over once more; not executed, what would become of them as things stand."""

    applied: int = 0
    superseded: int = 0
    """Passed over by the handler as older than what their key has; known from now on."""
    known: int = 0
    """Had been applied before, or skipped by an operator."""
    resent: int = 0
    """Known ones of which the outside is told once more, under the same ids."""
    parked: int = 0
    """Parked, or behind what is parked of their key: payrelay parked retry."""
    waiting: int = 0
    """The live stream has yet to come to them, or to an earlier one of their key."""
    outside: int = 0
    """Of those applied, those of which the outside is told for the first time."""
    unreadable: int = 0
    refused: dict[UUID, str] = field(default_factory=dict)
    """Older than the inbox remembers, or ahead of the clock: whether they were applied cannot be known."""
    failed: dict[UUID, str] = field(default_factory=dict)
    """Why each event failed, alone, or was not tried since an earlier one of its key has failed."""
    missing: set[UUID] = field(default_factory=set)
    """Asked for by id, and found nowhere."""
    cut_short: bool = False
    """Too many have failed: the rest was not tried."""

    @property
    def is_whole(self) -> bool:
        """Whether everything asked for was found, and what could be applied is."""
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
"""A topic and a record key."""


def redeliver(
    engine: Engine, delivery: Delivery, records: Iterable[Found], *, resends_external: bool = False
) -> Redelivered:
    """Each record's event that was not applied before is, unless the outcome says why not; progress is where it was.

    Records come in the order of their log, or of their key's versions. Own transactions, one for many events; of a set that
    fails, halves. May be repeated, cut off anywhere, and run beside the live stream, retries and itself. `resends_external`:
    of events known as applied the outside is told once more. Raises what `is_transient` knows once it has lasted.
    """
    total = Redelivered()
    failing: dict[Key, UUID] = {}
    iterator = iter(records)
    while part := list(islice(iterator, SET_MAX)):
        _hand_over(engine, delivery, part, total, failing, resends_external=resends_external)
        if len(total.failed) > FAILURES_MAX:
            total.cut_short = next(iterator, None) is not None
            break
    return total


def _hand_over(
    engine: Engine,
    delivery: Delivery,
    part: Sequence[Found],
    total: Redelivered,
    failing: dict[Key, UUID],
    *,
    resends_external: bool,
) -> None:
    """The part's outcome is in the total. As one transaction; if something in it fails, as two halves, the first half first."""
    try:
        outcome = transact(engine, lambda connection: _apply(connection, delivery, part, failing, resends_external))
    except Exception as error:
        if is_transient(error):
            raise
        if len(part) == 1:
            [one] = part
            identity = UUID(headers_of(one)[ID].decode())
            total.failed[identity] = told(error)
            failing[one.log.topic, one.key or b""] = identity
            return
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            _hand_over(engine, delivery, half, total, failing, resends_external=resends_external)
    else:
        total.add(outcome)


def _apply(
    connection: Connection,
    delivery: Delivery,
    part: Sequence[Found],
    failing: dict[Key, UUID],
    resends_external: bool,
) -> Redelivered:
    """Return what becomes of the part if the caller commits. Raises whatever the handler raises at one of its events."""
    lock_keys(connection, delivery.consumer, {one.key for one in part if one.key is not None})
    outcome, chosen = sort_out(connection, delivery, part, failing=failing)
    _apply_chosen(connection, delivery, chosen, outcome, resends_external=resends_external)
    return outcome


def sort_out(
    connection: Connection, delivery: Delivery, part: Sequence[Found], *, failing: Mapping[Key, UUID] | None = None
) -> tuple[Redelivered, list[Opened]]:
    """Return what is not to be applied, counted, and what is, in order, as far as it was not applied before. Reads only.

    `failing` names keys with an event of them that has failed. The caller has locked the keys, or looks only.
    """
    outcome, chosen = Redelivered(), []
    held_back: list[tuple[UUID, UUID]] = []
    parked = parked_from(connection, delivery.consumer, {one.key for one in part if one.key is not None})
    logs = {one.log for one in part if one.log.partition != FROM_OUTBOX}
    begun = positions(connection, delivery.consumer, list(logs))
    for one in part:
        opened = delivery.open(connection, one.log, one)
        envelope, key = opened.envelope, (one.log.topic, one.key or b"")
        if envelope is None:
            outcome.unreadable += 1
        elif opened.cause is not None:
            outcome.refused[envelope.id] = opened.error
        elif one.log in logs and one.offset >= begun.get(one.log, (0, None))[0]:
            outcome.waiting += 1
        elif key in parked and envelope.version >= parked[key]:
            outcome.parked += 1
        elif failing and key in failing:
            held_back.append((envelope.id, failing[key]))
        else:
            chosen.append(opened)
    known = applied_before(connection, delivery.consumer, {one for one, _ in held_back}) if held_back else set()
    for identity, culprit in held_back:
        if identity in known:
            outcome.known += 1
        elif identity != culprit:
            outcome.failed[identity] = f"an earlier event of its key has failed: {culprit}"
    return outcome, chosen


def _apply_chosen(
    connection: Connection,
    delivery: Delivery,
    chosen: Sequence[Opened],
    outcome: Redelivered,
    *,
    resends_external: bool,
) -> None:
    processor = delivery.processor
    handled = delivery.apply(connection, chosen)
    outcome.superseded = handled.superseded
    outcome.applied = len(handled.fresh) - handled.superseded
    outcome.known += len(chosen) - len(handled.fresh)
    outcome.outside = sum(processor.touches_outside(envelope.event) for envelope in handled.fresh)
    if resends_external and processor.resend is not None:
        fresh = {envelope.id for envelope in handled.fresh}
        envelopes = [one.envelope for one in chosen if one.envelope is not None and one.envelope.id not in fresh]
        known = {envelope.id for envelope in envelopes if processor.touches_outside(envelope.event)}
        outcome.resent = processor.resend(connection, known) if known else 0
