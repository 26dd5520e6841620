"""Faust's Kafka transport, in batches: an event of the stream says that records wait, and the agent takes what there is.

Faust keeps membership, rebalance, lifecycle and supervision. Replaced are its drain of one message at a time and its ack
book-keeping, the source of every way in which it loses events: positions come from the database, through `Positions`, and
Kafka's committed offset is written after our commit, as a mirror.

Registered as the driver `batch`: `faust.App(…, broker="batch://host:port")`. Written against the versions below, whose
internals it touches; `require_versions` refuses others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from types import TracebackType
from typing import Any, Protocol, TypeVar

import faust
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, ConsumerRebalanceListener
from faust.transport.drivers.aiokafka import Consumer as AIOKafkaConsumer
from faust.transport.drivers.aiokafka import Transport as AIOKafkaTransport
from faust.types import TP, ConsumerMessage
from mode import Service

from consumers.delivery.loop import Slice
from consumers.runtime import batches
from consumers.runtime.batches import UnreadableBatch
from outbox.errors import Refused
from outbox.inbox import Log

VERSIONS = {"faust-streaming": "0.15.3", "aiokafka": "0.14.0", "mode-streaming": "0.7.1"}

GATHER_S = 0.015
"""Between an answer that brought little and the next fetch: what comes in meanwhile shares its transaction."""
LITTLE = 100
"""Records; after an answer that brought more, the next fetch goes out at once."""
BYTES_MAX = 64 * 1024 * 1024
"""Of what waits, all partitions together."""
FETCH_WAIT_MS = 100
"""Faust's 1500 would hold up the look-ups of offsets, which queue behind the long poll."""
POLL_S = 1.0
REOPEN_S = 1.0
UNREADABLE_S = 4.0
"""Between two attempts at a batch that cannot be read; each makes the other partitions fetch again what was in the same poll."""
PROGRESS_S = 3.0
"""Between two looks at whether somebody has moved progress: one statement for all partitions."""
MIRROR_S = 1.0
MIRROR_TIMEOUT_S = 3.0
GRACE_S = 8.0
"""How long a batch in hand may take to commit when partitions are revoked or the process ends."""
LEAVE_S = 4.0
"""How long leaving the group may take when the process ends."""
FAILED = 70
"""Exit code for what should not happen; the supervisor starts the process again."""

log = logging.getLogger(__name__)

T = TypeVar("T")


def require_versions() -> None:
    """Raises Refused unless the libraries whose internals this module touches are the ones it was written against."""
    for name, wanted in VERSIONS.items():
        if (found := version(name)) != wanted:
            raise Refused(
                f"{name} is {found}, consumers/runtime/transport.py was written against {wanted}: make lock, read, adapt"
            )


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Where to begin a log, or why not to."""

    log: Log
    next_offset: int
    mirror: bool
    """Whether Kafka's committed offset must be written now, since it is not ours."""
    hole: str = ""
    """Set where the position lies outside the log: the partition stays stopped."""


class Positions(Protocol):
    """The truth about positions, as the consumer needs it. All calls may raise; they are then tried again."""

    async def open(
        self, earliest: Mapping[TP, int], latest: Mapping[TP, int], committed: Mapping[TP, int | None]
    ) -> Mapping[TP, Opening]:
        """Return where to begin each partition."""

    async def progress(self) -> Mapping[Log, int]:
        """Return the next offset of every log that the consumer has begun, as the database has it now."""

    async def topic_ids(self, topics: Collection[str]) -> Mapping[str, str]:
        """Return the id of each topic that exists."""

    def tell(self, about: str, condition: str) -> None:
        """Say how a partition is; an empty condition takes the last word back."""


