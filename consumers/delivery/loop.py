"""The one loop of all processors: what has come in, applied in one database transaction.

progress locked -> inbox rows in id order -> the fresh events to the handler -> what is poison parked -> progress
advanced -> commit; Kafka's committed offset follows as a mirror. Killed at any instruction, nothing is lost or doubled.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from consumers.delivery.metrics import DeliveryMetrics
from outbox.clock import first_id_at, time_of
from outbox.database import database_now
from outbox.errors import AheadOfClock
from outbox.inbox import NO_HORIZON, Arrival, Log, arrive, behind_horizons, claim_spans, horizon
from outbox.parking import Cause, Parked, blocked_keys, park
from schemas.codec import TYPE, Envelope, Undecodable, UnknownType, UnknownVersion, decode
from schemas.events import Event
from schemas.topics import Topic

PARKED_KEYS_MAX = 20
PARKED_WINDOW_S = 60.0
"""More keys than this within this time are no poison but a broken handler: the brake holds."""

PATIENCE = 6
"""Failures of an event that only events of its own type may bear witness against; each delivery is two."""

SEARCH_MAX = 128
"""Events among which what fails is searched by halving; of more, several are likely to fail, and half of them in vain."""

WAITING_MAX = 10_000
"""Events whose first failure is remembered."""

_CHECK_DEFERRED = (text("SET CONSTRAINTS ALL IMMEDIATE"), text("SET CONSTRAINTS ALL DEFERRED"))
"""What the database would check at commit, checked now: a savepoint does not, and the commit's error names no event."""

CLOCK_TOLERANCE = timedelta(minutes=5)
LAST_ID = UUID(int=(1 << 128) - 1)
HORIZON_S = 60.0
"""How long the inbox's days are remembered before they are read again."""

TRANSIENT_CLASSES = ("08", "40", "53", "57", "58")
"""SQLSTATE classes: connection, rollback (serialization, deadlock), resources, operator intervention, system."""

TRANSIENT_CODES = ("25006", "25P03", "25P04", "55P03", "55006")
"""Read-only (a fail-over is on), idle or whole transaction timed out, lock not available, object in use."""


class Record(Protocol):
    """A record as the Kafka client hands it over."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A consumer of topics: what it is called, whose rows it owns, what it does."""

    name: str
    service: str
    topics: tuple[Topic, ...]
    handle: Callable[[Connection, Sequence[Envelope]], Collection[UUID] | None]
    """Applies events in order, in the caller's transaction; a function of the events and its own rows only.

    Where what it writes depends on the order of events, it compares `version` with what its locked row has, passes over what
    is older, and returns those ids: superseded. They are done with, as what it applied. Where order does not matter, None.
    Raises DuplicateFact where the fact has an effect already; anything else it raises counts as a rejection.
    """
    touches_outside: Callable[[Event], bool] = lambda _: False
    """Whether what the handler writes of an event makes somebody outside be told, who cannot be untold."""
    resend: Callable[[Connection, Collection[UUID]], int] | None = None
    """Tells the outside once more of events that were applied, under the same notification ids; returns of how many."""


class DuplicateFact(Exception):
    """A second event for a fact that already has its effect."""


class Braked(Exception):
    """Nothing passes: rather than parked one by one, the events wait where they are."""

    def __init__(self, message: str, logs: Collection[Log] = ()) -> None:
        super().__init__(message)
        self.logs = logs
        """Where they wait."""


class _Failed(Exception):
    """Something in the run fails."""


class _Unsteady(Exception):
    """What failed in its place passes at the end."""


