"""Positions: where a consumer reads each of its logs. The truth is the table `progress`, not Kafka's committed offset."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from faust.types import TP
from sqlalchemy import Engine

from outbox.inbox import Log, all_positions, begin_log, begin_topic, lock_position, move_to, positions
from outbox.settings import Settings

if TYPE_CHECKING:
    from consumers.runtime.app import PipelineApp

ADMIN_TIMEOUT_S = 10.0
"""How long the broker may take to answer a question about topics, cluster or offsets."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Where to begin a log, or why not to."""

    log: Log
    next_offset: int
    mirror: bool
    """Whether Kafka's committed offset must be written now, since it is not ours."""
    hole: str = ""
    """Set if the position lies outside the log: the partition stays stopped."""


class Positions(Protocol):
    """The truth about positions, as the transport needs it. All calls may raise; they are then tried again."""

    async def open(
        self, earliest: Mapping[TP, int], latest: Mapping[TP, int], committed: Mapping[TP, int | None]
    ) -> Mapping[TP, Opening]:
        """Return where to begin each partition whose topic is known."""

    async def progress(self) -> Mapping[Log, int]:
        """Return the next offset of every log that the consumer has begun, as the database has it now."""

    async def topic_ids(self, topics: Collection[str]) -> Mapping[str, str]:
        """Return the id of each topic that exists."""

    def tell(self, about: str, condition: str) -> None:
        """Say how a partition is; an empty condition takes the last word back."""


class DatabasePositions:
    """`Positions` by the table `progress`, with the topics' ids from the broker."""

    def __init__(self, app: PipelineApp, settings: Settings) -> None:
        self._app = app
        self._admin = AdminClient(
            {"bootstrap.servers": settings.kafka_bootstrap, "log_level": 0, "socket.timeout.ms": 10_000}
        )
        self._cluster_id = ""

    async def topic_ids(self, topics: Collection[str]) -> Mapping[str, str]:
        """Return the id of each topic that exists."""
        return await asyncio.to_thread(self._topic_ids, list(topics))

    async def open(
        self, earliest: Mapping[TP, int], latest: Mapping[TP, int], committed: Mapping[TP, int | None]
    ) -> Mapping[TP, Opening]:
        """Return where to begin each partition whose topic exists; a log met for the first time begins at its earliest."""
        opened = await asyncio.to_thread(self._open, earliest, latest, committed)
        self._app.condition.ready()
        return opened

    async def progress(self) -> Mapping[Log, int]:
        """Return the next offset of every log that the consumer has begun."""
        return await asyncio.to_thread(self._progress)

    def _progress(self) -> dict[Log, int]:
        engine: Engine = self._app.engine
        with engine.connect() as connection:
            return all_positions(connection, self._app.consumer_name)

    def tell(self, about: str, condition: str) -> None:
        """Say how a partition is."""
        self._app.condition.tell(f"{self._app.consumer_name} {about}", condition)

    def _open(
        self, earliest: Mapping[TP, int], latest: Mapping[TP, int], committed: Mapping[TP, int | None]
    ) -> dict[TP, Opening]:
        ids = self._topic_ids(sorted({tp.topic for tp in earliest}))
        cluster_id = self._cluster()
        logs = {
            tp: Log(cluster_id=cluster_id, topic=tp.topic, topic_id=ids[tp.topic], partition=tp.partition)
            for tp in earliest
            if tp.topic in ids
        }
        engine: Engine = self._app.engine
        with engine.begin() as connection:
            for topic in sorted({log.topic for log in logs.values()}):
                begin_topic(connection, self._app.consumer_name, self._app.delivery.processor.service, topic)
            for tp, log in sorted(logs.items()):
                begin_log(connection, self._app.consumer_name, log, next_offset=earliest[tp])
            at = positions(connection, self._app.consumer_name, list(logs.values()))
        self._app.delivery.note_begun()
        for tp, log in logs.items():
            next_offset, mirrored = at[log]
            if next_offset > latest[tp]:
                at[log] = (self._within_its_log(log), mirrored)
        return {tp: self._opening(log, at[log], earliest[tp], committed.get(tp)) for tp, log in logs.items()}

    def _within_its_log(self, log: Log) -> int:
        """Progress is at the log's end if it was beyond; returns where it is. Transaction: its own.

        A log that ends before progress has lost records that were applied, as after a restore. What will ever lie there is
        new, and would be passed over once the log has grown; should it not be new, the inbox knows it. The end is asked for
        once nobody can move progress: one seen before a freeze is older than what siblings have applied since.
        """
        with self._app.engine.begin() as connection:
            next_offset = lock_position(connection, self._app.consumer_name, log)
            end = self._end(log)
            if next_offset <= end:
                return next_offset
            logger.error(
                "log %s ends at %s, progress was at %s: it has lost messages; going on at its end",
                log,
                end,
                next_offset,
            )
            move_to(connection, self._app.consumer_name, log, end)
            return end

    def _end(self, log: Log) -> int:
        partition = TopicPartition(log.topic, log.partition)
        future = self._admin.list_offsets({partition: OffsetSpec.latest()}, request_timeout=ADMIN_TIMEOUT_S)[partition]
        return int(future.result(ADMIN_TIMEOUT_S).offset)

    def _opening(self, log: Log, position: tuple[int, int | None], earliest: int, committed: int | None) -> Opening:
        next_offset, mirrored = position
        hole = ""
        if next_offset < earliest:
            hole = f"progress is at {next_offset}, the log begins at {earliest}: payrelay doctor"
        foreign = committed is not None and (committed > next_offset or (mirrored is not None and committed < mirrored))
        if foreign:
            logger.warning(
                "Kafka's committed offset %s of %s is not ours: progress %s is kept", committed, log, next_offset
            )
        return Opening(log=log, next_offset=next_offset, mirror=committed != next_offset, hole=hole)

    def _topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        if not topics:
            return {}
        described = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=ADMIN_TIMEOUT_S)
        ids = {}
        for name, future in described.items():
            try:
                ids[name] = str(future.result(ADMIN_TIMEOUT_S).topic_id)
            except KafkaException as error:
                if error.args[0].name() != "UNKNOWN_TOPIC_OR_PART":
                    raise
        return ids

    def _cluster(self) -> str:
        if not self._cluster_id:
            described = self._admin.describe_cluster(request_timeout=ADMIN_TIMEOUT_S).result(ADMIN_TIMEOUT_S)
            self._cluster_id = str(described.cluster_id)
        return self._cluster_id
