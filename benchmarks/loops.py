"""The loops that `delivery` compares, each in a process of its own: python -m benchmarks.loops LOOP WORK PREFIX COUNT.

LOOP is `bare` (aiokafka's getmany), `batch` (our transport) or `take` (stock Faust); WORK is `nothing` or `accounting`, which is
the same SQL in each. Prints the seconds from the first record in hand to the last one done.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import faust
import uvloop
from aiokafka import AIOKafkaConsumer

from consumers.accounting.agent import PROCESSOR
from consumers.delivery.loop import Delivered, Delivery
from consumers.delivery.messages import Slice
from consumers.runtime.app import PipelineApp
from consumers.runtime.worker import SWITCH_S
from ops.cli.context import current_settings
from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.inbox import Log, begin_log
from outbox.settings import Settings
from outbox.status import Condition
from schemas.topics import PAYMENT_ORDER

WITHIN_S = 0.02
"""What reliability-minded users of `take` choose: its default waits for ever, and a second costs half a second a batch."""

Deliver = Callable[[Sequence[Slice]], Mapping[Log, Any]]


def nothing(slices: Sequence[Slice]) -> Mapping[Log, Delivered]:
    """Return that all is done."""
    return {part.log: Delivered() for part in slices}


class CountedDelivery:
    """Delivers, and ends the process with its time once so many records are done."""

    def __init__(self, deliver: Deliver, count: int) -> None:
        self._deliver = deliver
        self._left = count
        self._begun = 0.0

    def deliver(self, slices: Sequence[Slice]) -> Mapping[Log, Any]:
        self._begun = self._begun or time.perf_counter()
        outcomes = self._deliver(slices)
        if not all(isinstance(outcome, Delivered) for outcome in outcomes.values()):
            raise AssertionError(outcomes)
        self._left -= sum(len(part.messages) for part in slices)
        if self._left <= 0:
            print(json.dumps({"seconds": time.perf_counter() - self._begun}), flush=True)
            os._exit(0)
        return outcomes


def begun_logs(settings: Settings, group: str) -> dict[int, Log]:
    """Return the topic's logs by partition, each with progress at its beginning."""
    topic = settings.topic_prefix + PAYMENT_ORDER.name
    logs = {
        number: Log(cluster_id="bench", topic=topic, topic_id=group, partition=number)
        for number in range(PAYMENT_ORDER.partitions)
    }
    with engine_for(settings.dsn_of(PROCESSOR.service), name="bench").begin() as connection:
        for log in logs.values():
            begin_log(connection, group, log, next_offset=0)
    return logs


def slice_of(log: Log, records: Sequence[Any]) -> Slice:
    """Return records of one log as a slice; these topics have no gaps."""
    return Slice(log=log, start=records[0].offset, end=records[-1].offset + 1, messages=records)


async def bare(settings: Settings, group: str, counted: CountedDelivery) -> None:
    """Poll with getmany, deliver on a thread, poll again."""
    logs = begun_logs(settings, group)
    consumer = AIOKafkaConsumer(
        settings.topic_prefix + PAYMENT_ORDER.name,
        bootstrap_servers=settings.kafka_bootstrap,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    thread, loop = ThreadPoolExecutor(1), asyncio.get_running_loop()
    await consumer.start()
    while True:
        fetched = await consumer.getmany(timeout_ms=100, max_records=settings.batch_max)
        if fetched:
            slices = [slice_of(logs[tp.partition], records) for tp, records in fetched.items()]
            await loop.run_in_executor(thread, counted.deliver, slices)


def batch(settings: Settings, counted: CountedDelivery, work: str) -> None:
    """Run the processor's own app, which delivers through what counts."""
    app = PipelineApp(PROCESSOR, settings, Condition(None, PROCESSOR.name))
    app.delivery.deliver = counted.deliver  # type: ignore[method-assign]
    if work == "nothing":
        # It writes no progress: compared with the database's, each partition would be read again and again.
        async def progress() -> Mapping[Log, int]:
            return {buffer.log: buffer.reached for buffer in app.consumer.buffers.values() if buffer.log is not None}

        app.positions.progress = progress  # type: ignore[method-assign]
    _run(app)


def take(settings: Settings, group: str, counted: CountedDelivery) -> None:
    """Run a stock Faust app as its guide writes it, with `take`."""
    logs = begun_logs(settings, group)
    app: Any = _StockApp(
        group,
        broker=f"kafka://{settings.kafka_bootstrap}",
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        key_serializer="raw",
        value_serializer="raw",
    )
    thread = ThreadPoolExecutor(1)

    @app.agent(app.topic(settings.topic_prefix + PAYMENT_ORDER.name))  # type: ignore[untyped-decorator]
    async def agent(stream: Any) -> None:
        async for events in stream.take_events(settings.batch_max, within=WITHIN_S):
            messages = sorted((event.message for event in events), key=lambda message: message.partition)
            slices = [
                slice_of(logs[partition], [_Record(message) for message in of_it])
                for partition, of_it in groupby(messages, key=lambda message: message.partition)
            ]
            await asyncio.get_running_loop().run_in_executor(thread, counted.deliver, slices)

    _run(app)


class _StockApp(faust.App):  # type: ignore[misc]
    def _create_directories(self) -> None:
        """There are no tables: a folder for them would be left behind."""


class _Record:
    """A Faust message as a record."""

    __slots__ = ("headers", "key", "offset", "value")

    def __init__(self, message: Any) -> None:
        self.offset, self.key, self.value, self.headers = message.offset, message.key, message.value, message.headers


def _run(app: Any) -> None:
    worker: Any = faust.Worker(app, redirect_stdouts=False, loglevel="WARNING")
    worker.spinner = None
    worker.execute_from_commandline()


def main() -> None:
    loop, work, prefix, count = sys.argv[1:]
    group = f"{prefix}{loop}-{work}-{os.getpid()}"
    settings = current_settings().model_copy(update={"topic_prefix": prefix, "group_prefix": f"{group}-"})
    sys.setswitchinterval(SWITCH_S)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    consumer = settings.group_prefix + PROCESSOR.name if loop == "batch" else group
    engine = engine_for(settings.dsn_of(PROCESSOR.service), name="bench")
    deliver: Deliver = nothing
    if work == PROCESSOR.name:
        deliver = Delivery(PROCESSOR, engine, consumer=consumer, clock=utc_now).deliver
    counted = CountedDelivery(deliver, int(count))
    match loop:
        case "bare":
            asyncio.run(bare(settings, group, counted))
        case "batch":
            batch(settings, counted, work)
        case "take":
            take(settings, group, counted)


if __name__ == "__main__":
    main()