class Unexpected(Exception):
    """A slice does not follow on the progress: it is dropped and fetched again from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Records of one log as they were fetched: from the fetch position `start` up to, not including, `end`.

    The log explains gaps between the two; there is none between one slice's end and the next one's start.
    """

    log: Log
    start: int
    end: int
    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class _Event:
    """A record that reads as an event."""

    log: Log
    record: Record
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class _Poison:
    """A record that cannot be applied, and why."""

    log: Log
    record: Record
    cause: Cause
    error: str
    envelope: Envelope | None = None
    is_ahead: bool = False
    """Whether it is ahead of the clock: no sign of a broken handler."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """What became of a slice's records: these are parked, all others applied, now or before."""

    parked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A record and its event, or why it holds none that could be applied."""

    log: Log
    record: Record
    envelope: Envelope | None
    cause: Cause | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled:
    """What the handler was given and has not raised at."""

    fresh: Sequence[Envelope] = ()
    """Not applied before; in order."""
    superseded: int = 0
    """Of these, those that it passed over as older than what their key has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Which ids can be applied: from `low` on, and before `high` and `ahead`."""

    low: UUID
    """The inbox's oldest day: older repeats would not be recognised."""
    high: UUID
    """The end of the inbox's last day."""
    ahead: UUID
    """Too far ahead of the clocks from there on."""
    behind: Mapping[str, UUID]
    """Of topics whose past the consumer has yet to read: older ids than this are applied too, by a table of their own."""