class Lane:
    """One assigned partition, and what waits of it."""

    __slots__ = (
        "bytes",
        "epoch",
        "has_hole",
        "is_unreadable",
        "log",
        "position",
        "reached",
        "records",
        "state",
        "tp",
        "waiting",
    )

    def __init__(self, tp: TP) -> None:
        self.tp = tp
        self.state = "closed"
        """closed (to be opened), open, held (not before its time) or stopped (a hole)"""
        self.epoch = 0
        """Raised by each rewind: what was taken in an older epoch is stale."""
        self.log: Log | None = None
        self.has_hole = False
        """Whether it was said that its position lies outside its log."""
        self.is_unreadable = False
        """Whether it was said that its next batch cannot be read."""
        self.position = 0
        """End of what was fetched."""
        self.reached = 0
        """Progress was here already: as it was read at the opening, or after the last commit of ours."""
        self.waiting: deque[Slice] = deque()
        self.records = 0
        self.bytes = 0

    def add(self, records: list[Any], end: int) -> None:
        """The records wait; they follow on those that do."""
        assert self.log is not None
        self.waiting.append(Slice(log=self.log, start=self.position, end=end, records=records))
        self.position = end
        self.records += len(records)
        self.bytes += _size(records)

    def take(self, records_max: int) -> Slice | None:
        """Return what waits as one slice, of at most so many records unless its first part has more."""
        if not self.waiting:
            return None
        first = last = self.waiting.popleft()
        records = list(first.records)
        while self.waiting and len(records) + len(self.waiting[0].records) <= records_max:
            last = self.waiting.popleft()
            records += last.records
        self.records -= len(records)
        self.bytes -= _size(records)
        return Slice(log=first.log, start=first.start, end=last.end, records=records)

    def clear(self) -> None:
        """Nothing waits."""
        self.waiting.clear()
        self.records = self.bytes = 0


class Batch:
    """Slices in the agent's hands. `async with batch`: a slice of which nothing was said is fetched again."""

    def __init__(self, consumer: Consumer, slices: Mapping[Log, tuple[Lane, Slice]]) -> None:
        self._consumer = consumer
        self._slices = dict(slices)
        self._epochs = {log: lane.epoch for log, (lane, _) in slices.items()}
        self._generation = consumer.app.consumer_generation_id

    @property
    def slices(self) -> list[Slice]:
        """Return what is still wanted: not of a partition that was lost or rewound meanwhile."""
        return [content for log, (_, content) in self._slices.items() if not self._is_stale(log)]

    @property
    def is_unwanted(self) -> bool:
        """Whether trying again is over: its partitions are gone, or about to go."""
        return self._consumer.closing.is_set() or not self.slices

    def done(self, log: Log) -> None:
        """The log's slice is committed in the database: Kafka's offset may follow."""
        lane, content = self._slices[log]
        # Committed is committed, also where the lane was rewound meanwhile. But a commit of an older generation would make
        # aiokafka leave the group and join again.
        if self._is_ours(lane) and lane.log == log:
            self._consumer.mirror(lane.tp, content.end)
        if not self._is_stale(log):
            lane.reached = content.end
        del self._slices[log]

    def hold(self, log: Log, delay_s: float) -> None:
        """The log's partition waits this long, then begins again at its progress; others go on."""
        lane, _ = self._slices[log]
        if not self._is_stale(log):
            self._consumer.rewind(lane, state="held")
            self._consumer.loop.call_later(delay_s, self._consumer.release, lane, lane.epoch)
        del self._slices[log]

    async def pause(self, delay_s: float) -> None:
        """Return after the delay, or as soon as the batch is unwanted."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._consumer.closing.wait(), delay_s)

    def _is_stale(self, log: Log) -> bool:
        lane, _ = self._slices[log]
        return lane.epoch != self._epochs[log] or not self._is_ours(lane)

    def _is_ours(self, lane: Lane) -> bool:
        generation = self._consumer.app.consumer_generation_id
        return self._consumer.lanes.get(lane.tp) is lane and generation == self._generation

    async def __aenter__(self) -> Batch:
        self._consumer.in_hand += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.in_hand -= 1
        self._consumer.hands_free.set()
        if kind is not None:  # the agent begins again and is told of what comes next, not of what waits
            for lane in self._consumer.lanes.values():
                if lane.waiting:
                    self._consumer.rewind(lane)
        for log, (lane, _) in self._slices.items():
            if not self._is_stale(log):
                self._consumer.rewind(lane)


class BatchSchema(faust.Schema):  # type: ignore[misc]
    """Faust decodes nothing: the message's value is the consumer, with what waits in it."""

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:
        async def decode(message: Any, *, propagate: bool = False) -> Any:  # noqa: ARG001 - Faust's signature
            return app.create_event(None, message.value, None, message)

        return decode


