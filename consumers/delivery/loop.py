"""The delivery loop of all processors: slices of messages in, their effects committed in one database transaction.

In the transaction: progress is claimed -> messages are decoded -> the inbox drops repeats -> the handler gets the fresh events
-> poison is parked -> commit. Kafka's committed offset follows later, as a mirror. Killed at any instruction, nothing is lost
and nothing is applied twice.

`Delivery.deliver` makes these attempts, each in a transaction of its own, until every slice has its outcome:

| attempt                 | how                                      | on which error         | what next                           |
|-------------------------|------------------------------------------|------------------------|-------------------------------------|
| all slices, whole       | one handler call for all events          | handler or commit      | all slices, savepoints              |
|                         |                                          | braked, gap, flaky     | each slice alone                    |
| all slices, savepoints  | poison is found by halving               | braked                 | the braked wait, each other alone   |
|                         |                                          | gap, flaky             | each slice alone                    |
| a slice, whole          | as above                                 | handler, commit, flaky | the slice, savepoints               |
| a slice, savepoints     | as above                                 | flaky                  | the slice, in order                 |
| a slice, in order       | savepoints; poison is not retried        | (none is left)         |                                     |
| a slice, any of these   |                                          | braked, gap            | that is its outcome: nothing changed|
| any                     |                                          | `is_transient`         | raised: the caller tries later      |

Braked: the brake lets nothing be parked. Gap: the slice begins ahead of progress. Flaky: poison without evidence is retried at
the end of an attempt, and passes there. It was fixed meanwhile, or it needs an event that comes after it; only an attempt in
order tells which. That one does not retry, so the attempts end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from consumers.delivery.attempt import Attempt, AttemptMode, Handled
from consumers.delivery.brake import Brake, Braked
from consumers.delivery.messages import (
    BoundsReader,
    DecodedEvent,
    Message,
    Poison,
    Slice,
    decode_message,
    parked_row,
    rejected,
)
from consumers.delivery.metrics import DeliveryMetrics
from consumers.delivery.processor import Processor, is_transient
from outbox.inbox import Arrival, Log, arrive, claim_spans, horizon
from outbox.parking import Cause, Parked, blocked_keys, park
from schemas.codec import Envelope

SEARCH_MAX = 128
"""Halve at most this many events at a time to find poison; a larger set likely holds several failures, and halving it does not help."""

_CHECK_DEFERRED = (text("SET CONSTRAINTS ALL IMMEDIATE"), text("SET CONSTRAINTS ALL DEFERRED"))
"""Checks now what the database would check at commit. A savepoint does not, and an error at commit names no event."""


class OffsetGap(Exception):
    """A slice begins ahead of progress: it is dropped, and fetched again from there."""


class _WholeFailed(Exception):
    """The handler or the commit fails on the events as a whole: which event it is, is not known."""


class _FlakyFailure(Exception):
    """An event that failed in its place passes at the end."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """A slice whose messages are all done with: these are parked, all others applied, now or before."""

    parked: int = 0


SliceOutcome = Delivered | Braked | OffsetGap


@dataclass(frozen=True, kw_only=True)
class Retried:
    """A parked event's outcome: applied now or before, unless it has a cause to stay."""

    applied: bool
    """Applied now."""
    cause: Cause | None = None
    error: str = ""


