"""A processor as a Faust app: its own consumer group, one agent, one thread for the database."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faust
from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from faust.app.base import BootStrategy
from faust.tables import TableManager
from faust.types import TP
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from consumers.delivery.loop import Braked, Delivered, Delivery, Processor, Unexpected, is_transient, told
from consumers.runtime.database_watch import watch_database
from consumers.runtime.sensors import BatchSensors
from consumers.runtime.transport import FAILED, Batch, BatchSchema, Consumer, Opening, require_versions
from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.inbox import Log, all_positions, begin_log, begin_topic, lock_position, move_to, note_mirrored, positions
from outbox.retry import backoff_s
from outbox.settings import Settings
from outbox.status import Condition

ADMIN_TIMEOUT_S = 10.0
BRAKE_S = 1.0

log = logging.getLogger(__name__)


class _Boot(BootStrategy):  # type: ignore[misc]
    enable_kafka_producer = False
    enable_web = False


class _NoTables(TableManager):  # type: ignore[misc]
    """Faust's own waits a second for tables to be added before it lets the consumer subscribe; there are none."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class PipelineApp(faust.App):  # type: ignore[misc]
    """A Faust app that delivers batches through `Delivery`."""

    BootStrategy = _Boot

    def __init__(self, processor: Processor, settings: Settings, condition: Condition) -> None:
        require_versions()
        self.consumer_name = settings.group_prefix + processor.name
        self.condition = condition
        self.engine = engine_for(
            settings.dsn_of(processor.service),
            name=f"worker {processor.name}",
            session_timeout_s=settings.session_timeout_s,
            pool_size=2,
        )
        self.delivery = Delivery(processor, self.engine, consumer=self.consumer_name, clock=utc_now)
        self.positions = DatabasePositions(self, settings)
        self.database = ThreadPoolExecutor(1, thread_name_prefix=f"{processor.name}-database")
        self.busy_since = Pulse()
        super().__init__(
            self.consumer_name,
            broker=f"batch://{settings.kafka_bootstrap}",
            autodiscover=False,
            web_enabled=False,
            TableManager=_NoTables,
            topic_disable_leader=True,
            topic_allow_declare=False,
            table_standby_replicas=0,
            consumer_auto_offset_reset="none",
            consumer_metadata_max_age_ms=int(settings.metadata_max_age_s * 1000),
            broker_session_timeout=settings.session_timeout_s,
            broker_heartbeat_interval=min(1.0, settings.session_timeout_s / 4),
            broker_request_timeout=max(20.0, settings.session_timeout_s),
            broker_rebalance_timeout=15.0,
            broker_max_poll_interval=settings.max_poll_interval_s,
            broker_max_poll_records=settings.batch_max,
        )
        self.sensors = BatchSensors(self)
        self.task(watch_database)
        names = [settings.topic_prefix + topic.name for topic in processor.topics]
        source = self.topic(*names, schema=BatchSchema(), acks=False, key_serializer="raw", value_serializer="raw")

        @self.agent(source, name=processor.name, concurrency=1)  # type: ignore[untyped-decorator]
        async def agent(stream: faust.StreamT[Consumer]) -> None:
            async for consumer in stream:
                while (batch := consumer.take()) is not None:
                    async with batch:
                        slices = batch.slices
                        self.sensors.took(slices)
                        try:
                            await self._until_committed(batch)
                        finally:
                            self.sensors.let_go(slices)

    def _create_directories(self) -> None:
        """Faust would make folders for its tables; there are none."""

    async def _until_committed(self, batch: Batch) -> None:
        """The batch is committed, or it is no longer ours to commit. No exception leaves but cancellation."""
        subject = self.consumer_name
        loop = asyncio.get_running_loop()
        for attempt in range(1, 1_000_000_000):
            if batch.is_unwanted:
                self.condition.tell(subject, "")  # whoever has its partitions next says how they are
                return
            self.busy_since.beat()
            slices, began = batch.slices, time.monotonic()
            try:
                outcomes = await loop.run_in_executor(self.database, self.delivery.deliver, slices)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                if not is_transient(error):
                    log.critical("delivery failed consumer=%s", subject, exc_info=error)
                    os._exit(FAILED)
                self.condition.tell(subject, f"waiting for the database: {told(error)}")
                await batch.pause(backoff_s(attempt, jitter=random.random()))  # noqa: S311 - no secret
            else:
                self.condition.tell(subject, "")
                self.sensors.handled([one for one in slices if isinstance(outcomes[one.log], Delivered)], began=began)
                for one, outcome in outcomes.items():
                    self._settle(batch, one, outcome)
                return
            finally:
                self.busy_since.rest()

    def _settle(self, batch: Batch, one: Log, outcome: Delivered | Braked | Unexpected) -> None:
        """Faust's side of the log's slice follows what became of it in the database."""
        subject = f"{self.consumer_name} {one}"
        match outcome:
            case Delivered():
                batch.done(one)
                self.condition.tell(subject, "")
                if outcome.parked:
                    log.warning("parked consumer=%s log=%s events=%d", self.consumer_name, one, outcome.parked)
            case Braked():
                self.condition.tell(subject, f"braked: {outcome}")
                batch.hold(one, min(BRAKE_S, self.conf.broker_session_timeout))
            case Unexpected():
                log.warning("rewind consumer=%s %s", self.consumer_name, outcome)

    async def mirrored(self, offsets: Mapping[Log, int]) -> None:
        """These offsets were written to Kafka: remembered, so that somebody else's commit can be told from ours."""
        await asyncio.get_running_loop().run_in_executor(self.database, self._note_mirrored, offsets)

    def _note_mirrored(self, offsets: Mapping[Log, int]) -> None:
        try:
            with self.engine.begin() as connection:
                note_mirrored(connection, self.consumer_name, offsets)
        except SQLAlchemyError as error:  # the next mirror will tell
            log.warning("mirror not noted: %s", told(error))