@dataclass(frozen=True, kw_only=True)
class Retried:
    """What became of a parked event: applied, or known as applied before, unless it has a cause to stay."""

    applied: bool
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
        self._clock = clock
        self._read_horizon = horizon
        self._bounds_read: tuple[float, int, Bounds] | None = None
        self._begun = 0
        self._database_ahead = timedelta()
        """How far the database's clock is ahead of ours."""
        self._brake = brake or Brake()
        self._metrics = DeliveryMetrics(consumer)

    def deliver(self, slices: Sequence[Slice]) -> Mapping[Log, Delivered | Braked | Unexpected]:
        """Every record of a slice that is Delivered is applied, known as applied before, or parked; progress is at its end.

        The others changed nothing. Of each log one slice. Own transaction: one for all; where that is braked, one for each.
        May be repeated at any point. Raises whatever the database raises that `is_transient` knows: try again.
        """
        outcomes: dict[Log, Delivered | Braked | Unexpected] = {}
        if len(slices) > 1:
            try:
                return self._attempt(slices, bisects=False)
            except (_Failed, _Unsteady, Braked, Unexpected) as error:  # one of them stands in the way
                failed = isinstance(error, _Failed)
            try:
                if failed:
                    return self._attempt(slices, bisects=True)
            except Braked as error:
                outcomes = dict.fromkeys(error.logs, error)
            except (_Unsteady, Unexpected):
                pass
        return outcomes | {one.log: self._deliver_alone(one) for one in slices if one.log not in outcomes}

    def retry(self, connection: Connection, log: Log, record: Record) -> Retried:
        """Return what became of a parked record's event; where it fails still, nothing of it has changed.

        Transaction: the caller's, under a savepoint. May be repeated: applied once, it is known. Raises what `is_transient` knows.
        An event that was parked as ahead of the clock is applied once the inbox has its day.
        """
        item = _read(log, record, self._days(connection))
        if isinstance(item, _Event):
            try:
                with connection.begin_nested():
                    return Retried(applied=bool(self._handle_whole(connection, [item]).fresh))
            except Exception as error:
                if is_transient(error):
                    raise
                item = _poison(item, error)
        return Retried(applied=False, cause=item.cause, error=item.error)

    def open(self, connection: Connection, log: Log, record: Record) -> Opened:
        """Return the record's event as the live stream would read it. Transaction: the caller's, in which it reads."""
        item = _read(log, record, self._bounds(connection))
        if isinstance(item, _Event):
            return Opened(log=log, record=record, envelope=item.envelope)
        return Opened(log=log, record=record, envelope=item.envelope, cause=item.cause, error=item.error)

    def apply(self, connection: Connection, opened: Sequence[Opened]) -> Handled:
        """Each event that was not applied before is applied, in order, what is checked at commit included.

        Transaction: the caller's, who rolls it back if this raises: whatever the handler or the database raises. Once the
        caller has committed it may be repeated. Progress stays where it is.
        """
        events = [_Event(one.log, one.record, one.envelope) for one in opened if one.envelope is not None]
        return self._handle_whole(connection, events)

    def _deliver_alone(self, one: Slice) -> Delivered | Braked | Unexpected:
        """As a whole; if something in it fails, under savepoints, to find out what; if that passes later on, in order once more."""
        for bisects, again in ((False, True), (True, True), (True, False)):
            try:
                return self._attempt([one], bisects=bisects, again=again)[one.log]
            except (Unexpected, Braked) as error:
                return error
            except (_Failed, _Unsteady):
                continue
        raise AssertionError("under savepoints each failure is named")

    def _attempt(
        self, slices: Sequence[Slice], *, bisects: bool, again: bool = True
    ) -> dict[Log, Delivered | Braked | Unexpected]:
        outcome = _Outcome(self._brake, bisects=bisects)
        began = time.monotonic()
        try:
            parked = self._transact(slices, outcome, again=again)
        except DBAPIError as error:  # what is checked at commit; under savepoints it is checked there
            if bisects or is_transient(error):
                raise
            raise _Failed from error
        self._brake.parked(outcome.poison)
        self._metrics.committed(
            records=sum(len(one.records) for one in slices),
            applied=outcome.applied,
            superseded=outcome.superseded,
            parked=sum(map(len, parked.values())),
            began=began,
            first=outcome.first,
        )
        return {log: Delivered(parked=len(events)) for log, events in parked.items()}

    def _transact(self, slices: Sequence[Slice], outcome: _Outcome, *, again: bool) -> Mapping[Log, Sequence[Parked]]:
        """Return what was parked of each slice, in the transaction that has applied the others."""
        with self._engine.begin() as connection:
            spans = {one.log: range(one.start, one.end) for one in slices}
            claims = claim_spans(connection, self.consumer, spans)
            if ahead := spans.keys() - claims.keys():
                raise Unexpected(f"the slice begins ahead of progress: {', '.join(str(log) for log in ahead)}")
            records = [
                (one.log, record) for one in slices for record in one.records if record.offset >= claims[one.log].begin
            ]
            if any(claim.has_parked for claim in claims.values()):
                keys = {record.key for _, record in records if record.key is not None}
                outcome.blocked = blocked_keys(connection, self.consumer, keys)
            self._apply(connection, records, outcome)
            if again:
                self._try_again(connection, outcome)
            self._brake.judge(outcome.poison)
            aside = sorted((*outcome.poison, *outcome.behind), key=lambda poison: poison.record.offset)
            parked = {one.log: [_parked(poison) for poison in aside if poison.log == one.log] for one in slices}
            park(connection, self.consumer, parked)
        return parked

    def _apply(self, connection: Connection, records: Sequence[tuple[Log, Record]], outcome: _Outcome) -> None:
        """Every record is applied or set aside. What cannot be read never reaches the handler: the rest is one run."""
        bounds = self._bounds(connection)
        run: list[_Event] = []
        for log, record in records:
            item = _read(log, record, bounds)
            if isinstance(item, _Poison):
                outcome.reject(item)
            else:
                run += outcome.flowing([item], outcome.blocked)
        self._run(connection, run, outcome)

    def _try_again(self, connection: Connection, outcome: _Outcome) -> None:
        """What has no witness yet has failed once more, now that others have passed. Raises _Unsteady if something passes now.

        Whether that was mended, or needs what came after it, only another attempt in order can tell.
        """
        for poison in self._brake.unwitnessed(outcome.poison):
            retried = self.retry(connection, poison.log, poison.record)
            if retried.cause is None:
                raise _Unsteady
            self._brake.saw_failure(poison)

    def _run(self, connection: Connection, events: Sequence[_Event], outcome: _Outcome) -> None:
        """Every event of the run is applied or rejected. As a whole first; under savepoints only once that has failed."""
        if outcome.bisects:
            for part in self._brake.parts(events):
                for first in range(0, len(part), SEARCH_MAX):
                    self._bisect(connection, part[first : first + SEARCH_MAX], outcome)
            return
        try:
            outcome.passed(self._handle(connection, events))
        except Exception as error:
            if is_transient(error):
                raise
            raise _Failed from error

    def _bisect(
        self, connection: Connection, events: Sequence[_Event], outcome: _Outcome, *, fails: bool = False
    ) -> bool:
        """Every event is applied, or is alone found to be what fails. Each attempt has a savepoint of its own.

        Returns whether all were applied. Several that are known to fail together are not tried together again.
        """
        events = outcome.flowing(events, outcome.failed)
        if not events:
            return True
        if len(events) == 1 or not fails:
            try:
                with connection.begin_nested():
                    handled = self._handle_whole(connection, events)
            except Exception as error:
                if is_transient(error):
                    raise
                if len(events) == 1:
                    outcome.fail(_poison(events[0], error))
                    return False
            else:
                outcome.passed(handled)
                return True
        middle = len(events) // 2
        passes = self._bisect(connection, events[:middle], outcome)
        self._bisect(connection, events[middle:], outcome, fails=passes)  # if not here, where?
        return False

    def _handle_whole(self, connection: Connection, events: Sequence[_Event]) -> Handled:
        handled = self._handle(connection, events)
        for statement in _CHECK_DEFERRED:
            connection.execute(statement)
        return handled

    def _handle(self, connection: Connection, events: Sequence[_Event]) -> Handled:
        if not events:
            return Handled()
        arrivals = [Arrival(event_id=event.envelope.id, log=event.log, offset=event.record.offset) for event in events]
        known = arrive(connection, self.consumer, arrivals, behind=self._bounds(connection).behind)
        once: dict[UUID, Envelope] = {}
        for event in events:  # the first of its id: a repeat does not move it behind later ones
            once.setdefault(event.envelope.id, event.envelope)
        fresh = [envelope for envelope in once.values() if envelope.id not in known]
        if not fresh:
            return Handled()
        with self._metrics.handler.time():
            superseded = self.processor.handle(connection, fresh)
        return Handled(fresh=fresh, superseded=len(superseded or ()))

    def note_begun(self) -> None:
        """The consumer may have begun a topic: what is known of its horizon is read again. Safe from any thread."""
        self._begun += 1

    def _bounds(self, connection: Connection) -> Bounds:
        """Return which ids can be applied, by the inbox's days and the later of two clocks.

        Ours alone may be slow: then every event would look ahead, and be parked.
        """
        days = self._days(connection)
        now = self._clock() + self._database_ahead
        return replace(days, ahead=first_id_at(now + CLOCK_TOLERANCE))

    def _days(self, connection: Connection) -> Bounds:
        """Return which ids can be applied by the inbox's days, whatever the clocks say."""
        begun = self._begun
        if (read := self._bounds_read) is None or read[1] != begun or time.monotonic() - read[0] > HORIZON_S:
            low, high = self._read_horizon(connection, self.processor.service)
            bounds = Bounds(low=low, high=high, ahead=LAST_ID, behind=behind_horizons(connection, self.consumer))
            self._bounds_read = read = (time.monotonic(), begun, bounds)
            self._database_ahead = max(timedelta(), database_now(connection) - self._clock())
        return read[2]


