"""A live worker and retries at once: nothing lost, doubled or out of order per key."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Producer
from sqlalchemy import text

from consumers.delivery.loop import Delivery
from consumers.delivery.retry import retry_key, settle_lot
from outbox.clock import utc_now
from outbox.parking import Act, Action
from schemas.codec import VERSION, encode
from tests.factories import settled
from tests.faults.ordering_worker import ORDERING
from tests.pipeline import Pipeline, engine_of, headers_of
from tests.waiting import eventually

KEYS = 8
REJECTED = 4
VERSIONS = 600


class Stream:
    """Events of a few keys, their versions counting up."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.events = [settled(prefix=pipeline.settings.topic_prefix, number=number) for number in range(KEYS)]
        self.sent = 0
        self._producer = Producer({"bootstrap.servers": pipeline.settings.kafka_bootstrap, "acks": "all"})

    def send(self, versions: int) -> None:
        """The next versions of each key are on the topic, and every fifth comes twice."""
        for version in range(self.sent + 1, self.sent + versions + 1):
            for event in self.events:
                headers = dict(headers_of(event)) | {VERSION: str(version).encode()}
                for _ in range(2 if version % 5 == 0 else 1):
                    self._producer.produce(
                        self.pipeline.topic, value=encode(event), key=event.key, headers=list(headers.items())
                    )
        assert self._producer.flush(30) == 0
        self.sent += versions


def test_events_of_a_parked_key_stream_in_while_it_is_retried(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejecting = tmp_path / "rejecting"
    monkeypatch.setenv("REJECTING", str(rejecting))
    with pipeline.owner() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS accounting.applied_order "
                                "(at bigint GENERATED ALWAYS AS IDENTITY, key text, version bigint)"))  # fmt: skip
        connection.execute(text("GRANT INSERT, SELECT ON accounting.applied_order TO accounting"))
    stream = Stream(pipeline)
    keys = [event.key for event in stream.events]
    rejecting.write_text("\n".join(keys[:REJECTED]))
    worker = pipeline.ready(pipeline.start(entry=("tests.faults.ordering_worker",), batch_max=20))
    stream.send(20)
    eventually(lambda: pipeline.parked() == 20 * REJECTED, within_s=60, what="the rejected keys are parked whole")

    rejecting.unlink()
    engine = engine_of(pipeline.settings, "accounting")
    delivery = Delivery(ORDERING, engine, consumer=pipeline.consumer, clock=utc_now)
    act = Act(action=Action.RETRY, actor="test")
    drained = rounds = 0
    while stream.sent < VERSIONS or pipeline.parked():
        if stream.sent < VERSIONS:
            stream.send(20)
        if rounds == 10:  # and again, in the middle of it
            rejecting.write_text("\n".join(keys[:REJECTED]))
            stream.send(20)
            eventually(pipeline.parked, within_s=30, what="the keys are parked again")
            rejecting.unlink()
        drained += sum(retry_key(engine, delivery, key.encode(), act).applied for key in keys[:REJECTED])
        settle_lot(engine, pipeline.consumer)
        rounds += 1
        assert rounds < 500
    wanted = KEYS * VERSIONS
    eventually(lambda: applied(pipeline) >= wanted, within_s=60, what="everything is applied")

    with engine.connect() as connection:
        for key in keys:
            order = connection.execute(
                text("SELECT version FROM applied_order WHERE key = :key ORDER BY at"), {"key": key}
            ).scalars()
            assert list(order) == list(range(1, VERSIONS + 1)), f"{key}: lost, doubled or out of order"
    assert drained > 20 * REJECTED, "live events were parked behind while the keys were drained"
    assert pipeline.count("SELECT count(*) FROM accounting.progress WHERE consumer = :consumer AND has_parked") == 0
    assert worker.process.poll() is None


def applied(pipeline: Pipeline) -> int:
    return pipeline.count("SELECT count(*) FROM accounting.applied_order WHERE key LIKE :like")
