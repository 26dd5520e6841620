"""A processor as a Faust app: its own consumer group, one agent, one thread for the database."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faust
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from faust.app.base import BootStrategy
from faust.tables import TableManager
from sqlalchemy.exc import SQLAlchemyError

from consumers.delivery.brake import Braked
from consumers.delivery.loop import Delivered, Delivery, OffsetGap, SliceOutcome
from consumers.delivery.processor import Processor, error_line, is_transient
from consumers.runtime.aiokafka_patches import require_versions
from consumers.runtime.buffers import Batch
from consumers.runtime.database_watch import watch_database
from consumers.runtime.positions import DatabasePositions
from consumers.runtime.sensors import BatchSensors
from consumers.runtime.transport import FAILED, BatchConsumer, BatchSchema
from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.inbox import Log, note_mirrored
from outbox.retry import backoff_s
from outbox.settings import Settings
from outbox.status import Condition

BRAKE_S = 1.0
"""How long a braked partition waits before its slice comes again: six failures, of two a try, take some three seconds."""

logger = logging.getLogger(__name__)


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
        super().__init__(self.consumer_name, **_faust_options(settings))
        self.sensors = BatchSensors(self)
        self.task(watch_database)
        names = [settings.topic_prefix + topic.name for topic in processor.topics]
        source = self.topic(*names, schema=BatchSchema(), acks=False, key_serializer="raw", value_serializer="raw")

        @self.agent(source, name=processor.name, concurrency=1)  # type: ignore[untyped-decorator]
        async def agent(stream: faust.StreamT[BatchConsumer]) -> None:
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
                    logger.critical("delivery failed consumer=%s", subject, exc_info=error)
                    os._exit(FAILED)
                self.condition.tell(subject, f"waiting for the database: {error_line(error)}")
                await batch.pause(backoff_s(attempt, jitter=random.random()))  # noqa: S311 - no secret
            else:
                self.condition.tell(subject, "")
                self.sensors.handled(
                    [slice_ for slice_ in slices if isinstance(outcomes[slice_.log], Delivered)], began=began
                )
                for log, outcome in outcomes.items():
                    self._settle(batch, log, outcome)
                return
            finally:
                self.busy_since.rest()

    def _settle(self, batch: Batch, log: Log, outcome: SliceOutcome) -> None:
        """Faust's side of the log's slice follows its outcome in the database."""
        subject = f"{self.consumer_name} {log}"
        match outcome:
            case Delivered():
                batch.done(log)
                self.condition.tell(subject, "")
                if outcome.parked:
                    logger.warning("parked consumer=%s log=%s events=%d", self.consumer_name, log, outcome.parked)
            case Braked():
                self.condition.tell(subject, f"braked: {outcome}")
                batch.hold(log, min(BRAKE_S, self.conf.broker_session_timeout))
            case OffsetGap():
                logger.warning("rewind consumer=%s %s", self.consumer_name, outcome)

    async def mirrored(self, offsets: Mapping[Log, int]) -> None:
        """These offsets, written to Kafka, are noted, so that somebody else's commit is recognised."""
        await asyncio.get_running_loop().run_in_executor(self.database, self._note_mirrored, offsets)

    def _note_mirrored(self, offsets: Mapping[Log, int]) -> None:
        try:
            with self.engine.begin() as connection:
                note_mirrored(connection, self.consumer_name, offsets)
        except SQLAlchemyError as error:  # the next mirror is noted
            logger.warning(
                "cannot note what was mirrored to Kafka; progress is safe, and the next mirror is noted again: %s",
                error_line(error),
            )


def _faust_options(settings: Settings) -> dict[str, Any]:
    """Return the app's options: no web server, no tables, no leader election, and Kafka's offsets left alone."""
    return {
        "broker": f"batch://{settings.kafka_bootstrap}",
        "autodiscover": False,
        "web_enabled": False,
        "TableManager": _NoTables,
        "topic_disable_leader": True,
        "topic_allow_declare": False,
        "table_standby_replicas": 0,
        "consumer_auto_offset_reset": "none",
        "consumer_metadata_max_age_ms": int(settings.metadata_max_age_s * 1000),
        "broker_session_timeout": settings.session_timeout_s,
        "broker_heartbeat_interval": min(1.0, settings.session_timeout_s / 4),
        "broker_request_timeout": max(20.0, settings.session_timeout_s),
        "broker_rebalance_timeout": 15.0,
        "broker_max_poll_interval": settings.max_poll_interval_s,
        "broker_max_poll_records": settings.batch_max,
    }


class Pulse:
    """Whether a turn to the database is under way, and for how many of the watchdog's ticks: it judges turns, never progress."""

    def __init__(self) -> None:
        self.ticks_busy = 0
        self.is_busy = False

    def beat(self) -> None:
        self.is_busy, self.ticks_busy = True, 0

    def rest(self) -> None:
        self.is_busy, self.ticks_busy = False, 0


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