class _Outcome:
    """What has become of the records so far."""

    def __init__(self, brake: Brake, *, bisects: bool) -> None:
        self.bisects = bisects
        self._brake = brake
        self.blocked: set[bytes] = set()
        """Keys that are parked, or have an unreadable record in front."""
        self.failed: set[bytes] = set()
        """Keys of events that the handler rejects; an unreadable record may come behind them."""
        self.poison: list[_Poison] = []
        self.behind: list[_Poison] = []
        self.applied = 0
        self.superseded = 0
        self.first: UUID | None = None
        """Id of the first event that was applied."""

    def passed(self, handled: Handled) -> None:
        """The events were applied."""
        events = handled.fresh
        self.applied += len(events)
        self.superseded += handled.superseded
        if events and self.first is None:
            self.first = events[0].id
        self._brake.saw_pass({event.event.type for event in events})

    def reject(self, poison: _Poison) -> None:
        """The record is poison, or parks behind its key's; later ones of its key park behind it."""
        if poison.record.key is not None and poison.record.key in self.blocked:
            self.behind.append(poison)
        else:
            self._reject(poison, self.blocked)

    def fail(self, poison: _Poison) -> None:
        """The handler rejects the event, tried alone; later ones of its key park behind it."""
        self._reject(poison, self.failed)
        if (
            self._brake.holds and len(self.poison) > PARKED_KEYS_MAX and not self.applied
        ):  # no need to try the rest of them one by one
            logs = {one.log for one in self.poison}
            raise Braked(f"nothing passes; the last is {poison.cause} {poison.error[:300]}", logs)

    def _reject(self, poison: _Poison, keys: set[bytes]) -> None:
        self.poison.append(poison)
        self._brake.saw_failure(poison)
        if poison.record.key is not None:
            keys.add(poison.record.key)

    def flowing(self, events: Sequence[_Event], blocked: Collection[bytes]) -> list[_Event]:
        """Return the events whose key is not blocked; the others park behind it."""
        flowing = []
        for event in events:
            if event.record.key in blocked:
                self.behind.append(
                    _Poison(event.log, event.record, Cause.BEHIND_PARKED, "its key is parked", event.envelope)
                )
            else:
                flowing.append(event)
        return flowing


