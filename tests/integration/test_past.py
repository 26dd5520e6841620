"""A consumer that begins a topic older than its inbox: what is older is applied once, and forgotten once it is through."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from confluent_kafka import Producer
from sqlalchemy import text

from consumers.accounting.agent import PROCESSOR
from consumers.delivery.loop import Delivered, Delivery, Retried
from consumers.delivery.redeliver import PastMessage, Redelivered, redeliver
from consumers.delivery.repair import ReapplyOutcome, reapply
from consumers.delivery.retry import Drained, retry_key, skip
from ops.delivery.outcomes import Fate, fates
from ops.pipeline.past import forget_past, note_passed
from ops.rebuild.checkpoint import take_checkpoint
from outbox.clock import utc_now
from outbox.errors import Refused
from outbox.inbox import begin_log, begin_topic
from outbox.parking import Act, Action, Cause
from outbox.settings import Settings
from schemas.codec import decode, encode
from schemas.events import PaymentSettled
from tests.factories import settled
from tests.integration.test_delivery import Stretch, record_of
from tests.integration.test_parking import Lot
from tests.pipeline import Pipeline, engine_of, fresh_id, headers_of
from tests.waiting import eventually

LONG_AGO_MS = 1_577_836_800_000
"""January 2020."""


def id_of_long_ago(number: int = 0) -> UUID:
    return UUID(int=(LONG_AGO_MS + number << 80) | fresh_id().int & (1 << 80) - 1)


def send(pipeline: Pipeline, events: Sequence[tuple[UUID, PaymentSettled]]) -> None:
    producer = Producer({"bootstrap.servers": pipeline.settings.kafka_bootstrap, "acks": "all"})
    for identity, event in events:
        headers = dict(headers_of(event)) | {"ce_id": str(identity).encode()}
        producer.produce(pipeline.topic, value=encode(event), key=event.key, headers=list(headers.items()))
    assert producer.flush(30) == 0


def begun(stretch: Stretch) -> Any:
    [row] = stretch.rows("SELECT * FROM topic_begun WHERE consumer = :consumer")
    return row


def test_workers_of_a_new_consumer_apply_what_is_older_than_their_inbox_once(pipeline: Pipeline) -> None:
    """The log holds each old event twice, and again once its topic was made again; the consumer is through after that."""
    old = [(id_of_long_ago(number), event) for number, event in enumerate(pipeline.events(40))]
    pipeline.sent += [event for _, event in old]
    new = [(fresh_id(), event) for event in pipeline.events(5)]
    pipeline.sent += [event for _, event in new]
    send(pipeline, [*old, *old[:20], *new, *old[20:]])
    for worker in (pipeline.start(), pipeline.start()):
        pipeline.ready(worker)
    pipeline.all_posted(within_s=30)
    pipeline.prove()

    pipeline.delete_topic()
    pipeline.make_topic()
    more = [(fresh_id(), event) for event in pipeline.events(5)]
    pipeline.sent += [event for _, event in more]
    send(pipeline, [*old, *more, *old])
    pipeline.all_posted()
    read = "SELECT max(read) FROM (SELECT sum(next_offset) AS read FROM accounting.progress WHERE consumer = :consumer AND topic = :topic GROUP BY topic_id ORDER BY min(updated_at) DESC LIMIT 1) AS newest"
    eventually(lambda: pipeline.count(read, topic=pipeline.topic) == 85, what="all of the new log is read")
    pipeline.prove()
    assert pipeline.parked() == 0
    behind = "SELECT count(*) FROM accounting.inbox_behind WHERE consumer = :consumer"
    assert pipeline.count(behind) == 40

    def passed(days: int) -> bool:
        noted = note_passed(pipeline.settings, now=utc_now() + timedelta(days=days))
        return f"{pipeline.consumer} {pipeline.topic}" in noted

    assert not passed(0), "an outbox may still hold what is older, and have it published"
    assert passed(pipeline.settings.outbox_days + 1)
    forget_past(pipeline.settings)
    assert pipeline.count(behind) == 40, "workers go by what they have read for a while"
    with pipeline.owner() as owner:
        owner.execute(
            text("UPDATE accounting.topic_begun SET passed_at = passed_at - interval '1 h' WHERE consumer = :c"),
            {"c": pipeline.consumer},
        )
    assert forget_past(pipeline.settings)["accounting.inbox_behind"] >= 40
    assert pipeline.count(behind) == 0


def test_a_consumer_that_had_a_position_before_keeps_to_its_horizon(settings: Settings, prefix: str) -> None:
    stretch = Stretch(settings, prefix)
    with stretch.engine.begin() as connection:
        begin_topic(connection, stretch.consumer, "accounting", stretch.logs[0].topic)
    assert begun(stretch).passed_at is not None
    old = record_of(0, settled(prefix=prefix), ce_id=str(id_of_long_ago()).encode())
    records = [old, record_of(1, settled(prefix=prefix, number=2))]
    assert stretch.deliver(stretch.slice_of(records)) == [Delivered(parked=1)]
    [parked] = stretch.rows("SELECT cause FROM parked WHERE consumer = :consumer")
    assert parked.cause == "BEHIND_HORIZON"


@pytest.fixture
def lot(settings: Settings, prefix: str) -> Lot:
    """A consumer that has just begun its topic for the first time."""
    made = Lot(settings, prefix)
    made.settings = settings
    with engine_of(settings, "owner").begin() as owner:
        owner.execute(text("DELETE FROM accounting.progress WHERE consumer = :c"), {"c": made.consumer})
    with made.engine.begin() as connection:
        for log in made.logs:
            begin_topic(connection, made.consumer, "accounting", log.topic)
            begin_log(connection, made.consumer, log, next_offset=0)
    assert begun(made).passed_at is None
    return made


def old_record(lot: Lot, offset: int, identity: UUID, number: int = 1) -> Any:
    return record_of(offset, settled(prefix=lot.prefix, number=number), ce_id=str(identity).encode())


def test_an_old_event_is_known_to_everybody_who_asks_until_it_is_forgotten(lot: Lot, settings: Settings) -> None:
    identity, other = id_of_long_ago(), fresh_id()
    slices = [lot.slice_of([old_record(lot, 0, identity), lot.event(1, 1, 2)]),
              lot.slice_of([old_record(lot, 2, identity), record_of(3, settled(prefix=lot.prefix, number=3), ce_id=str(other).encode())])]  # fmt: skip
    for slice_ in slices:
        for _ in range(2):
            assert lot.deliver(slice_) == [Delivered()]
    assert [key for key, _ in lot.applied].count(lot.key()) == 1
    with engine_of(settings, "ops").connect() as connection:
        assert fates(connection, "accounting", lot.consumer, [identity, other]) == dict.fromkeys(
            (identity, other), Fate.APPLIED
        )
    record = old_record(lot, 0, identity)
    again = PastMessage(log=lot.logs[0], offset=0, key=record.key, headers=record.headers, value=record.value)
    delivery = Delivery(lot.delivery.processor, lot.engine, consumer=lot.consumer, clock=utc_now)
    assert redeliver(lot.engine, delivery, [again]) == Redelivered(known=1)
    envelope = decode(dict(record.headers), record.value)
    assert reapply(lot.engine, lot.delivery.processor, lot.consumer, envelope).outcome is ReapplyOutcome.APPLIED
    with pytest.raises(Refused, match="has yet to read what is older than its inbox"):
        take_checkpoint(settings, lot.consumer, processor=PROCESSOR)


def test_an_old_event_that_is_parked_can_be_retried_or_skipped_and_holds_its_consumer(
    lot: Lot, settings: Settings
) -> None:
    lot.rejected = {lot.key(1), lot.key(2)}
    first, second = id_of_long_ago(1), id_of_long_ago(2)
    records = [old_record(lot, 0, first, 1), old_record(lot, 1, second, 2), lot.event(2, 1, 3), lot.event(3, 1, 4)]
    assert lot.deliver(lot.slice_of(records)) == [Delivered(parked=2)]
    assert [row.cause for row in lot.parked()] == ["REJECTED", "REJECTED"]
    lot.rejected = set()

    delivery = Delivery(lot.delivery.processor, lot.engine, consumer=lot.consumer, clock=utc_now)
    act = Act(action=Action.RETRY, actor="test")
    assert retry_key(lot.engine, delivery, lot.key(1).encode(), act) == Drained(applied=1)
    [left] = lot.parked()
    assert skip(lot.engine, lot.consumer, left.id, Act(action=Action.SKIP, actor="test", reason="by hand"))
    repeats = [old_record(lot, 4, first, 1), old_record(lot, 5, second, 2)]
    assert lot.deliver(lot.slice_of(repeats)) == [Delivered()]
    assert [key for key, _ in lot.applied].count(lot.key(1)) == 1
    assert lot.key(2) not in [key for key, _ in lot.applied], "skipped: nor is a repeat applied"

    with engine_of(settings, "owner").begin() as owner:
        owner.execute(
            text("UPDATE accounting.topic_begun SET passed_at = clock_timestamp() WHERE consumer = :c"),
            {"c": lot.consumer},
        )
    later = Delivery(lot.delivery.processor, lot.engine, consumer=lot.consumer, clock=utc_now)
    with lot.engine.connect() as connection:
        retried = later.retry(connection, lot.logs[0], old_record(lot, 6, id_of_long_ago(3), 5))
    assert (retried.applied, retried.cause) == (Retried(applied=False).applied, Cause.BEHIND_HORIZON)
