"""Partition buffers and the batches taken from them: who is stale, whose turn it is, and what is fetched again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from consumers.runtime.buffers import (
    BYTES_MAX,
    Batch,
    BufferState,
    PartitionBuffer,
    take_slices,
    with_room,
)
from outbox.inbox import Log


def message(offset: int, size: int = 10) -> Any:
    return SimpleNamespace(offset=offset, serialized_value_size=size, serialized_key_size=0)


def opened(partition: int, *counts: int, size: int = 10) -> PartitionBuffer:
    """Return an open buffer in which the messages of so many answers wait."""
    buffer = PartitionBuffer(TP("t", partition))
    buffer.log = Log(cluster_id="c", topic="t", topic_id="i", partition=partition)
    buffer.open_at(100)
    for count in counts:
        buffer.add([message(buffer.position + number, size) for number in range(count)], buffer.position + count)
    return buffer


def by_tp(*buffers: PartitionBuffer) -> dict[TP, PartitionBuffer]:
    return {buffer.tp: buffer for buffer in buffers}


class Source:
    """The consumer's side of a batch."""

    def __init__(self, *buffers: PartitionBuffer) -> None:
        self.buffers = by_tp(*buffers)
        self.closing, self.hands_free = asyncio.Event(), asyncio.Event()
        self.in_hand = 0
        self.generation = 1
        self.mirrored: dict[TP, int] = {}
        self.delays_s: dict[TP, float] = {}

    def mirror(self, tp: TP, next_offset: int) -> None:
        self.mirrored[tp] = next_offset

    def rewind(self, buffer: PartitionBuffer) -> None:
        buffer.rewind(BufferState.CLOSED)

    def hold(self, buffer: PartitionBuffer, delay_s: float) -> None:
        buffer.rewind(BufferState.HELD)
        self.delays_s[buffer.tp] = delay_s

    def batch(self) -> Batch:
        return Batch(self, take_slices(self.buffers, turn=0, messages_max=1_000))


def test_answers_are_taken_whole_and_follow_on_each_other() -> None:
    buffer = opened(0, 3, 4, 5)
    first, second = buffer.take(8), buffer.take(8)
    assert first is not None
    assert second is not None
    assert [(part.start, part.end, len(part.messages)) for part in (first, second)] == [(100, 107, 7), (107, 112, 5)]
    assert (buffer.take(8), buffer.messages, buffer.bytes) == (None, 0, 0)


def test_an_answer_larger_than_the_batch_is_taken_all_the_same() -> None:
    taken = opened(0, 20).take(8)
    assert taken is not None
    assert len(taken.messages) == 20


def test_each_partition_is_the_first_in_its_turn() -> None:
    for turn, expected in ((0, [0, 1]), (1, [1, 2]), (2, [2, 0]), (3, [0, 1])):
        slices = take_slices(by_tp(opened(2, 5), opened(0, 5), opened(1, 5)), turn=turn, messages_max=10)
        assert [log.partition for log in slices] == expected


def test_a_full_or_closed_partition_is_not_fetched_and_none_is_once_the_bytes_are_used_up() -> None:
    closed = opened(2)
    closed.rewind(BufferState.CLOSED)
    assert with_room(by_tp(opened(0, 9), opened(1, 10), closed), 10) == [TP("t", 0)]
    assert with_room(by_tp(opened(0, 1, size=BYTES_MAX), opened(1)), 10) == []


def test_what_is_done_is_mirrored_and_what_is_not_is_fetched_again() -> None:
    done, left, held = opened(0, 2), opened(1, 2), opened(2, 2)
    source = Source(done, left, held)

    async def hand_over() -> None:
        async with source.batch() as batch:
            assert (len(batch.slices), source.in_hand) == (3, 1)
            first, _, last = batch.slices
            batch.done(first.log)
            batch.hold(last.log, 1.0)

    asyncio.run(hand_over())
    assert (source.mirrored, source.delays_s) == ({TP("t", 0): 102}, {TP("t", 2): 1.0})
    assert [buffer.state for buffer in (done, left, held)] == [BufferState.OPEN, BufferState.CLOSED, BufferState.HELD]
    assert (done.reached, source.in_hand, source.hands_free.is_set()) == (102, 0, True)


@pytest.mark.parametrize("loss", ["rewound", "replaced", "another generation"])
def test_a_slice_whose_partition_was_lost_is_not_wanted_any_more(loss: str) -> None:
    buffer = opened(0, 2)
    source = Source(buffer)
    batch = source.batch()
    [taken] = batch.slices
    match loss:
        case "rewound":
            source.rewind(buffer)
        case "replaced":
            source.buffers[buffer.tp] = opened(0)
        case _:
            source.generation = 2
    assert batch.slices == []
    assert batch.is_unwanted
    batch.done(taken.log)
    mirrored = {buffer.tp: 102} if loss == "rewound" else {}
    assert source.mirrored == mirrored, "committed is committed, but only of a partition that is ours still"
    assert buffer.reached == 100


def test_an_agent_that_raises_makes_what_waits_come_in_again() -> None:
    buffer = opened(0, 2)
    source = Source(buffer)

    async def raise_() -> None:
        async with source.batch() as batch:
            batch.done(batch.slices[0].log)
            buffer.add([message(102)], 103)
            raise RuntimeError("the agent")

    with pytest.raises(RuntimeError):
        asyncio.run(raise_())
    assert (buffer.state, buffer.messages, buffer.epoch) == (BufferState.CLOSED, 0, 1)