class Brake:
    """Tells poison from a broken handler: poison fails while others pass.

    A rejected event is parked if an event of its type has passed since it was first seen failing, and it then failed again;
    after its sixth failure, some three seconds, any type will do: a rare one may not have another for days. For an unreadable
    event, any type will do at once. So a handler that is mended half-way through a slice parks nothing. Until then the event
    waits, and so does everything if too many keys would be parked. What was rolled back is a witness all the same. An event ahead
    of the clock counts for nothing here: a clock was wrong, not the handler.

    One that does not hold parks whatever fails, at once: for a shadow, where nothing is at stake.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, *, holds: bool = True) -> None:
        self.holds = holds
        self._now = now
        self._tick = 0
        self._failed: dict[tuple[Log, int], tuple[int, int]] = {}
        """First failure of each event that waits, and how many there were."""
        self._witnessed: set[tuple[Log, int]] = set()
        """Events that failed again after others had passed."""
        self._passed: dict[str, int] = {}
        """Last pass of each type."""
        self._parked: deque[tuple[float, object]] = deque()

    def saw_pass(self, types: Collection[str]) -> None:
        """Events of these types went through the handler."""
        self._tick += 1
        self._passed.update(dict.fromkeys(types, self._tick))

    def saw_failure(self, poison: _Poison) -> None:
        """The event failed, alone."""
        self._tick += 1
        first, times = self._failed.get(_place(poison), (self._tick, 0))
        self._failed[_place(poison)] = (first, times + 1)
        if len(self._failed) > WAITING_MAX:  # the oldest begins anew
            self._failed.pop(next(iter(self._failed)))
        if poison.cause is Cause.REJECTED and poison.envelope is not None and times + 1 < PATIENCE:
            witnesses = [self._passed.get(poison.envelope.event.type, 0)]
        else:
            witnesses = list(self._passed.values())
        if any(passed > first for passed in witnesses):
            if len(self._witnessed) >= WAITING_MAX:  # of events that were mended since, most likely
                self._witnessed.clear()
            self._witnessed.add(_place(poison))

    def parts(self, events: Sequence[_Event]) -> list[list[_Event]]:
        """Return the events in order, each that has failed before by itself: it need not be searched for again."""
        parts: list[list[_Event]] = [[]]
        for event in events:
            if (event.log, event.record.offset) in self._failed:
                parts += [[event], []]
            else:
                parts[-1].append(event)
        return [part for part in parts if part]

    def unwitnessed(self, poison: Sequence[_Poison]) -> list[_Poison]:
        """Return the poison of which it is not known yet that others pass where it fails."""
        if not self.holds:
            return []
        doubtful = [item for item in poison if item.cause is not Cause.DUPLICATE_FACT and not item.is_ahead]
        return [item for item in doubtful if _place(item) not in self._witnessed]

    def judge(self, poison: Sequence[_Poison]) -> None:
        """Return if the poison may be parked; raises Braked if it must wait."""
        if unwitnessed := self.unwitnessed(poison):
            first, logs = unwitnessed[0], {item.log for item in unwitnessed}
            raise Braked(f"nothing passes; the first is {first.cause} {first.error[:300]}", logs)
        now = self._now()
        while self._parked and now - self._parked[0][0] > PARKED_WINDOW_S:
            self._parked.popleft()
        counted = [item for item in poison if not item.is_ahead]
        keys = {key for _, key in self._parked} | {_key(item) for item in counted}
        if counted and self.holds and len(keys) > PARKED_KEYS_MAX:
            logs = {item.log for item in counted}
            raise Braked(
                f"{len(keys)} keys would be parked within a minute, the last for {counted[-1].error[:300]}", logs
            )

    def parked(self, poison: Sequence[_Poison]) -> None:
        """The poison is parked, and counted."""
        now = self._now()
        for item in poison:
            if not item.is_ahead:
                self._parked.append((now, _key(item)))
            self._failed.pop(_place(item), None)
            self._witnessed.discard(_place(item))


def _place(poison: _Poison) -> tuple[Log, int]:
    return poison.log, poison.record.offset


def _key(poison: _Poison) -> object:
    """Return what the brake counts: the key, and where there is none each record by itself."""
    return _place(poison) if poison.record.key is None else poison.record.key


def is_transient(error: BaseException) -> bool:
    """Return whether trying again may help: the listed set, and nothing else."""
    if isinstance(error, PoolTimeoutError | AheadOfClock):  # no connection came free, or the session's ids are ahead
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlstate", None)
    if code is None:  # the server was not there to say why
        return isinstance(error, (OperationalError, InterfaceError)) or error.connection_invalidated
    return code.startswith(TRANSIENT_CLASSES) or code in TRANSIENT_CODES


def headers_of(record: Record) -> dict[str, bytes]:
    """Return a record's headers that hold a value."""
    return {name: value for name, value in record.headers if value is not None}


