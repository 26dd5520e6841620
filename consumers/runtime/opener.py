"""The opener: opens partition buffers at their progress, and closes those whose progress or topic somebody else has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka.structs import TopicPartition
from faust.types import TP

from consumers.runtime.buffers import BufferState, PartitionBuffer
from outbox.inbox import Log

if TYPE_CHECKING:
    from consumers.runtime.transport import BatchConsumer

AGAIN_S = 0.5
"""After a poll or an opening that failed, since the broker or the database is away."""
REOPEN_S = 1.0
"""Between two looks for a topic that the broker does not know yet."""
PROGRESS_S = 3.0
"""Between two looks at whether somebody has moved progress: one statement for all partitions."""

log = logging.getLogger(__name__)


class Opener:
    """Moves a consumer's buffers: closed -> open or stopped, and back to closed if what they were opened by has changed."""

    def __init__(self, consumer: BatchConsumer) -> None:
        self.is_due = asyncio.Event()
        """Set while a buffer may be closed."""
        self._consumer = consumer

    async def open_closed(self) -> None:
        """Each closed buffer is open at its progress, or stopped; or it is due again, and the condition says why."""
        self.is_due.clear()
        buffers = [buffer for buffer in self._consumer.buffers.values() if buffer.state is BufferState.CLOSED]
        try:
            await self._open(buffers)
        except Exception as error:  # noqa: BLE001 - database or broker are away: try again, and say so
            reason = f"{type(error).__name__}: {error}"
            self._consumer.positions.tell("positions", f"cannot be read: {reason}".splitlines()[0])
            await self._consumer.sleep(AGAIN_S)
            self.is_due.set()
        else:
            self._consumer.positions.tell("positions", "")

    async def _open(self, buffers: Sequence[PartitionBuffer]) -> None:
        consumer = self._consumer
        partitions = [TopicPartition(*buffer.tp) for buffer in buffers]
        client = consumer.client
        earliest = latest = {}
        committed: dict[TP, int | None] = {}
        if partitions:
            earliest = await consumer.in_thread(client.beginning_offsets(partitions))
            latest = await consumer.in_thread(client.end_offsets(partitions))
            for tp in partitions:
                committed[TP(*tp)] = await consumer.in_thread(client.committed(tp))
        openings = await consumer.positions.open(_by_tp(earliest), _by_tp(latest), committed)
        if any(buffer.tp not in openings for buffer in buffers):  # its topic is not known yet, or gone: look again
            consumer.loop.call_later(REOPEN_S, self.is_due.set)
        for buffer in buffers:
            if not self._is_closed(buffer) or (opening := openings.get(buffer.tp)) is None:
                continue
            buffer.log = opening.log
            if opening.hole or buffer.has_hole:  # else the last word is a brake's, perhaps, and stays
                consumer.positions.tell(str(opening.log), f"stopped: {opening.hole}" if opening.hole else "")
            buffer.has_hole = bool(opening.hole)
            if opening.hole:
                buffer.state = BufferState.STOPPED
                continue
            await consumer.in_thread(_seek(client, TopicPartition(*buffer.tp), opening.next_offset))
            # The seek took its time: a rebalance may have come in between.
            if self._is_closed(buffer):
                buffer.open_at(opening.next_offset)
                if opening.mirror:
                    consumer.mirror(buffer.tp, opening.next_offset)
        consumer.fetch_more()

    def _is_closed(self, buffer: PartitionBuffer) -> bool:
        return self._consumer.buffers.get(buffer.tp) is buffer and buffer.state is BufferState.CLOSED

    async def check_topics(self) -> None:
        """A buffer whose topic was made again is closed: the new topic is another log, even if it has the old position.

        A stopped one is closed too, to see whether progress was moved into its log.
        """
        consumer = self._consumer
        topics = {buffer.tp.topic for buffer in consumer.buffers.values()}
        try:
            ids = await consumer.positions.topic_ids(topics) if topics else {}
        except Exception as error:  # noqa: BLE001 - the broker is away: the next look finds out
            log.warning("cannot read topic ids, so a topic that was made again is noticed later: %r", error)
            return
        for buffer in list(consumer.buffers.values()):
            topic = buffer.tp.topic
            if buffer.state is BufferState.STOPPED:
                buffer.state = BufferState.CLOSED
                self.is_due.set()
            elif buffer.log is not None and ids.get(topic, buffer.log.topic_id) != buffer.log.topic_id:
                log.warning("topic %s was made again: reading the new one from its beginning", topic)
                consumer.rewind(buffer)

    async def check_progress(self) -> None:
        """A buffer whose progress was moved by somebody else is closed, whether a message comes in or not.

        As after a restore of the database, or a fail-over to a standby that lagged: what was applied since is not any more.
        """
        consumer = self._consumer
        reached = {
            buffer: (buffer.epoch, buffer.reached)
            for buffer in consumer.buffers.values()
            if buffer.state is BufferState.OPEN
        }
        if not reached:  # the partitions are somebody else's, perhaps, who then says how they are
            consumer.positions.tell("progress", "")
            return
        try:
            progress = await consumer.positions.progress()
        except Exception as error:  # noqa: BLE001 - the database is away: look again, and say so
            reason = f"{type(error).__name__}: {getattr(error, 'orig', error)}".splitlines()[0]
            consumer.positions.tell("progress", f"waiting for the database: {reason}")
            return
        consumer.positions.tell("progress", "")
        for buffer, (epoch, low) in reached.items():
            self._follow(buffer, epoch, progress, low)

    def _follow(self, buffer: PartitionBuffer, epoch: int, progress: Mapping[Log, int], low: int) -> None:
        """The buffer is closed unless progress is between where it was before it was read and the end of what is fetched now."""
        # Our own commits move it meanwhile, but never out of these bounds.
        if self._consumer.buffers.get(buffer.tp) is not buffer or buffer.epoch != epoch:
            return
        if buffer.state is not BufferState.OPEN or buffer.log is None:
            return
        at = progress.get(buffer.log)
        if at is None or not low <= at <= buffer.position:
            log.warning("progress of %s was at %s, and is at %s now: going on there", buffer.log, low, at)
            self._consumer.rewind(buffer)


async def _seek(client: Any, tp: TopicPartition, offset: int) -> None:
    client.seek(tp, offset)


def _by_tp(offsets: Mapping[TopicPartition, int]) -> dict[TP, int]:
    return {TP(*tp): offset for tp, offset in offsets.items()}