class Delivery:
    """Applies slices for one consumer. One thread at a time."""

    def __init__(
        self,
        processor: Processor,
        engine: Engine,
        *,
        consumer: str,
        clock: Callable[[], datetime],
        brake: Brake | None = None,
        horizon: Callable[[Connection, str], tuple[UUID, UUID]] = horizon,
    ) -> None:
        self.processor = processor
        self.consumer = consumer
        self._engine = engine
        self._bounds = BoundsReader(processor.service, consumer, clock=clock, horizon=horizon)
        self._brake = brake or Brake()
        self._metrics = DeliveryMetrics(consumer)

    def deliver(self, slices: Sequence[Slice]) -> Mapping[Log, SliceOutcome]:
        """Every message of a slice that is Delivered is applied, known as applied before, or parked; progress is at its end.

        The other slices changed nothing. At most one slice of each log. Own transactions, as the table above has them. May be
        repeated at any point. Raises whatever the database raises that `is_transient` knows: try again.
        """
        outcomes = self._deliver_together(slices) if len(slices) > 1 else {}
        return outcomes | {slice_.log: self._deliver_alone(slice_) for slice_ in slices if slice_.log not in outcomes}

    def retry(self, connection: Connection, log: Log, message: Message) -> Retried:
        """Return the outcome of retrying a parked message's event; if it still fails, nothing has changed.

        Transaction: the caller's, under a savepoint. May be repeated: the inbox knows an event that was applied. Raises what
        `is_transient` knows. An event that was parked as ahead of the clock is applied once the inbox has its day.
        """
        decoded = decode_message(log, message, self._bounds.of_days(connection))
        if isinstance(decoded, DecodedEvent):
            try:
                with connection.begin_nested():
                    return Retried(applied=bool(self._apply_checked(connection, [decoded]).fresh))
            except Exception as error:
                if is_transient(error):
                    raise
                decoded = rejected(decoded, error)
        return Retried(applied=False, cause=decoded.cause, error=decoded.error)

    def decode(self, connection: Connection, log: Log, message: Message) -> DecodedEvent | Poison:
        """Return the message as the live stream would decode it. Transaction: the caller's, in which it reads."""
        return decode_message(log, message, self._bounds.of_now(connection))

    def apply(self, connection: Connection, events: Sequence[DecodedEvent]) -> Handled:
        """Each event that was not applied before is applied, in order, including what is checked at commit.

        Transaction: the caller's, who rolls it back if this raises: whatever the handler or the database raises. Once the
        caller has committed it may be repeated. Progress stays where it is.
        """
        return self._apply_checked(connection, events)

    def note_begun(self) -> None:
        """The consumer may have begun a topic: its bounds are read again. Safe from any thread."""
        self._bounds.forget()

    # ---- attempts, each a transaction ---------------------------------------------------------------------------

    def _deliver_together(self, slices: Sequence[Slice]) -> dict[Log, SliceOutcome]:
        """Return the outcomes that two attempts at all slices in one transaction bring; a slice without one is still to do."""
        try:
            return self._commit(slices, AttemptMode.WHOLE)
        except _WholeFailed:
            pass
        except (_FlakyFailure, Braked, OffsetGap):  # one slice stands in the way of the others
            return {}
        try:
            return self._commit(slices, AttemptMode.SAVEPOINTS)
        except Braked as error:
            return dict.fromkeys(error.logs, error)
        except (_FlakyFailure, OffsetGap):
            return {}

    def _deliver_alone(self, slice_: Slice) -> SliceOutcome:
        """Try the whole slice; on failure under savepoints, to find poison; if the failure was flaky, again in order."""
        for mode in (AttemptMode.WHOLE, AttemptMode.SAVEPOINTS, AttemptMode.IN_ORDER):
            try:
                return self._commit([slice_], mode)[slice_.log]
            except (OffsetGap, Braked) as error:
                return error
            except (_WholeFailed, _FlakyFailure):
                continue
        raise AssertionError("under savepoints each failure is named")

    def _commit(self, slices: Sequence[Slice], mode: AttemptMode) -> dict[Log, SliceOutcome]:
        """The slices' transaction is committed; only now does the brake count what was parked, and the metrics what was done."""
        attempt = Attempt(self._brake, mode)
        began = time.monotonic()
        try:
            parked = self._apply_or_park(slices, attempt)
        except DBAPIError as error:
            # A deferred check has failed at commit, which names no event. Under savepoints such checks came before it.
            if mode is not AttemptMode.WHOLE or is_transient(error):
                raise
            raise _WholeFailed from error
        self._brake.saw_parked(attempt.poison)
        self._metrics.committed(
            records=sum(len(slice_.messages) for slice_ in slices),
            applied=attempt.applied,
            superseded=attempt.superseded,
            parked=sum(map(len, parked.values())),
            began=began,
            first=attempt.first,
        )
        return {log: Delivered(parked=len(rows)) for log, rows in parked.items()}

    def _apply_or_park(self, slices: Sequence[Slice], attempt: Attempt) -> Mapping[Log, Sequence[Parked]]:
        """Return what was parked of each slice, in the transaction that has claimed progress and applied the others."""
        with self._engine.begin() as connection:
            spans = {slice_.log: range(slice_.start, slice_.end) for slice_ in slices}
            claims = claim_spans(connection, self.consumer, spans)
            if ahead := spans.keys() - claims.keys():
                raise OffsetGap(
                    f"the messages begin ahead of progress, so they are read again from there: {', '.join(str(log) for log in ahead)}"
                )
            messages = [
                (slice_.log, message)
                for slice_ in slices
                for message in slice_.messages
                if message.offset >= claims[slice_.log].begin
            ]
            # Of thousands of batches hardly one meets a parked key: the claim says whether it is worth a look.
            if any(claim.has_parked for claim in claims.values()):
                keys = {message.key for _, message in messages if message.key is not None}
                attempt.blocked = blocked_keys(connection, self.consumer, keys)
            self._decode_and_apply(connection, messages, attempt)
            if attempt.mode is not AttemptMode.IN_ORDER:
                self._retry_unproven(connection, attempt)
            self._brake.judge(attempt.poison)
            aside = sorted((*attempt.poison, *attempt.behind), key=lambda poison: poison.message.offset)
            parked = {
                slice_.log: [parked_row(poison) for poison in aside if poison.log == slice_.log] for slice_ in slices
            }
            park(connection, self.consumer, parked)
        return parked

    # ---- inside the transaction ---------------------------------------------------------------------------------

    def _decode_and_apply(
        self, connection: Connection, messages: Sequence[tuple[Log, Message]], attempt: Attempt
    ) -> None:
        """Every message is applied or set aside. Poison that does not decode never reaches the handler."""
        bounds = self._bounds.of_now(connection)
        events: list[DecodedEvent] = []
        for log, message in messages:
            decoded = decode_message(log, message, bounds)
            if isinstance(decoded, Poison):
                attempt.reject_message(decoded)
            else:
                events += attempt.flowing([decoded], attempt.blocked)
        if attempt.mode is AttemptMode.WHOLE:
            self._apply_whole(connection, events, attempt)
        else:
            self._apply_under_savepoints(connection, events, attempt)

    def _apply_whole(self, connection: Connection, events: Sequence[DecodedEvent], attempt: Attempt) -> None:
        """Every event is applied. Deferred checks are left to the commit, which saves two statements a batch."""
        try:
            attempt.passed(self._apply_fresh(connection, events))
        except Exception as error:
            if is_transient(error):
                raise
            raise _WholeFailed from error

    def _apply_under_savepoints(self, connection: Connection, events: Sequence[DecodedEvent], attempt: Attempt) -> None:
        """Every event is applied or rejected."""
        for run in self._brake.apart(events):
            for first in range(0, len(run), SEARCH_MAX):
                self._find_poison(connection, run[first : first + SEARCH_MAX], attempt)

    def _find_poison(
        self, connection: Connection, events: Sequence[DecodedEvent], attempt: Attempt, *, fails: bool = False
    ) -> bool:
        """Every event is applied, or alone found to fail. Each try has a savepoint; returns whether all were applied.

        `fails`: they are known to fail together, so they are halved without a try.
        """
        # Earlier halves may have rejected an event of a key that has more events here.
        events = attempt.flowing(events, attempt.failed)
        if not events:
            return True
        if len(events) == 1 or not fails:
            try:
                with connection.begin_nested():
                    handled = self._apply_checked(connection, events)
            except Exception as error:
                if is_transient(error):
                    raise
                if len(events) == 1:
                    attempt.reject_event(rejected(events[0], error))
                    return False
            else:
                attempt.passed(handled)
                return True
        middle = len(events) // 2
        first_passes = self._find_poison(connection, events[:middle], attempt)
        # The set fails: if its first half passes, the second must hold the poison.
        self._find_poison(connection, events[middle:], attempt, fails=first_passes)
        return False

    def _retry_unproven(self, connection: Connection, attempt: Attempt) -> None:
        """Poison without evidence has failed again, now that others have passed. Raises _FlakyFailure if it passes now."""
        for poison in self._brake.unproven(attempt.poison):
            retried = self.retry(connection, poison.log, poison.message)
            if retried.cause is None:
                raise _FlakyFailure
            self._brake.saw_failure(poison)

    def _apply_checked(self, connection: Connection, events: Sequence[DecodedEvent]) -> Handled:
        """The fresh events are applied, and what the database would check at commit holds."""
        handled = self._apply_fresh(connection, events)
        for statement in _CHECK_DEFERRED:
            connection.execute(statement)
        return handled

    def _apply_fresh(self, connection: Connection, events: Sequence[DecodedEvent]) -> Handled:
        """The inbox has the events, and the handler has applied those that it did not have before."""
        if not events:
            return Handled()
        arrivals = [Arrival(event_id=event.envelope.id, log=event.log, offset=event.message.offset) for event in events]
        known = arrive(connection, self.consumer, arrivals, behind=self._bounds.of_days(connection).behind)
        by_id: dict[UUID, Envelope] = {}
        for event in events:  # the first of its id: a repeat does not move it behind later ones
            by_id.setdefault(event.envelope.id, event.envelope)
        fresh = [envelope for envelope in by_id.values() if envelope.id not in known]
        if not fresh:
            return Handled()
        with self._metrics.handler.time():
            superseded = self.processor.handle(connection, fresh)
        return Handled(fresh=fresh, superseded=len(superseded or ()))
