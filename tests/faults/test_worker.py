"""Workers killed, frozen, broken, poisoned; logs made again, grown, moved: lost 0, doubled 0, ledger balanced."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as AIOKafkaPartition
from aiokafka.errors import CommitFailedError
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from sqlalchemy import text

from consumers.runtime.aiokafka_patches import commit_as_member
from consumers.runtime.transport import FAILED
from outbox.settings import Settings
from tests.pipeline import Pipeline, engine_of
from tests.waiting import eventually


def test_every_event_delivered_twice_is_applied_once(pipeline: Pipeline) -> None:
    pipeline.ready(pipeline.start())
    events = pipeline.events(200)
    pipeline.send(events[:100], twice=True)
    pipeline.send(events[100:])
    pipeline.all_posted()
    pipeline.prove()
    assert pipeline.workers[0].end() == 0


def test_a_worker_killed_in_the_middle_of_2000_events(pipeline: Pipeline) -> None:
    pipeline.send(pipeline.events(2_000))
    for goal in (100, 700, 1_300):
        worker = pipeline.start(batch_max=20, session_timeout_s=3.0)
        eventually(lambda goal=goal: pipeline.posted() >= goal, what=f"{goal} vouchers")
        worker.kill()
    assert pipeline.posted() < 2_000, "killed too late to prove anything"
    pipeline.start()
    pipeline.all_posted()
    pipeline.prove()


def test_a_worker_frozen_inside_its_transaction_does_not_hold_up_its_siblings(pipeline: Pipeline) -> None:
    pipeline.send(pipeline.events(60))
    pipeline.ready(pipeline.start())
    pipeline.all_posted()
    frozen = pipeline.workers[0]
    with pipeline.owner() as side:  # the worker meets this lock in the middle of its transaction
        side.execute(
            text("SELECT 1 FROM accounting.balance WHERE account LIKE :like FOR UPDATE"),
            {"like": f"merchant_payable:{pipeline.settings.topic_prefix}%"},
        )
        pipeline.send(pipeline.events(300))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'payrelay worker accounting' AND wait_event_type = 'Lock'"
        eventually(lambda: pipeline.count(waits), what="a worker that waits inside its transaction")
        frozen.signal(signal.SIGSTOP)
    begun = time.monotonic()
    idle = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'payrelay worker accounting' AND state LIKE 'idle in transaction%'"
    eventually(lambda: pipeline.count(idle), within_s=5, what="a transaction held open by the frozen worker")
    pipeline.start()
    eventually(lambda: pipeline.posted() > 60, within_s=20, what="siblings moving again")
    moved_s = time.monotonic() - begun
    assert moved_s <= 15, f"siblings moved after {moved_s:.1f} s"
    pipeline.all_posted()
    frozen.signal(signal.SIGCONT)  # thawed: what it still holds is stale
    pipeline.send(pipeline.events(100))
    pipeline.all_posted()
    pipeline.prove()
    assert frozen.process.poll() is None, "the thawed worker should have gone on"


def test_one_poison_event_among_1000_is_parked_alone_and_its_key_behind_it(pipeline: Pipeline) -> None:
    pipeline.ready(pipeline.start())
    good = pipeline.events(999)
    [poison] = [event for event in pipeline.events(1_000) if event not in good]
    pipeline.send(good[:500])
    pipeline.send([poison], poison=True)
    pipeline.send(good[500:])
    pipeline.all_posted()
    eventually(lambda: pipeline.parked() == 1, what="the poison parked")
    pipeline.prove()
    later = [poison]
    producer_sent = list(pipeline.sent)
    pipeline.send(later)  # a good event of the parked key waits behind it
    pipeline.sent[:] = producer_sent
    eventually(lambda: pipeline.parked() == 2, what="the later event of the key parked behind it")
    with engine_of(pipeline.settings, "ops").connect() as connection:
        causes = connection.execute(
            text("SELECT cause FROM accounting.parked WHERE consumer = :consumer ORDER BY \"offset\""),
            {"consumer": pipeline.consumer},
        ).scalars().all()  # fmt: skip
    assert causes == ["UNDECODABLE", "BEHIND_PARKED"]
    pipeline.prove()


def test_a_handler_broken_for_all_events_parks_nothing_and_a_fix_heals_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = pipeline.folder / "broken"
    broken.touch()
    monkeypatch.setenv("BROKEN", str(broken))
    worker = pipeline.start(entry=["tests.faults.broken_worker"])
    pipeline.ready(worker)
    pipeline.send(pipeline.events(500))
    eventually(lambda: "braked" in worker.condition(), what="the brake")
    group = pipeline.admin.describe_consumer_groups([pipeline.consumer])[pipeline.consumer].result(20)
    assert len(group.members) == 1, "a braked worker stays in its group"
    assert (pipeline.parked(), pipeline.posted()) == (0, 0)
    broken.unlink()
    pipeline.all_posted()
    eventually(lambda: json.loads(worker.condition()) == {"accounting": "running"}, what="the brake let go")
    assert pipeline.parked() == 0
    pipeline.prove()


def test_a_worker_whose_kafka_client_has_ended_inside_ends_and_its_successor_goes_on(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = pipeline.folder / "deaf"
    monkeypatch.setenv("DEAF", str(deaf))
    worker = pipeline.ready(pipeline.start(entry=["tests.faults.deaf_worker"], session_timeout_s=3.0))
    deaf.touch()
    assert worker.process.wait(20) == FAILED
    assert "coordination has ended" in worker.log.read_text()
    deaf.unlink()
    pipeline.send(pipeline.events(100))
    pipeline.start()
    pipeline.all_posted()
    pipeline.prove()


def test_a_consumer_that_its_group_does_not_know_commits_nothing(pipeline: Pipeline) -> None:
    """As one that thaws after its siblings have ended: the group is empty, and the broker would take its offset."""

    async def commit(offset: int, *, bound: bool) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=pipeline.settings.kafka_bootstrap, group_id=pipeline.consumer, enable_auto_commit=False
        )
        await consumer.start()
        try:
            consumer.assign([place])
            if bound:
                commit_as_member(consumer)
            await consumer.commit({place: offset})
        finally:
            await consumer.stop()

    def committed() -> int:
        answers = pipeline.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(pipeline.consumer)])
        [position] = answers[pipeline.consumer].result(20).topic_partitions
        return int(position.offset)

    place = AIOKafkaPartition(pipeline.topic, 0)
    asyncio.run(commit(7, bound=False))
    assert committed() == 7, "the broker takes an offset from anybody"
    with pytest.raises(CommitFailedError):
        asyncio.run(commit(3, bound=True))
    assert committed() == 7


def test_a_database_restored_under_a_running_worker_is_filled_again_though_no_record_comes(
    settings: Settings, prefix: str, tmp_path: Path
) -> None:
    """The worker has everything behind it in memory; in the database half the partitions are as they were at their beginning."""
    own = settings.model_copy(update={"topic_prefix": prefix, "group_prefix": prefix, "metadata_max_age_s": 1.0})
    pipeline = Pipeline(own, tmp_path, name="points")
    like = {"like": f"{prefix}%"}
    entries = "SELECT count(*) FROM points.entry WHERE payment_no LIKE :like"
    sums = """SELECT count(*) FROM points.account WHERE account_no LIKE :like AND balance IS DISTINCT FROM
              (SELECT sum(points) FROM points.entry WHERE entry.account_no = account.account_no)"""
    pipeline.make_topic()
    try:
        worker = pipeline.ready(pipeline.start())
        pipeline.send(pipeline.events(90), twice=True)
        eventually(lambda: pipeline.count(entries) == 90, what="90 entries of points")
        with pipeline.owner() as owner:
            lost = owner.execute(
                text("""DELETE FROM points.inbox WHERE consumer = :consumer AND topic LIKE :like AND partition < 2
                        RETURNING event_id"""),
                {"consumer": pipeline.consumer, **like},
            ).scalars().all()  # fmt: skip
            for statement in (
                "DELETE FROM points.entry WHERE payment_no LIKE :like AND event_id = ANY(:lost)",
                """UPDATE points.account SET balance = (SELECT coalesce(sum(points), 0) FROM points.entry
                                                        WHERE entry.account_no = account.account_no)
                   WHERE account_no LIKE :like""",
                "UPDATE points.progress SET next_offset = 0 WHERE topic LIKE :like AND partition = 0",
                "DELETE FROM points.progress WHERE topic LIKE :like AND partition = 1",
            ):
                owner.execute(text(statement), {**like, "lost": lost})
        assert 0 < len(lost) < 90
        assert pipeline.count(entries) == 90 - len(lost)
        eventually(lambda: pipeline.count(entries) == 90, within_s=15, what="what was lost is applied again")
        assert pipeline.count(sums) == 0
        assert "going on there" in worker.log.read_text()
        pipeline.send(pipeline.events(10))
        eventually(lambda: pipeline.count(entries) == 100, what="what comes next")
        assert (pipeline.count(sums), worker.end()) == (0, 0)
    finally:
        pipeline.close()


def test_a_log_that_has_lost_its_end_is_read_on_from_there(pipeline: Pipeline) -> None:
    """As after a restore of the broker: what is appended next lies below the old positions, and is new."""
    pipeline.send(pipeline.events(100))
    pipeline.ready(pipeline.start())
    pipeline.all_posted()
    assert pipeline.workers[0].end() == 0
    with pipeline.owner() as owner:
        owner.execute(
            text(
                "UPDATE accounting.progress SET next_offset = next_offset + 10 WHERE consumer = :consumer AND topic = :topic"
            ),
            {"consumer": pipeline.consumer, "topic": pipeline.topic},
        )
    worker = pipeline.ready(pipeline.start())
    pipeline.send(pipeline.events(200)[100:])
    pipeline.all_posted()
    pipeline.prove()
    assert "it has lost messages" in worker.log.read_text()


def test_an_end_seen_before_a_freeze_is_not_taken_for_a_loss(pipeline: Pipeline) -> None:
    pipeline.send(pipeline.events(100))
    pipeline.ready(pipeline.start())
    pipeline.all_posted()
    assert pipeline.workers[0].end() == 0
    worker = pipeline.ready(pipeline.start(entry=["tests.faults.thawed_worker"]))
    pipeline.send(pipeline.events(200)[100:])
    pipeline.all_posted()
    pipeline.prove()
    assert "it has lost messages" not in worker.log.read_text()


def test_a_topic_deleted_and_made_again_is_read_from_its_beginning(pipeline: Pipeline) -> None:
    pipeline.ready(pipeline.start())
    pipeline.send(pipeline.events(200))
    pipeline.all_posted()
    pipeline.delete_topic()
    pipeline.make_topic()
    # Longer than the old log, so that the old positions exist in the new one too.
    pipeline.send(pipeline.events(400))
    pipeline.all_posted()
    pipeline.prove()


def test_partitions_added_under_a_running_worker_are_read_from_their_beginning(pipeline: Pipeline) -> None:
    pipeline.ready(pipeline.start())
    pipeline.send(pipeline.events(100))
    pipeline.add_partitions(9)
    pipeline.send(pipeline.events(200))
    pipeline.all_posted()
    pipeline.prove()
    partitions = pipeline.count(
        "SELECT count(*) FROM accounting.progress WHERE consumer = :consumer AND topic = :topic", topic=pipeline.topic
    )
    assert partitions == 9


@pytest.mark.parametrize("moved_to", [0, "end"])
def test_offsets_moved_by_somebody_elses_tool_are_not_followed(pipeline: Pipeline, moved_to: int | str) -> None:
    pipeline.ready(pipeline.start())
    pipeline.send(pipeline.events(100))
    pipeline.all_posted()
    assert pipeline.workers[0].end() == 0
    pipeline.send(pipeline.events(100))
    partitions = range(len(pipeline.admin.list_topics(pipeline.topic, timeout=10).topics[pipeline.topic].partitions))
    target = 0 if moved_to == 0 else 1_000_000
    offsets = [TopicPartition(pipeline.topic, partition, target) for partition in partitions]
    moved = pipeline.admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(pipeline.consumer, offsets)])
    moved[pipeline.consumer].result(20)
    worker = pipeline.ready(pipeline.start())
    pipeline.all_posted()
    pipeline.prove()
    assert "is not ours" in worker.log.read_text()


def test_a_worker_told_to_end_leaves_its_group_at_once_with_its_batch_committed_and_mirrored(
    pipeline: Pipeline,
) -> None:
    pipeline.send(pipeline.events(1_000))
    worker = pipeline.start(batch_max=20)
    eventually(lambda: pipeline.posted() >= 100, what="100 vouchers")
    assert worker.end() == 0
    group = pipeline.admin.describe_consumer_groups([pipeline.consumer])[pipeline.consumer].result(20)
    assert not group.members
    request = [ConsumerGroupTopicPartitions(pipeline.consumer)]
    committed = pipeline.admin.list_consumer_group_offsets(request)[pipeline.consumer].result(20)
    mirrored = {
        (position.topic, position.partition): position.offset
        for position in committed.topic_partitions
        if position.offset > 0
    }
    with engine_of(pipeline.settings, "ops").connect() as connection:
        rows = connection.execute(
            text("SELECT topic, partition, next_offset FROM accounting.progress WHERE consumer = :consumer AND next_offset > 0"),
            {"consumer": pipeline.consumer},
        ).all()  # fmt: skip
    assert {(row.topic, row.partition): row.next_offset for row in rows} == mirrored
    pipeline.start()
    pipeline.all_posted()
    pipeline.prove()
