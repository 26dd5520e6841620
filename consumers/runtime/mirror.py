"""The mirror: Kafka's committed offsets, written after our commits. They decide nothing: tools and lag monitors read them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP

from outbox.inbox import Log

if TYPE_CHECKING:
    from consumers.runtime.transport import BatchConsumer

MIRROR_S = 1.0
"""Between two writes: nobody decides by the offset, so not every batch pays for a request to the broker."""
MIRROR_TIMEOUT_S = 3.0
"""How long a write may take: a process that ends waits for the last one."""

log = logging.getLogger(__name__)


class Mirror:
    """The offsets of a consumer's partitions that Kafka is to have, and does not have yet."""

    def __init__(self, consumer: BatchConsumer) -> None:
        self.is_due = asyncio.Event()
        """Set while there is something to write."""
        self._consumer = consumer
        self._offsets: dict[TP, int] = {}
        self._writing = asyncio.Lock()

    def set(self, tp: TP, next_offset: int) -> None:
        """Kafka's committed offset will be this one, soon, if the partition stays ours."""
        self._offsets[tp] = next_offset
        self.is_due.set()

    def forget(self) -> None:
        """Nothing is to be written: the partitions are gone."""
        self._offsets = {}

    async def write(self) -> None:
        """What is due is written, or stays due if Kafka does not take it in time."""
        consumer, app = self._consumer, self._consumer.app
        async with self._writing:  # whoever ends the process waits for the write that is under way
            offsets, self._offsets = self._offsets, {}
            if not offsets:
                return
            logs = self._logs()
            sensed = app.sensors.on_commit_initiated(consumer)
            try:
                await asyncio.wait_for(consumer.in_thread(self._commit(offsets)), MIRROR_TIMEOUT_S)
                app.sensors.on_commit_completed(consumer, sensed)
                app.monitor.on_tp_commit(offsets)
                written = {logs[tp]: at for tp, at in offsets.items() if tp in logs}
                await asyncio.wait_for(app.mirrored(written), MIRROR_TIMEOUT_S)
            except (KafkaError, IllegalStateError, TimeoutError, RuntimeError) as error:
                log.warning(
                    "Kafka's offsets are not written yet; progress is safe, and they are tried again: %r", error
                )
                # A partition that was lost meanwhile, or has another log now, is no longer ours to write.
                now = self._logs()
                still_ours = {tp: at for tp, at in offsets.items() if tp in logs and now.get(tp) == logs[tp]}
                self._offsets = still_ours | self._offsets
                if self._offsets:
                    self.is_due.set()

    def _logs(self) -> dict[TP, Log]:
        return {tp: buffer.log for tp, buffer in self._consumer.buffers.items() if buffer.log is not None}

    async def _commit(self, offsets: Mapping[TP, int]) -> None:
        client = self._consumer.client
        mine = client.assignment()
        commit = {tp: OffsetAndMetadata(at, "") for tp, at in offsets.items() if TopicPartition(*tp) in mine}
        if commit:
            await client.commit({TopicPartition(*tp): at for tp, at in commit.items()})