def _read(log: Log, record: Record, bounds: Bounds) -> _Event | _Poison:
    try:
        envelope = decode(headers_of(record), record.value)
    except UnknownVersion as error:
        return _Poison(log, record, Cause.UNKNOWN_VERSION, str(error))
    except UnknownType as error:
        return _Poison(log, record, Cause.UNKNOWN_TYPE, str(error))
    except Undecodable as error:
        return _Poison(log, record, Cause.UNDECODABLE, str(error))
    except Exception as error:  # noqa: BLE001 - whatever a record holds, it does not stop the stream
        return _Poison(log, record, Cause.UNDECODABLE, told(error))
    if record.key != envelope.event.key.encode():  # its id is not taken: the event itself may come yet
        return _Poison(log, record, Cause.UNDECODABLE, "the record's key is not the event's")
    at = time_of(envelope.id)
    if at is None:
        return _Poison(log, record, Cause.UNDECODABLE, f"id {envelope.id} is no UUIDv7", envelope)
    if envelope.id < bounds.low and envelope.id >= bounds.behind.get(log.topic, NO_HORIZON):
        return _Poison(
            log,
            record,
            Cause.BEHIND_HORIZON,
            f"recorded {at}: its repeats would not be recognised; it can be skipped, not retried",
            envelope,
        )
    if envelope.id >= bounds.ahead:
        why = f"recorded {at}: ahead of the clock; upkeep retries it"
        return _Poison(log, record, Cause.AHEAD_OF_CLOCK, why, envelope, is_ahead=True)
    if envelope.id >= bounds.high:
        return _Poison(
            log, record, Cause.AHEAD_OF_CLOCK, f"recorded {at}: its day is not made: payrelay upkeep", envelope
        )
    return _Event(log, record, envelope)


def _poison(event: _Event, error: Exception) -> _Poison:
    cause = Cause.DUPLICATE_FACT if isinstance(error, DuplicateFact) else Cause.REJECTED
    return _Poison(event.log, event.record, cause, told(error), event.envelope)


def _parked(poison: _Poison) -> Parked:
    record, envelope = poison.record, poison.envelope
    headers = headers_of(record)
    return Parked(
        offset=record.offset,
        event_id=envelope.id if envelope else None,
        key=record.key,
        type=headers.get(TYPE, b"").decode(errors="replace") or None,
        version=envelope.version if envelope else None,
        headers={name: value.decode(errors="replace") for name, value in headers.items()},
        value=record.value,
        cause=poison.cause,
        error=poison.error,
    )


def told(error: BaseException) -> str:
    """Return an error in one line, without the statement's parameters."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return f"{type(said).__name__}: {said}".splitlines()[0]