class Pulse:
    """When the database was last turned to, for the watchdog: it watches state changes, never progress."""

    def __init__(self) -> None:
        self.ticks_busy = 0
        self.is_busy = False

    def beat(self) -> None:
        self.is_busy, self.ticks_busy = True, 0

    def rest(self) -> None:
        self.is_busy, self.ticks_busy = False, 0


class DatabasePositions:
    """`progress` as the consumer's truth about positions, with the topics' ids from the broker."""

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
            for topic in sorted({one.topic for one in logs.values()}):
                begin_topic(connection, self._app.consumer_name, self._app.delivery.processor.service, topic)
            for tp, one in sorted(logs.items()):
                begin_log(connection, self._app.consumer_name, one, next_offset=earliest[tp])
            found = positions(connection, self._app.consumer_name, list(logs.values()))
        self._app.delivery.note_begun()
        for tp, one in logs.items():
            if found[one][0] > latest[tp]:
                found[one] = (self._within_its_log(one), found[one][1])
        return {tp: self._opening(one, found[one], earliest[tp], committed.get(tp)) for tp, one in logs.items()}

    def _within_its_log(self, one: Log) -> int:
        """Progress is at the log's end if it was beyond; returns where it is. Transaction: its own.

        A log that ends before progress has lost records that were applied, as after a restore. What will ever lie there is
        new, and would be passed over once the log has grown; should it not be new, the inbox knows it. The end is asked for
        once nobody can move progress: one seen before a freeze is older than what siblings have applied since.
        """
        with self._app.engine.begin() as connection:
            next_offset = lock_position(connection, self._app.consumer_name, one)
            end = self._end(one)
            if next_offset <= end:
                return next_offset
            log.error(
                "log %s ends at %s, progress was at %s: it has lost records; going on at its end", one, end, next_offset
            )
            move_to(connection, self._app.consumer_name, one, end)
            return end

    def _end(self, one: Log) -> int:
        asked = TopicPartition(one.topic, one.partition)
        future = self._admin.list_offsets({asked: OffsetSpec.latest()}, request_timeout=ADMIN_TIMEOUT_S)[asked]
        return int(future.result(ADMIN_TIMEOUT_S).offset)

    def _opening(self, one: Log, position: tuple[int, int | None], earliest: int, committed: int | None) -> Opening:
        next_offset, mirrored = position
        hole = ""
        if next_offset < earliest:
            hole = f"progress is at {next_offset}, the log begins at {earliest}: payrelay doctor"
        foreign = committed is not None and (committed > next_offset or (mirrored is not None and committed < mirrored))
        if foreign:
            log.warning(
                "Kafka's committed offset %s of %s is not ours: progress %s is kept", committed, one, next_offset
            )
        return Opening(log=one, next_offset=next_offset, mirror=committed != next_offset, hole=hole)

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


def wait_for_broker(settings: Settings, condition: Condition) -> None:
    """The broker answers. Faust would give up at once, and the supervisor after a few times."""
    admin: Any = AdminClient(
        {"bootstrap.servers": settings.kafka_bootstrap, "log_level": 0, "socket.timeout.ms": 5_000}
    )
    for attempt in range(1, 1_000_000_000):
        try:
            admin.list_topics(timeout=5)
        except KafkaException as error:
            condition.tell("kafka", f"does not answer at {settings.kafka_bootstrap}: {error.args[0].str()}")
            time.sleep(backoff_s(attempt))
        else:
            condition.tell("kafka", "")
            return
