"""Where Faust 0.15.3 loses events, ours does not; that stock Faust does is shown once, in `make faults`.

| Faust's pattern                             | ours loses nothing in                                                                     |
|---------------------------------------------|-------------------------------------------------------------------------------------------|
| an exception leaves the agent               | the agent raises…, below; in a handler: test_worker.py, a handler broken for all events…   |
| `take`: an exception takes its batch along  | the agent raises…; test_worker.py, one poison event among 1000…                           |
| `noack` with acks of one's own              | the agent raises…: there are no acks, what is not said to be done is fetched again         |
| F1 an off-by-one gap is committed over      | the agent raises…: what Kafka has is never ahead of progress                              |
| F2 the first batch fails before any commit  | the agent raises…: at its very first batch                                                |
| F3 a gap in the offsets takes a neighbour in| the agent raises…: on a log with transaction markers                                      |
| F4 `take` acks in its `finally`             | the agent raises…; told to end in the middle of a batch, below                            |
| F5 acks come back with a closed generator   | the agent raises…: it begins again on the same stream                                     |
| F6 without Cython skipped messages are acked| the agent raises…: with Cython and without                                                |
| F7 what cannot be decoded is acked first    | test_worker.py, one poison event…; test_delivery.py, whatever a record holds…             |
| F8 concurrency acks out of order            | the agent raises…: one agent, and of each partition a position of its own                 |
| SIGTERM in the middle of a batch            | told to end in the middle of a batch, below                                               |
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import NewTopic, OffsetSpec
from sqlalchemy import text

from ops.stack.parts import tied
from schemas.codec import encode
from tests.pipeline import ROOT, Pipeline, engine_of, headers_of
from tests.waiting import eventually

EVENTS = 200


def committed(pipeline: Pipeline, group: str) -> dict[int, int]:
    """Return the offset of each partition that Kafka has of a group."""
    request = [ConsumerGroupTopicPartitions(group)]
    answer = pipeline.admin.list_consumer_group_offsets(request)[group].result(20)
    return {
        position.partition: position.offset for position in answer.topic_partitions if position.topic == pipeline.topic
    }


def progress(pipeline: Pipeline) -> dict[int, int]:
    with engine_of(pipeline.settings, "ops").connect() as connection:
        rows = connection.execute(
            text(
                "SELECT partition, next_offset FROM accounting.progress WHERE consumer = :consumer AND topic = :topic"
            ),
            {"consumer": pipeline.consumer, "topic": pipeline.topic},
        )
        return {row.partition: row.next_offset for row in rows}


def log_ends(pipeline: Pipeline) -> dict[int, int]:
    partitions = pipeline.admin.list_topics(pipeline.topic, timeout=10).topics[pipeline.topic].partitions
    wanted = {TopicPartition(pipeline.topic, partition): OffsetSpec.latest() for partition in partitions}
    return {tp.partition: future.result(20).offset for tp, future in pipeline.admin.list_offsets(wanted).items()}


def send_in_transactions(pipeline: Pipeline, count: int, *, size: int) -> None:
    """The events are on the topic; each transaction leaves a marker behind, an offset that no record has."""
    settings = {"bootstrap.servers": pipeline.settings.kafka_bootstrap, "transactional.id": pipeline.consumer}
    producer = Producer(settings)
    producer.init_transactions(30)
    events = pipeline.events(count)
    for begin in range(0, count, size):
        producer.begin_transaction()
        for event in events[begin : begin + size]:
            value = encode(event).encode()
            producer.produce(pipeline.topic, value=value, key=event.key.encode(), headers=headers_of(event))
        producer.commit_transaction(30)
    pipeline.sent += events


@pytest.mark.parametrize("no_cython", ["", "1"], ids=["cython", "no cython"])
def test_the_agent_raises_before_and_after_its_batches_on_a_log_with_gaps(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, no_cython: str
) -> None:
    if no_cython:
        monkeypatch.setenv("NO_CYTHON", no_cython)
    send_in_transactions(pipeline, EVENTS, size=10)
    assert sum(log_ends(pipeline).values()) > EVENTS + 10, "no gaps: this proves nothing"
    worker = pipeline.start(entry=["tests.faults.crashing_worker"], batch_max=10)

    def all_posted_and_kafka_never_ahead() -> bool:
        mirrored = committed(pipeline, pipeline.consumer)  # before progress, which only grows
        done = progress(pipeline)
        assert all(offset <= done[partition] for partition, offset in mirrored.items()), (mirrored, done)
        return pipeline.posted() >= EVENTS

    eventually(all_posted_and_kafka_never_ahead, within_s=60, what="200 vouchers")
    pipeline.prove()
    assert pipeline.parked() == 0
    assert worker.end() == 0
    done = progress(pipeline)
    assert done == committed(pipeline, pipeline.consumer)
    # A marker at the very end is not waited for: the next record will tell.
    assert all(end - done[partition] <= 1 for partition, end in log_ends(pipeline).items())
    log = worker.log.read_text()
    assert "RuntimeError: the agent raises before" in log
    assert "RuntimeError: the agent raises after" in log


def test_told_to_end_in_the_middle_of_a_batch(pipeline: Pipeline) -> None:
    worker = pipeline.ready(pipeline.start())
    pipeline.send(pipeline.events(60))
    pipeline.all_posted()
    with pipeline.owner() as side:  # the worker meets this lock in the middle of its transaction
        side.execute(
            text("SELECT 1 FROM accounting.balance WHERE account LIKE :like FOR UPDATE"),
            {"like": f"merchant_payable:{pipeline.settings.topic_prefix}%"},
        )
        pipeline.send(pipeline.events(EVENTS))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'payrelay worker accounting' AND wait_event_type = 'Lock'"
        eventually(lambda: pipeline.count(waits), what="a worker that waits inside its transaction")
        worker.signal(signal.SIGTERM)
    assert worker.process.wait(20) == 0
    assert pipeline.posted() > 60, "the batch in hand was not finished"
    assert progress(pipeline) == committed(pipeline, pipeline.consumer)
    pipeline.start()
    pipeline.all_posted()
    pipeline.prove()


@pytest.mark.extended
@pytest.mark.timeout(600)
def test_stock_faust_loses(pipeline: Pipeline) -> None:
    """If one of these no longer loses events, Faust has been fixed: consumers/runtime/transport.py may have become simpler."""
    topic = f"{pipeline.settings.topic_prefix}stock"
    pipeline.admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(20)
    producer = Producer({"bootstrap.servers": pipeline.settings.kafka_bootstrap})
    for number in range(EVENTS):
        producer.produce(topic, value=str(number).encode(), partition=0)
    assert producer.flush(30) == 0
    cases = [
        *((pattern, "exception") for pattern in ("events", "noack", "take", "noack_take(1)", "noack_take(10)")),
        *((pattern, "SIGTERM") for pattern in ("events", "take")),
    ]
    lost, missing = {}, {}
    for case in cases:
        handled, at = run_stock(pipeline, topic, *case)
        lost[case] = len(set(range(at)) - handled)
        missing[case] = len(set(range(at, EVENTS)) - handled)
        print(f"stock Faust, {case[0]}, {case[1]}: lost {lost[case]}, committed up to {at}, waiting {missing[case]}")
    stuck = ("noack_take(10)", "exception")
    assert {case: count for case, count in lost.items() if not count and case != stuck} == {}, "no longer loses"
    assert lost[stuck] or missing[stuck], "no longer loses, nor stands still"


def run_stock(pipeline: Pipeline, topic: str, pattern: str, fault: str) -> tuple[set[int], int]:
    """Return which offsets the app was through with, and Kafka's committed one, once neither has moved for three seconds."""
    folder = Path(pipeline.folder / f"{pattern}-{fault}")
    folder.mkdir()
    group = f"{pipeline.settings.group_prefix}{pattern}-{fault}".replace("(", "").replace(")", "")
    command = [sys.executable, "-m", "tests.faults.stock_app", pattern, fault, group, topic, str(folder)]
    with (folder / "log").open("wb") as log:
        app = subprocess.Popen(
            tied([*command, pipeline.settings.kafka_bootstrap]), cwd=ROOT, env=os.environ, stdout=log, stderr=log
        )

    def state() -> tuple[set[int], int]:
        file = folder / "handled"
        handled = {int(line) for line in file.read_text().split()} if file.exists() else set()
        return handled, committed(pipeline, group).get(0, 0)

    try:
        eventually((folder / "fault").exists, within_s=60, what=f"{pattern}: {(folder / 'log').read_text()[-2000:]}")
        if fault == "SIGTERM":
            app.terminate()
            app.wait(20)
        last, still_since = state(), time.monotonic()

        def still() -> bool:
            nonlocal last, still_since
            if (now := state()) != last:
                last, still_since = now, time.monotonic()
            return time.monotonic() - still_since > 3

        eventually(still, within_s=60, what=f"{pattern} stands still")
        return last
    finally:
        app.kill()
        app.wait()