class _Wanted(set[TopicPartition]):
    """Partitions to take records of. aiokafka reads an empty set as all partitions; this one is never false."""

    def __bool__(self) -> bool:
        return True


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> Awaitable[None]:
        # A poll that sleeps through the rebalance must bring nothing home of the next assignment.
        self._thread.consumer.wanted.clear()
        revoking: Awaitable[None] = super().on_partitions_revoked(revoked)
        return revoking


class _Thread(AIOKafkaConsumerThread):  # type: ignore[misc]
    fetch_after = 0.0

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def on_start(self) -> None:
        await super().on_start()
        commit_as_member(self._consumer)
        fetcher = self._consumer._fetcher
        request = fetcher._proc_fetch_request

        async def gathering(*arguments: Any) -> bool:
            try:
                if (wait_s := self.fetch_after - time.monotonic()) > 0:
                    await asyncio.sleep(wait_s)
                brought: bool = await request(*arguments)
            except (
                asyncio.CancelledError
            ):  # by the fetcher's close, which awaits it: the thread's end would be cancelled too
                return False
            return brought

        fetcher._proc_fetch_request = gathering

    def require_alive(self) -> None:
        """The process ends if one of the client's own tasks has: nothing starts them again, and nobody would fetch."""
        consumer = self._consumer
        tasks = {"coordination": consumer._coordinator._coordination_task, "fetching": consumer._fetcher._fetch_task}
        for name, task in tasks.items():
            if task.done() and not consumer._closed:
                error = None if task.cancelled() else task.exception()
                log.critical("the Kafka client's %s has ended", name, exc_info=error)
                os._exit(FAILED)

    async def on_thread_stop(self) -> None:
        with suppress(TimeoutError):  # a broker that does not answer is not waited for: the session will time out
            await asyncio.wait_for(super().on_thread_stop(), LEAVE_S)


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
    """Takes record lists as aiokafka hands them over, and keeps them until the agent takes them.

    Partitions are not paused but left out of the poll: a pause makes aiokafka throw away what it has fetched. Polling goes
    on for whatever else there is, if only for nothing, so that the group is not left while a batch takes its time.
    """

    RebalanceListener = _Listener

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lanes: dict[TP, Lane] = {}
        self.wanted = _Wanted()
        """Touched in the consumer's thread only."""
        self.in_hand = 0
        self.hands_free = asyncio.Event()
        self.closing = asyncio.Event()
        self._turn = 0
        self._to_open = asyncio.Event()
        self._mirrored: dict[TP, int] = {}
        self._to_mirror = asyncio.Event()
        self._mirroring = asyncio.Lock()

    @property
    def positions(self) -> Positions:
        positions: Positions = self.app.positions
        return positions

    # ---- fetching ----------------------------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: Any) -> None:
        """Poll until told to stop; called by Faust's Fetcher, which takes a cancellation during a rebalance for a crash."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                if self.flow_active:
                    await self._drain_once()
                else:
                    await self.wait(self.can_resume_flow)
        except (asyncio.CancelledError, *self.consumer_stopped_errors):
            if not (self.app.should_stop or self.should_stop):
                raise

    async def _drain_once(self) -> None:
        """What one poll brings waits for the agent."""
        try:
            generation, fetched = await self._in_thread(self._poll())
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            for tp in _partitions_of(error):
                self.rewind(self.lanes.get(tp))
        except UnreadableBatch as error:
            self._stop_for_a_while(self.lanes.get(TP(*error.tp)), error)
            self._rewind_all()
        except KafkaError as error:
            self._rewind_all()
            self.positions.tell("poll", f"failed: {error!r}")
            await self.sleep(0.5)
        else:
            self.positions.tell("poll", "")
            await self._take_in(fetched, generation)

    def _rewind_all(self) -> None:
        """What came in before a poll failed is lost to us, though the fetch positions have moved: begin again at progress."""
        for lane in self.lanes.values():
            if lane.state == "open":
                self.rewind(lane)

    def _stop_for_a_while(self, lane: Lane | None, error: UnreadableBatch) -> None:
        """The partition waits and says why; the others go on."""
        if lane is None or lane.state != "open":
            return
        self.rewind(lane, state="held")
        lane.is_unreadable = True
        self.positions.tell(str(lane.log), f"stopped: {error.args[0]}")
        self.loop.call_later(UNREADABLE_S, self.release, lane, lane.epoch)

    async def _poll(self) -> tuple[int, dict[TP, tuple[list[Any], int]]]:
        """Return what came in, with the position after it. In the consumer's thread."""
        consumer = self._thread._ensure_consumer()
        if consumer._closed:
            raise self.consumer_stopped_errors[0]
        self._thread.require_alive()
        consumer._coordinator.check_errors()
        # Looked at here and not by the caller: what the agent takes meanwhile wakes this poll, not one that has not begun.
        self.wanted.clear()
        self.wanted |= self._open_partitions()
        subscription = consumer._subscription
        # aiokafka's own context manager would count a fetch for ever once an error leaves it.
        context = subscription.fetch_context()
        context.__enter__()
        try:
            fetched = await consumer._fetcher.fetched_records(
                self.wanted, POLL_S, self.app.conf.broker_max_poll_records
            )
        finally:
            context.__exit__(None, None, None)
        if sum(map(len, fetched.values())) < LITTLE:
            self._thread.fetch_after = time.monotonic() + GATHER_S
        assignment = subscription.subscription.assignment
        # The position counts control records too, so that they never look like a gap.
        found = {TP(*tp): (records, assignment.state_value(tp).position) for tp, records in fetched.items()}
        return self.app.consumer_generation_id, found

    async def _take_in(self, fetched: Mapping[TP, tuple[list[Any], int]], generation: int) -> None:
        """What was fetched waits, and the agent knows."""
        none_waited = not any(lane.waiting for lane in self.lanes.values())
        for tp, (records, end) in fetched.items():
            lane = self.lanes.get(tp)
            is_ours = self.flow_active and generation == self.app.consumer_generation_id
            if lane is None or lane.state != "open" or lane.log is None or not is_ours:
                self.rewind(lane)  # fetched, not wanted any more: the fetch position must come back
            else:
                if lane.is_unreadable:
                    lane.is_unreadable = False
                    self.positions.tell(str(lane.log), "")
                lane.add(records, end)
        filled = [lane for lane in self.lanes.values() if lane.waiting]
        if none_waited and filled:
            await self.callback(self._note_of(filled[0], generation))

    def _note_of(self, lane: Lane, generation: int) -> ConsumerMessage:
        tp, start = lane.tp, lane.waiting[0].start
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            start,
            time.time(),
            0,
            None,
            None,
            self,
            None,
            serialized_key_size=0,
            serialized_value_size=0,
            tp=tp,
            generation_id=generation,
        )

    def take(self) -> Batch | None:
        """Return what waits, of each partition a slice; None where nothing does."""
        was_full = len(self._open_partitions()) < len(self.lanes)
        slices: dict[Log, tuple[Lane, Slice]] = {}
        left = int(self.app.conf.broker_max_poll_records)
        self._turn += 1  # each partition is the first one in its turn, so that none starves behind another's backlog
        lanes = sorted(self.lanes.values(), key=lambda lane: lane.tp)
        first = self._turn % len(lanes) if lanes else 0
        for lane in (*lanes[first:], *lanes[:first]):
            if left > 0 and (content := lane.take(left)) is not None:
                slices[content.log] = (lane, content)
                left -= len(content.records)
        if was_full:
            self._fetch_more()
        return Batch(self, slices) if slices else None

    def _open_partitions(self) -> set[TopicPartition]:
        if sum(lane.bytes for lane in self.lanes.values()) >= BYTES_MAX:
            return set()
        full = self.app.conf.broker_max_poll_records
        return {
            TopicPartition(*lane.tp) for lane in self.lanes.values() if lane.state == "open" and lane.records < full
        }

    def _fetch_more(self) -> None:
        """Partitions with room again take part in the poll that is under way."""
        self._thread.thread_loop.call_soon_threadsafe(self._wake, self._open_partitions())

    def _wake(self, wanted: set[TopicPartition]) -> None:
        self.wanted |= wanted
        consumer = self._thread._consumer
        if consumer is not None:
            for waiter in list(consumer._fetcher._fetch_waiters):
                consumer._fetcher._notify(waiter)

    # ---- positions ---------------------------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Faust calls this after each rebalance. The database is asked elsewhere: a rebalance never waits for it."""
        self.closing.clear()
        self.lanes = {TP(*tp): Lane(TP(*tp)) for tp in self.assignment()}
        self._to_open.set()

    def rewind(self, lane: Lane | None, *, state: str = "closed") -> None:
        """The lane begins again at its progress; what waits of it is dropped."""
        if lane is None or (lane.state in ("stopped", "held") and state == "closed"):
            return
        lane.epoch += 1
        lane.clear()
        lane.state = state
        if state == "closed":
            self._to_open.set()

    def release(self, lane: Lane, epoch: int) -> None:
        """A held lane's time has come."""
        if self.lanes.get(lane.tp) is lane and lane.epoch == epoch and lane.state == "held":
            lane.state = "closed"
            self._to_open.set()

    @Service.task  # type: ignore[untyped-decorator]
    async def _opener(self) -> None:
        while not self.should_stop:
            await self.wait(self._to_open)
            if self.should_stop:
                return
            self._to_open.clear()
            lanes = [lane for lane in self.lanes.values() if lane.state == "closed"]
            try:
                await self._open(lanes)
            except Exception as error:  # noqa: BLE001 - database or broker are away: try again, and say so
                self.positions.tell("positions", f"cannot be read: {type(error).__name__}: {error}".splitlines()[0])
                await self.sleep(0.5)
                self._to_open.set()
            else:
                self.positions.tell("positions", "")

    async def _open(self, lanes: Sequence[Lane]) -> None:
        partitions = [TopicPartition(*lane.tp) for lane in lanes]
        consumer = self._thread._ensure_consumer()
        earliest = latest = {}
        committed: dict[TP, int | None] = {}
        if partitions:
            earliest = await self._in_thread(consumer.beginning_offsets(partitions))
            latest = await self._in_thread(consumer.end_offsets(partitions))
            for tp in partitions:
                committed[TP(*tp)] = await self._in_thread(consumer.committed(tp))
        openings = await self.positions.open(_by_tp(earliest), _by_tp(latest), committed)
        if any(lane.tp not in openings for lane in lanes):  # its topic is not known yet, or gone: look again
            self.loop.call_later(REOPEN_S, self._to_open.set)
        for lane in lanes:
            if self.lanes.get(lane.tp) is not lane or lane.state != "closed" or lane.tp not in openings:
                continue
            opening = openings[lane.tp]
            lane.log = opening.log
            if opening.hole or lane.has_hole:  # else the last word is a brake's, perhaps, and stays
                self.positions.tell(str(opening.log), f"stopped: {opening.hole}" if opening.hole else "")
            lane.has_hole = bool(opening.hole)
            if opening.hole:
                lane.state = "stopped"
                continue
            await self._in_thread(_seek(consumer, TopicPartition(*lane.tp), opening.next_offset))
            if self.lanes.get(lane.tp) is lane and lane.state == "closed":
                lane.position = lane.reached = opening.next_offset
                lane.state = "open"
                if opening.mirror:
                    self.mirror(lane.tp, opening.next_offset)
        self._fetch_more()

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch_topics(self) -> None:
        """A topic that was made again is another log, even if the old position exists in it. Stopped lanes get a look too."""
        while not self.should_stop:
            await self.sleep(self.app.conf.consumer_metadata_max_age_ms / 1000)
            topics = {lane.tp.topic for lane in self.lanes.values()}
            try:
                ids = await self.positions.topic_ids(topics) if topics else {}
            except Exception as error:  # noqa: BLE001 - the broker is away: the next look will tell
                log.warning("topic ids cannot be read: %r", error)
                continue
            for lane in list(self.lanes.values()):
                if lane.state == "stopped":
                    lane.state = "closed"
                    self._to_open.set()
                elif lane.log is not None and ids.get(lane.tp.topic, lane.log.topic_id) != lane.log.topic_id:
                    log.warning("topic %s was made again: reading the new one from its beginning", lane.tp.topic)
                    self.rewind(lane)

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch_progress(self) -> None:
        """A partition whose progress was moved by somebody else begins again there, whether a record comes in or not.

        As after a restore of the database, or a fail-over to a standby that lagged: what was applied since is not any more.
        """
        while not self.should_stop:
            await self.sleep(PROGRESS_S)
            reached = {lane: (lane.epoch, lane.reached) for lane in self.lanes.values() if lane.state == "open"}
            if not reached:  # somebody else's, perhaps, who then says how it is
                self.positions.tell("progress", "")
                continue
            try:
                progress = await self.positions.progress()
            except Exception as error:  # noqa: BLE001 - the database is away: look again, and say so
                reason = f"{type(error).__name__}: {getattr(error, 'orig', error)}".splitlines()[0]
                self.positions.tell("progress", f"waiting for the database: {reason}")
                continue
            self.positions.tell("progress", "")
            for lane, (epoch, low) in reached.items():
                self._follow(lane, epoch, progress, low)

    def _follow(self, lane: Lane, epoch: int, progress: Mapping[Log, int], low: int) -> None:
        """The lane begins again at its progress if that is not between what was reached before it was read and what is fetched now."""
        if self.lanes.get(lane.tp) is not lane or lane.epoch != epoch or lane.state != "open" or lane.log is None:
            return
        at = progress.get(lane.log)
        if at is None or not low <= at <= lane.position:
            log.warning("progress of %s was at %s, and is at %s now: going on there", lane.log, low, at)
            self.rewind(lane)

    # ---- rebalance and end -------------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Faust calls this before partitions go: flow stops, then `wait_empty` lets the batch in hand finish."""
        self.closing.set()
        await super().on_partitions_revoked(revoked)
        for lane in self.lanes.values():  # whoever has it next says how it is
            if lane.log is not None:
                self.positions.tell(str(lane.log), "")
        self.lanes = {}
        self._mirrored = {}

    async def wait_empty(self) -> None:
        """No batch is in hand any more, or the grace is over; what was committed is mirrored."""
        self.closing.set()
        deadline = time.monotonic() + GRACE_S
        while self.in_hand and (left_s := deadline - time.monotonic()) > 0:
            self.hands_free.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.hands_free.wait(), left_s)
        await self._write_mirror()

    # ---- the mirror --------------------------------------------------------------------------------------------

    def mirror(self, tp: TP, next_offset: int) -> None:
        """Kafka's committed offset will be this one, soon, if the partition stays ours."""
        self._mirrored[tp] = next_offset
        self._to_mirror.set()

    @Service.task  # type: ignore[untyped-decorator]
    async def _mirror_keeper(self) -> None:
        while not self.should_stop:
            await self.wait(self._to_mirror)
            if self.should_stop:
                return
            self._to_mirror.clear()
            await self._write_mirror()
            await self.sleep(MIRROR_S)

    async def _write_mirror(self) -> None:
        async with self._mirroring:  # whoever ends the process waits for the keeper's
            offsets, self._mirrored = self._mirrored, {}
            if not offsets:
                return
            logs = {tp: lane.log for tp, lane in self.lanes.items() if lane.log is not None}
            sensed = self.app.sensors.on_commit_initiated(self)
            try:
                await asyncio.wait_for(self._in_thread(self._commit_mine(offsets)), MIRROR_TIMEOUT_S)
                self.app.sensors.on_commit_completed(self, sensed)
                self.app.monitor.on_tp_commit(offsets)
                written = {logs[tp]: at for tp, at in offsets.items() if tp in logs}
                await asyncio.wait_for(self.app.mirrored(written), MIRROR_TIMEOUT_S)
            except (KafkaError, IllegalStateError, TimeoutError, RuntimeError) as error:
                log.warning("mirror not written yet, progress stands: %r", error)
                ours = {tp: at for tp, at in offsets.items() if tp in logs and self._log_of(tp) == logs[tp]}
                self._mirrored = ours | self._mirrored
                if self._mirrored:
                    self._to_mirror.set()

    def _log_of(self, tp: TP) -> Log | None:
        lane = self.lanes.get(tp)
        return lane.log if lane is not None else None

    async def _commit_mine(self, offsets: Mapping[TP, int]) -> None:
        consumer = self._thread._ensure_consumer()
        mine = consumer.assignment()
        commit = {tp: OffsetAndMetadata(at, "") for tp, at in offsets.items() if TopicPartition(*tp) in mine}
        if commit:
            await consumer.commit({TopicPartition(*tp): at for tp, at in commit.items()})

    # ---- Faust's own book-keeping is off -----------------------------------------------------------------------

    async def commit(self, *_: Any, **__: Any) -> bool:
        """Faust commits nothing: see `mirror`."""
        return False

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's live-lock detector reads its own offsets, which do not move here."""

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    def _in_thread(self, call: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Return the call's result, made in the consumer's thread. Faust's own queue has two workers and can starve."""
        future = asyncio.run_coroutine_threadsafe(call, self._thread.thread_loop)
        return asyncio.wrap_future(future)


class Transport(AIOKafkaTransport):  # type: ignore[misc]
    """The aiokafka transport with our consumer."""

    Consumer = Consumer


TRANSPORTS.aliases["batch"] = f"{__name__}:Transport"


def _send(
    connection: AIOKafkaConnection,
    *arguments: Any,
    _send: Callable[..., Any] = AIOKafkaConnection.send,
    **options: Any,
) -> Any:
    """Send, or raise KafkaConnectionError, which aiokafka tries again.

    On a connection that broke a moment ago uvloop raises RuntimeError, where asyncio would drop what is written and aiokafka
    expects an OSError: the client's coordination would end for good.
    """
    try:
        return _send(connection, *arguments, **options)
    except RuntimeError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"the connection is closed: {error}") from error


