"""Faust's Kafka transport, in batches: an event of the stream says that messages wait, and the agent takes what there is.

Faust keeps membership, rebalance, lifecycle and supervision. Replaced are its drain of one message at a time and its ack
book-keeping, the source of every way in which it loses events: positions come from the database, through `Positions`, and
Kafka's committed offset is written after our commit, as a mirror. Registered as the driver `batch`:
`faust.App(…, broker="batch://host:port")`.

The life of a partition buffer (consumers/runtime/buffers.py), and who moves it:

| from      | to      | moved by                                   | when                                                     |
|-----------|---------|--------------------------------------------|----------------------------------------------------------|
| unassigned| closed  | `perform_seek`, after each rebalance       | the partition is ours                                    |
| closed    | open    | `Opener`                                   | progress was read, and the client has sought there       |
| closed    | stopped | `Opener`                                   | progress lies outside the log                            |
| open      | held    | `hold`: the agent, or the poll             | its slice is braked; its next batch cannot be read       |
| open      | closed  | `rewind`: the poll                         | a poll failed, or brought what is not wanted any more    |
| open      | closed  | `rewind`: the end of the agent's batch     | its slice was not committed                              |
| open      | closed  | `rewind`: `Opener`                         | somebody moved progress, or made the topic again         |
| held      | closed  | `_release`, a timer                        | its time has come                                        |
| stopped   | closed  | `Opener`                                   | now and then, to see whether progress was moved          |
| any       | gone    | `on_partitions_revoked`                    | a rebalance begins                                       |

Only an open buffer takes messages in. A rewind drops those that wait and makes those in the agent's hands stale.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import faust
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import TopicPartition
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, ConsumerRebalanceListener
from faust.transport.drivers.aiokafka import Consumer as AIOKafkaConsumer
from faust.transport.drivers.aiokafka import Transport as AIOKafkaTransport
from faust.types import TP, ConsumerMessage
from mode import Service

from consumers.runtime import aiokafka_patches as patches
from consumers.runtime.batches import UnreadableBatch
from consumers.runtime.buffers import Batch, BufferState, PartitionBuffer, take_slices, with_room
from consumers.runtime.mirror import MIRROR_S, Mirror
from consumers.runtime.opener import AGAIN_S, PROGRESS_S, Opener
from consumers.runtime.positions import Positions

GATHER_S = 0.015
"""After an answer that brought little the next fetch waits this long: what comes in meanwhile shares its transaction."""
LITTLE = 100
"""Messages; an answer that brought more shows a backlog, and the next fetch goes out at once."""
FETCH_WAIT_MS = 250
"""How long the broker may keep a fetch that it has nothing for. Faust's 1500 would hold up the look-ups of offsets behind it."""
POLL_S = 1.0
"""How long one poll waits for messages: as often, a client whose own tasks have ended is noticed."""
UNREADABLE_S = 4.0
"""Between two attempts at a batch that cannot be read; each makes the other partitions fetch again what was in the same poll."""
GRACE_S = 8.0
"""How long a batch in hand may take to commit when partitions are revoked or the process ends."""
LEAVE_S = 4.0
"""How long leaving the group may take when the process ends."""
FAILED = 70
"""Exit code for what should not happen; the supervisor starts the process again."""

log = logging.getLogger(__name__)

T = TypeVar("T")

patches.install()


class BatchSchema(faust.Schema):  # type: ignore[misc]
    """Faust decodes nothing: the message's value is the consumer, with what waits in it."""

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:
        async def decode(message: Any, *, propagate: bool = False) -> Any:  # noqa: ARG001 - Faust's signature
            return app.create_event(None, message.value, None, message)

        return decode


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
        patches.commit_as_member(self._consumer)
        patches.gather_fetches(self._consumer, lambda: self.fetch_after)

    def require_alive(self) -> None:
        """The process ends if one of the client's own tasks has: nothing starts them again, and nobody would fetch."""
        for name, error in patches.ended_tasks(self._consumer).items():
            log.critical(
                "the Kafka client's %s has ended; the worker ends too, and its supervisor starts it again",
                name,
                exc_info=error,
            )
            os._exit(FAILED)

    async def on_thread_stop(self) -> None:
        with suppress(TimeoutError):  # a broker that does not answer is not waited for: the session will time out
            await asyncio.wait_for(super().on_thread_stop(), LEAVE_S)


class BatchConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """Takes messages as aiokafka hands them over, and keeps them until the agent takes them.

    Partitions are not paused but left out of the poll: a pause makes aiokafka throw away what it has fetched. Polling goes on
    for whatever else there is, if only for nothing, so that the group is not left while a batch takes its time.
    """

    RebalanceListener = _Listener

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffers: dict[TP, PartitionBuffer] = {}
        self.wanted = patches.PartitionSet()
        """Touched in the consumer's thread only."""
        self.in_hand = 0
        self.hands_free = asyncio.Event()
        self.closing = asyncio.Event()
        self._turn = 0
        self._opener = Opener(self)
        self._mirror = Mirror(self)

    @property
    def positions(self) -> Positions:
        """Return the truth about positions."""
        positions: Positions = self.app.positions
        return positions

    @property
    def generation(self) -> int:
        """Return the group's generation, as Faust has it."""
        generation: int = self.app.consumer_generation_id
        return generation

    @property
    def client(self) -> Any:
        """Return aiokafka's consumer. Its coroutines run in its thread: see `in_thread`."""
        return self._thread._ensure_consumer()

    def in_thread(self, call: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Return the call's result, made in the consumer's thread. Faust's own queue has two workers and can starve."""
        future = asyncio.run_coroutine_threadsafe(call, self._thread.thread_loop)
        return asyncio.wrap_future(future)

    # ---- fetching ----------------------------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: Any) -> None:
        """Poll until it is stopped; called by Faust's Fetcher, which takes a cancellation during a rebalance for a crash."""
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
            generation, fetched = await self.in_thread(self._poll())
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            for tp in _partitions_of(error):
                self.rewind(self.buffers.get(tp))
        except UnreadableBatch as error:
            self._stop_for_a_while(self.buffers.get(TP(*error.tp)), error)
            self._rewind_all()
        except KafkaError as error:
            self._rewind_all()
            self.positions.tell("poll", f"failed: {error!r}")
            await self.sleep(AGAIN_S)
        else:
            self.positions.tell("poll", "")
            await self._take_in(fetched, generation)

    def _rewind_all(self) -> None:
        """What came in before a poll failed is lost to us, though the fetch positions have moved: begin again at progress."""
        for buffer in self.buffers.values():
            if buffer.state is BufferState.OPEN:
                self.rewind(buffer)

    def _stop_for_a_while(self, buffer: PartitionBuffer | None, error: UnreadableBatch) -> None:
        """The partition waits and says why; the others go on."""
        if buffer is None or buffer.state is not BufferState.OPEN:
            return
        self.hold(buffer, UNREADABLE_S)
        buffer.is_unreadable = True
        self.positions.tell(str(buffer.log), f"stopped: {error.args[0]}")

    async def _poll(self) -> tuple[int, Mapping[TopicPartition, tuple[Sequence[Any], int]]]:
        """Return the generation, and what came in, with the position after it. In the consumer's thread."""
        client = self.client
        if patches.is_closed(client):
            raise self.consumer_stopped_errors[0]
        self._thread.require_alive()
        patches.check_errors(client)
        # Looked at here and not by the caller: what the agent takes meanwhile wakes this poll, not one that has not begun.
        self.wanted.clear()
        self.wanted |= self._partitions_with_room()
        fetched = await patches.fetched_messages(
            client, self.wanted, timeout_s=POLL_S, messages_max=self.app.conf.broker_max_poll_records
        )
        if sum(len(messages) for messages, _ in fetched.values()) < LITTLE:
            self._thread.fetch_after = time.monotonic() + GATHER_S
        return self.generation, fetched

    async def _take_in(self, fetched: Mapping[TopicPartition, tuple[Sequence[Any], int]], generation: int) -> None:
        """What was fetched waits, and the agent knows."""
        none_waited = not any(buffer.waiting for buffer in self.buffers.values())
        for partition, (messages, end) in fetched.items():
            buffer = self.buffers.get(TP(*partition))
            is_ours = self.flow_active and generation == self.generation
            if buffer is None or buffer.state is not BufferState.OPEN or buffer.log is None or not is_ours:
                self.rewind(buffer)  # fetched, not wanted any more: the fetch position must come back
            else:
                if buffer.is_unreadable:
                    buffer.is_unreadable = False
                    self.positions.tell(str(buffer.log), "")
                buffer.add(messages, end)
        filled = [buffer for buffer in self.buffers.values() if buffer.waiting]
        if none_waited and filled:
            await self.callback(self._wake_up(filled[0], generation))

    def _wake_up(self, buffer: PartitionBuffer, generation: int) -> ConsumerMessage:
        """Return what Faust hands to the agent: no message of anybody's, but that messages wait here."""
        tp, start = buffer.tp, buffer.waiting[0].start
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
        """Return what waits, of each partition a slice; None if nothing does."""
        was_full = len(self._partitions_with_room()) < len(self.buffers)
        self._turn += 1
        messages_max = int(self.app.conf.broker_max_poll_records)
        slices = take_slices(self.buffers, turn=self._turn, messages_max=messages_max)
        if was_full:
            self.fetch_more()
        return Batch(self, slices) if slices else None

    def _partitions_with_room(self) -> set[TopicPartition]:
        messages_max = self.app.conf.broker_max_poll_records
        return {TopicPartition(*tp) for tp in with_room(self.buffers, messages_max)}

    def fetch_more(self) -> None:
        """Partitions with room again take part in the poll that is under way."""
        self._thread.thread_loop.call_soon_threadsafe(self._wake_poll, self._partitions_with_room())

    def _wake_poll(self, wanted: set[TopicPartition]) -> None:
        self.wanted |= wanted
        if (client := self._thread._consumer) is not None:
            patches.wake_fetch(client)

    # ---- positions ---------------------------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Faust calls this after each rebalance. The database is asked elsewhere: a rebalance never waits for it."""
        self.closing.clear()
        self.buffers = {TP(*tp): PartitionBuffer(TP(*tp)) for tp in self.assignment()}
        self._opener.is_due.set()

    def rewind(self, buffer: PartitionBuffer | None) -> None:
        """The buffer begins again at its progress; what waits in it is dropped. One that is held or stopped stays so."""
        if buffer is None or buffer.state in (BufferState.STOPPED, BufferState.HELD):
            return
        buffer.rewind(BufferState.CLOSED)
        self._opener.is_due.set()

    def hold(self, buffer: PartitionBuffer, delay_s: float) -> None:
        """The buffer begins again at its progress after the delay; what waits in it is dropped."""
        buffer.rewind(BufferState.HELD)
        self.loop.call_later(delay_s, self._release, buffer, buffer.epoch)

    def _release(self, buffer: PartitionBuffer, epoch: int) -> None:
        # A rebalance may have replaced the buffer, and a later hold has a timer of its own.
        if self.buffers.get(buffer.tp) is buffer and buffer.epoch == epoch and buffer.state is BufferState.HELD:
            buffer.state = BufferState.CLOSED
            self._opener.is_due.set()

    @Service.task  # type: ignore[untyped-decorator]
    async def _open_closed(self) -> None:
        while not self.should_stop:
            await self.wait(self._opener.is_due)
            if self.should_stop:
                return
            await self._opener.open_closed()

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch_topics(self) -> None:
        while not self.should_stop:
            await self.sleep(self.app.conf.consumer_metadata_max_age_ms / 1000)
            await self._opener.check_topics()

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch_progress(self) -> None:
        while not self.should_stop:
            await self.sleep(PROGRESS_S)
            await self._opener.check_progress()

    # ---- rebalance and end -------------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Faust calls this before partitions go: flow stops, then `wait_empty` lets the batch in hand finish."""
        self.closing.set()
        await super().on_partitions_revoked(revoked)
        for buffer in self.buffers.values():  # whoever has it next says how it is
            if buffer.log is not None:
                self.positions.tell(str(buffer.log), "")
        self.buffers = {}
        self._mirror.forget()

    async def wait_empty(self) -> None:
        """No batch is in hand any more, or the grace is over; what was committed is mirrored."""
        self.closing.set()
        deadline = time.monotonic() + GRACE_S
        while self.in_hand and (left_s := deadline - time.monotonic()) > 0:
            self.hands_free.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.hands_free.wait(), left_s)
        await self._mirror.write()

    def mirror(self, tp: TP, next_offset: int) -> None:
        """Kafka's committed offset will be this one, soon, if the partition stays ours."""
        self._mirror.set(tp, next_offset)

    @Service.task  # type: ignore[untyped-decorator]
    async def _mirror_keeper(self) -> None:
        while not self.should_stop:
            await self.wait(self._mirror.is_due)
            if self.should_stop:
                return
            self._mirror.is_due.clear()
            await self._mirror.write()
            await self.sleep(MIRROR_S)

    # ---- Faust's own book-keeping is off -----------------------------------------------------------------------

    async def commit(self, *_: Any, **__: Any) -> bool:
        """Faust commits nothing: see `mirror`."""
        return False

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's live-lock detector reads its own offsets, which do not move here."""

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)


class Transport(AIOKafkaTransport):  # type: ignore[misc]
    """The aiokafka transport with our consumer."""

    Consumer = BatchConsumer


TRANSPORTS.aliases["batch"] = f"{__name__}:Transport"


def _partitions_of(error: KafkaError) -> list[TP]:
    [about] = error.args
    return [TP(*tp) for tp in about] if isinstance(about, dict) else [TP(*about)]
