"""Partition buffers: what was fetched and waits for the agent. And the batch of slices that the agent takes from them.

Nothing here does I/O, or waits, but `Batch.pause`. Who moves a buffer from state to state: consumers/runtime/transport.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import Any, Protocol

from faust.types import TP

from consumers.delivery.messages import Slice
from outbox.inbox import Log

BYTES_MAX = 64 * 1024 * 1024
"""Bytes buffered at most, all partitions together."""


class BufferState(Enum):
    """What a partition buffer does."""

    CLOSED = "closed"
    """It takes nothing in: its position is to be read from the database."""
    OPEN = "open"
    """It takes in what is fetched, and the agent takes from it."""
    HELD = "held"
    """As closed, but not to be opened before its time."""
    STOPPED = "stopped"
    """Its position lies outside its log: an operator must decide."""


class PartitionBuffer:
    """One assigned partition, and its messages that wait."""

    __slots__ = (
        "bytes",
        "epoch",
        "has_hole",
        "is_unreadable",
        "log",
        "messages",
        "position",
        "reached",
        "state",
        "tp",
        "waiting",
    )

    def __init__(self, tp: TP) -> None:
        self.tp = tp
        self.state = BufferState.CLOSED
        self.epoch = 0
        """Raised by each rewind: what was taken in an older epoch is stale."""
        self.log: Log | None = None
        self.has_hole = False
        """Whether the condition says that its position lies outside its log."""
        self.is_unreadable = False
        """Whether the condition says that its next batch cannot be read."""
        self.position = 0
        """End of what was fetched."""
        self.reached = 0
        """Progress was here already: as it was read at the opening, or after the last commit of ours."""
        self.waiting: deque[Slice] = deque()
        self.messages = 0
        self.bytes = 0

    def add(self, messages: Sequence[Any], end: int) -> None:
        """The messages wait; they follow on those that do."""
        assert self.log is not None
        self.waiting.append(Slice(log=self.log, start=self.position, end=end, messages=messages))
        self.position = end
        self.messages += len(messages)
        self.bytes += _size(messages)

    def take(self, messages_max: int) -> Slice | None:
        """Return what waits as one slice, of at most so many messages unless its first part has more."""
        if not self.waiting:
            return None
        first = last = self.waiting.popleft()
        messages = list(first.messages)
        while self.waiting and len(messages) + len(self.waiting[0].messages) <= messages_max:
            last = self.waiting.popleft()
            messages += last.messages
        self.messages -= len(messages)
        self.bytes -= _size(messages)
        return Slice(log=first.log, start=first.start, end=last.end, messages=messages)

    def open_at(self, position: int) -> None:
        """It takes in what is fetched from this position on, where progress is."""
        self.position = self.reached = position
        self.state = BufferState.OPEN

    def rewind(self, state: BufferState) -> None:
        """It is to begin again at its progress: closed, or held; what waits is dropped, and what was taken is stale."""
        self.epoch += 1
        self.waiting.clear()
        self.messages = self.bytes = 0
        self.state = state


def with_room(buffers: Mapping[TP, PartitionBuffer], messages_max: int) -> list[TP]:
    """Return the partitions that may be fetched: open, and with fewer messages than this; none once the bytes are used up."""
    if sum(buffer.bytes for buffer in buffers.values()) >= BYTES_MAX:
        return []
    return [tp for tp, buffer in buffers.items() if buffer.state is BufferState.OPEN and buffer.messages < messages_max]


def take_slices(
    buffers: Mapping[TP, PartitionBuffer], *, turn: int, messages_max: int
) -> dict[Log, tuple[PartitionBuffer, Slice]]:
    """Return a slice of each buffer with messages, about so many in all, beginning with another partition each turn."""
    slices: dict[Log, tuple[PartitionBuffer, Slice]] = {}
    left = messages_max
    ordered = sorted(buffers.values(), key=lambda buffer: buffer.tp)
    # Were the first always the same, its backlog would starve the others.
    first = turn % len(ordered) if ordered else 0
    for buffer in (*ordered[first:], *ordered[:first]):
        if left > 0 and (slice_ := buffer.take(left)) is not None:
            slices[slice_.log] = (buffer, slice_)
            left -= len(slice_.messages)
    return slices


def _size(messages: Sequence[Any]) -> int:
    return sum(message.serialized_value_size + message.serialized_key_size for message in messages)


class BatchSource(Protocol):
    """What a batch needs of the consumer that it was taken from."""

    buffers: dict[TP, PartitionBuffer]
    closing: asyncio.Event
    """Set while partitions are about to go, or the process is about to end."""
    hands_free: asyncio.Event
    """Set whenever a batch has left the agent's hands."""
    in_hand: int

    @property
    def generation(self) -> int:
        """The group's generation: another one may have given the partitions to somebody else."""

    def mirror(self, tp: TP, next_offset: int) -> None:
        """Kafka's committed offset is to follow."""

    def rewind(self, buffer: PartitionBuffer) -> None:
        """The buffer begins again at its progress."""

    def hold(self, buffer: PartitionBuffer, delay_s: float) -> None:
        """The buffer begins again at its progress after the delay."""


class Batch:
    """Slices in the agent's hands. `async with batch`: a slice that is neither done nor held by the end is fetched again."""

    def __init__(self, source: BatchSource, slices: Mapping[Log, tuple[PartitionBuffer, Slice]]) -> None:
        self._source = source
        self._slices = dict(slices)
        self._epochs = {log: buffer.epoch for log, (buffer, _) in slices.items()}
        self._generation = source.generation

    @property
    def slices(self) -> list[Slice]:
        """Return the slices still wanted: not of a partition that was lost or rewound meanwhile."""
        return [slice_ for log, (_, slice_) in self._slices.items() if not self._is_stale(log)]

    @property
    def is_unwanted(self) -> bool:
        """Whether trying again is over: its partitions are gone, or about to go."""
        return self._source.closing.is_set() or not self.slices

    def done(self, log: Log) -> None:
        """The log's slice is committed in the database: Kafka's offset may follow."""
        buffer, slice_ = self._slices[log]
        # Committed is committed, also if the buffer was rewound meanwhile. But a commit of an older generation would make
        # aiokafka leave the group and join again.
        if self._is_assigned(buffer) and buffer.log == log:
            self._source.mirror(buffer.tp, slice_.end)
        if not self._is_stale(log):
            buffer.reached = slice_.end
        del self._slices[log]

    def hold(self, log: Log, delay_s: float) -> None:
        """The log's partition waits this long, then begins again at its progress; others go on."""
        buffer, _ = self._slices[log]
        if not self._is_stale(log):
            self._source.hold(buffer, delay_s)
        del self._slices[log]

    async def pause(self, delay_s: float) -> None:
        """Return after the delay, or as soon as the batch is unwanted."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._source.closing.wait(), delay_s)

    def _is_stale(self, log: Log) -> bool:
        buffer, _ = self._slices[log]
        return buffer.epoch != self._epochs[log] or not self._is_assigned(buffer)

    def _is_assigned(self, buffer: PartitionBuffer) -> bool:
        return self._source.buffers.get(buffer.tp) is buffer and self._source.generation == self._generation

    async def __aenter__(self) -> Batch:
        self._source.in_hand += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.in_hand -= 1
        self._source.hands_free.set()
        if kind is not None:
            # The agent begins again, and is woken by what comes in next, not by what waits: that must come in again.
            for buffer in self._source.buffers.values():
                if buffer.waiting:
                    self._source.rewind(buffer)
        for log, (buffer, _) in self._slices.items():
            if not self._is_stale(log):
                self._source.rewind(buffer)