AIOKafkaConnection.send = _send
batches.install()


def commit_as_member(consumer: Any) -> None:
    """The aiokafka consumer commits nothing, with CommitFailedError, while its group does not know it as a member.

    A member that the group has let go forgets its generation, and commits like a tool from outside: a broker takes that once
    the group is empty. One that thaws after its siblings have ended would set Kafka's offset back.
    """
    coordinator = consumer._coordinator
    commit = coordinator._do_commit_offsets

    async def as_member(assignment: Any, offsets: Any) -> None:
        if coordinator.generation == OffsetCommitRequest.DEFAULT_GENERATION_ID:
            raise CommitFailedError("the group does not know this member")
        await commit(assignment, offsets)

    coordinator._do_commit_offsets = as_member


async def _seek(consumer: Any, tp: TopicPartition, offset: int) -> None:
    consumer.seek(tp, offset)


def _size(records: Sequence[Any]) -> int:
    return sum(record.serialized_value_size + record.serialized_key_size for record in records)


def _by_tp(offsets: Mapping[TopicPartition, int]) -> dict[TP, int]:
    return {TP(*tp): offset for tp, offset in offsets.items()}


def _partitions_of(error: KafkaError) -> list[TP]:
    [about] = error.args
    return [TP(*tp) for tp in about] if isinstance(about, dict) else [TP(*about)]
