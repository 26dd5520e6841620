"""`payrelay offsets` on groups of ours: progress and Kafka move together, and a plan counts the events between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Producer
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from consumers.delivery.loop import Delivery
from consumers.delivery.messages import Slice
from consumers.delivery.processor import Processor
from ops.cli.main import app
from ops.kafka.groups import commit, committed
from ops.kafka.reader import read
from ops.offsets.ours import OurConsumer, move_progress, note_mirror, ours
from ops.stack.control import stopped
from outbox.clock import utc_now
from outbox.errors import Refused
from outbox.inbox import begin_log
from schemas.codec import encode
from tests.factories import settled
from tests.foreign import Command
from tests.foreign import ours as environment_of_ours
from tests.pipeline import ROOT, NotUtf8, Pipeline, engine_of, environment, fresh_id, headers_of, send_batch
from tests.providers import Stack
from tests.waiting import eventually

YES = ("--execute", "--yes")


class Operated:
    """A pipeline whose records lie where the test puts them, applied without a worker up to where it says."""

    def __init__(self, pipeline: Pipeline, processor: str = "accounting") -> None:
        self.pipeline, self.settings = pipeline, pipeline.settings
        self.group = self.settings.group_prefix + processor
        self.ids: list[str] = []

    @property
    def known(self) -> OurConsumer:
        consumer = ours(self.settings, self.group)
        assert consumer is not None
        return consumer

    @property
    def processor(self) -> Processor:
        return self.known.processor

    def send(self, count: int, *, unreadable: Sequence[int] = ()) -> None:
        """Events 0 to `count` are on the topic, each in the partition of its number; some with a body that is none."""
        producer = Producer({"bootstrap.servers": self.settings.kafka_bootstrap, "linger.ms": 5, "acks": "all"})
        for number, event in enumerate(self.pipeline.events(count)):
            headers = headers_of(event)
            value = b"{}" if number in unreadable else encode(event).encode()
            producer.produce(
                self.pipeline.topic, value=value, key=event.key.encode(), headers=headers, partition=number % 3
            )
            self.pipeline.sent.append(event)
            self.ids.append(dict(headers)["ce_id"].decode())
        assert producer.flush(30) == 0

    def apply(self, *stops: int) -> None:
        """Each partition of the topic is applied up to its stop, as its worker would have, and Kafka says so."""
        known = self.known
        engine = engine_of(self.settings, known.processor.service)
        delivery = Delivery(known.processor, engine, consumer=self.group, clock=utc_now)
        spans = {(self.pipeline.topic, number): range(stop) for number, stop in enumerate(stops)}
        records: dict[Any, list[Any]] = {place: [] for place in spans}
        for message in read(self.settings, spans):
            records[message.topic(), message.partition()].append(
                SimpleNamespace(
                    offset=message.offset(), key=message.key(), value=message.value(), headers=message.headers()
                )
            )
        with engine.begin() as connection:
            for log in known.logs.values():
                begin_log(connection, self.group, log, next_offset=0)
        for place, span in spans.items():
            delivery.deliver([Slice(log=known.logs[place], start=0, end=span.stop, messages=records[place])])
        self.mirror()

    def mirror(self) -> None:
        known = self.known
        commit(self.settings, self.group, known.progress)
        note_mirror(self.settings, self.group, known, known.progress)

    def progress(self) -> list[int]:
        known = self.known.progress
        return [known[self.pipeline.topic, number] for number in range(3)]

    def kafka(self) -> list[int | None]:
        committed_offsets = committed(self.settings, self.group)
        return [committed_offsets.get((self.pipeline.topic, number)) for number in range(3)]

    def mirrored(self) -> list[int]:
        with engine_of(self.settings, "ops").connect() as connection:
            rows = connection.execute(
                text(f"""SELECT mirrored_offset FROM {self.processor.service}.progress
                         WHERE consumer = :consumer AND topic = :topic ORDER BY partition"""),
                {"consumer": self.group, "topic": self.pipeline.topic},
            )
            return list(rows.scalars())


@pytest.fixture
def operated(pipeline: Pipeline) -> Operated:
    return Operated(pipeline)


@pytest.fixture
def offsets(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(monkeypatch, environment_of_ours(pipeline.settings, tmp_path))


def on(operated: Operated) -> tuple[str, ...]:
    return ("--topic", operated.pipeline.topic)


COUNTS = ("new", "records", "applied", "not_applied", "parked")


def test_a_plan_tells_what_has_become_of_the_events_between_and_what_would(
    operated: Operated, offsets: Command
) -> None:
    operated.send(30, unreadable=[0])
    operated.apply(10, 7, 4)
    back = offsets("reset", operated.group, "--to-earliest", *on(operated))
    assert back.of(*COUNTS) == [(0, 10, 9, 0, 1), (0, 7, 7, 0, 0), (0, 4, 4, 0, 0)]
    assert "redelivers 21 messages: 20 are already applied and will be dropped, 0 will be applied" in back.said
    assert "1 are parked" in back.said
    ahead = offsets("reset", operated.group, "--to-latest", *on(operated))
    assert ahead.of(*COUNTS) == [(10, 0, 0, 0, 0), (10, 3, 0, 3, 0), (10, 6, 0, 6, 0)]
    assert "SKIPS 9 messages: 0 are applied" in ahead.said
    assert "9 OF THEM WERE NEVER APPLIED" in ahead.said
    assert "payrelay replay redeliver" in ahead.said
    bounded = offsets("reset", operated.group, "--to-latest", *on(operated), "--count-limit", 8)
    assert "9 messages lie between old and new, more than --count-limit" in bounded.said
    assert "may never have been applied" in bounded.said
    assert "applied" not in bounded.rows[0]
    peeked = offsets("peek", operated.group, *on(operated), "-p", "1", "--before", 1, "--after", 1).rows
    assert [(row["offset"], row["position"], row["fate"]) for row in peeked] == [
        (6, "", "APPLIED"),
        (7, "next", "MISSING"),
    ]
    assert peeked[0]["event_id"] == operated.ids[19]
    assert (
        offsets("peek", operated.group, *on(operated), "-p", "0", "--before", 10, "--after", 0).rows[0]["fate"]
        == "PARKED"
    )


def test_what_is_parked_under_a_foreign_key_is_parked_for_peek_too(operated: Operated, offsets: Command) -> None:
    operated.send(3)
    event = operated.pipeline.events(1)[0]
    producer = Producer({"bootstrap.servers": operated.settings.kafka_bootstrap})
    producer.produce(
        operated.pipeline.topic, value=encode(event), key="another", headers=headers_of(event), partition=0
    )
    assert producer.flush(30) == 0
    operated.apply(2, 1, 1)
    rows = offsets("peek", operated.group, *on(operated), "-p", "0", "--before", 2).rows
    assert [row["fate"] for row in rows] == ["APPLIED", "PARKED"]


def test_a_way_back_applies_an_event_once_and_nothing_past_what_is_parked_of_its_key(
    operated: Operated, offsets: Command
) -> None:
    operated.send(9, unreadable=[0])
    operated.apply(2, 0, 0)
    parked, _, event = list(read(operated.settings, {(operated.pipeline.topic, 0): range(3)}))
    producer = Producer({"bootstrap.servers": operated.settings.kafka_bootstrap, "acks": "all"})
    for key in (parked.key(), event.key()):
        producer.produce(operated.pipeline.topic, value=event.value(), key=key, headers=event.headers(), partition=0)
        assert producer.flush(30) == 0
    ahead = offsets("reset", operated.group, "--to-latest", *on(operated), *YES)
    assert ahead.of(*COUNTS)[0] == (5, 3, 0, 3, 0), "skipped, none of them is applied"
    back = offsets("reset", operated.group, "--to-earliest", *on(operated))
    assert back.of(*COUNTS)[0] == (0, 5, 2, 1, 2)


def test_a_header_whose_name_is_no_utf8_is_parked_and_no_reader_stumbles(
    pipeline: Pipeline, offsets: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka takes such a name, whether the batch is compressed or not; the Python clients do not."""
    foreign = settled(prefix=f"{pipeline.settings.topic_prefix}x")
    whole = (foreign.key.encode(), encode(foreign).encode(), [*headers_of(foreign), (NotUtf8("tr\xff\xfe"), b"x")])
    for partition, codec in enumerate((0, 3, 4)):
        batch = [whole, (b"another", None, [(NotUtf8("\xc3("), None)])] if codec != 4 else [whole]
        send_batch(pipeline.settings, pipeline.topic, partition, batch, codec=codec)
    pipeline.send(pipeline.events(30))
    pipeline.ready(pipeline.start())
    pipeline.all_posted(within_s=20)
    eventually(lambda: pipeline.parked() == 5, what="the five records parked")
    with engine_of(pipeline.settings, "ops").connect() as connection:
        [kept] = connection.execute(
            text("""SELECT headers, value, error FROM accounting.parked
                    WHERE consumer = :consumer AND partition = 1 AND "offset" = 0"""),
            {"consumer": pipeline.consumer},
        )  # fmt: skip
    assert (kept.value, kept.headers["tr\\xff\\xfe"]) == (whole[1], "x"), "nothing of it is lost"
    assert "no UTF-8" in kept.error

    peeked = offsets("peek", pipeline.consumer, "--topic", pipeline.topic, "--before", 100).rows
    assert [row["fate"] for row in peeked if row["event_id"] == ""] == ["PARKED"] * 5
    reset = offsets("reset", pipeline.consumer, "--topic", pipeline.topic, "--to-earliest")
    assert sum(row["parked"] for row in reset.rows) == 5
    for name, value in environment(pipeline.settings).items():
        monkeypatch.setenv(name, value)
    begin = (utc_now() - timedelta(hours=1)).isoformat()
    run = CliRunner().invoke(
        app, ["replay", "redeliver", "--consumer", pipeline.consumer, "--from", begin, "-o", "json"]
    )
    assert sum(row["unreadable"] for row in json.loads(run.stdout)) == 5
    retried = CliRunner().invoke(app, ["parked", "retry", "--consumer", pipeline.consumer, "--execute", "--yes"])
    assert "no UTF-8" in retried.output, "as it was read, so it is read from the parking lot"
    assert pipeline.parked() == 5
    pipeline.prove()


def test_events_that_would_be_told_to_the_outside_are_counted(pipeline: Pipeline, offsets: Command) -> None:
    operated = Operated(pipeline, "notification")
    operated.send(9)
    operated.apply(2, 0, 0)
    with engine_of(operated.settings, "owner").begin() as connection:
        connection.execute(text("DELETE FROM notification.inbox WHERE consumer = :group"), {"group": operated.group})
    back = offsets("reset", operated.group, "--to-earliest", *on(operated))
    assert "2 will be applied (2 of them notify a receiver)" in back.said


def test_progress_and_kafka_move_together_and_are_moved_back(operated: Operated, offsets: Command) -> None:
    operated.send(30)
    operated.apply(10, 7, 4)
    for how, expected in ((("--shift-by", -3), [7, 4, 1]), (("--to-offset", 5), [5, 5, 5])):
        done = offsets("reset", operated.group, *how, *on(operated), *YES)
        assert done.code == 0, done.said
        assert (operated.progress(), operated.kafka(), operated.mirrored()) == (expected, expected, expected)
    assert offsets("undo", operated.group, *YES).code == 0
    assert (operated.progress(), operated.kafka()) == ([7, 4, 1], [7, 4, 1])
    described = offsets("describe", operated.group, *on(operated)).rows
    assert described["ours"] == "accounting"
    assert [(row["progress"], row["committed"], row["lag"]) for row in described["partitions"]] == [
        (7, 7, 3), (4, 4, 6), (1, 1, 9)]  # fmt: skip
    assert (
        "does not read payment.order"
        in offsets("reset", operated.group, "--to-latest", "--topic", "payment.order").said
    )


def test_an_order_and_an_event_are_positions(operated: Operated, offsets: Command) -> None:
    operated.send(30)
    operated.apply(10, 10, 10)
    for number in (0, 7, 29):
        expected = [(number % 3, number // 3)]
        assert offsets("reset", operated.group, "--to-event", operated.ids[number]).of("partition", "new") == expected
        order = operated.pipeline.sent[number].order_no
        assert offsets("reset", operated.group, "--to-order", order).of("partition", "new") == expected
    for wrong, says in (
        (("--to-event", fresh_id()), "is on none of"), (("--to-event", "7"), "is no event id"),
        (("--to-order", "nosuch"), "no event of order"),
    ):  # fmt: skip
        refused = offsets("reset", operated.group, *wrong)
        assert (refused.code, says in refused.said) == (2, True)
    assert "no group of payrelay" in offsets("reset", "somebody", "--to-order", "O1").said


def test_what_another_tool_committed_is_not_ours_until_it_is_adopted(operated: Operated, offsets: Command) -> None:
    operated.send(30)
    operated.apply(5, 5, 5)
    commit(operated.settings, operated.group, {(operated.pipeline.topic, 0): 9})
    described = offsets("describe", operated.group, *on(operated)).rows["partitions"]
    assert [described[0][name] for name in ("progress", "committed", "lag")] == [5, 9, 5]
    assert "not ours: progress counts" in described[0]["note"]
    plan = offsets("reset", operated.group, "--from-kafka", *on(operated))
    assert plan.of("old", "new") == [(5, 9), (5, 5), (5, 5)]
    assert "4 OF THEM WERE NEVER APPLIED" in plan.said
    assert offsets("reset", operated.group, "--from-kafka", *on(operated), *YES).code == 0
    assert (operated.progress(), operated.mirrored()) == ([9, 5, 5], [9, 5, 5])
    assert offsets("reset", operated.group, "--to-current", *YES).code == 0, "Kafka brought into line"


def test_progress_of_a_topic_that_was_made_again_is_of_another_log(operated: Operated, offsets: Command) -> None:
    operated.send(9)
    operated.apply(3, 3, 3)
    operated.pipeline.delete_topic()
    operated.pipeline.make_topic()
    eventually(lambda: len(operated.known.logs) == 6, what="the broker knows all partitions")
    rows = offsets("describe", operated.group, *on(operated)).rows["partitions"]
    assert [(row["progress"], row["note"][:33]) for row in rows] == [(None, "progress is on another topic of t")] * 3
    assert offsets("reset", operated.group, "--to-current", *on(operated), *YES).code == 0
    assert operated.progress() == [0, 0, 0]


def test_a_group_of_ours_that_moved_since_the_plan_stays_and_so_does_kafka(
    operated: Operated, offsets: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ops.offsets.move as move

    operated.send(30)
    operated.apply(5, 5, 5)
    write = move.write_undo

    def beside(*arguments: Any) -> None:
        write(*arguments)
        place = (operated.pipeline.topic, 2)
        move_progress(operated.settings, operated.group, operated.known, {place: 6}, seen={place: 5})

    monkeypatch.setattr(move, "write_undo", beside)
    refused = offsets("reset", operated.group, "--to-earliest", *on(operated), *YES)
    assert (refused.code, operated.progress(), operated.kafka()) == (1, [5, 5, 6], [5, 5, 5])
    assert "stood at 5 when the plan was made, and is at 6" in refused.said
    assert "nothing of this group was moved from here" in offsets("undo", operated.group).said


def test_a_read_back_that_differs_is_told_of_progress_too(
    operated: Operated, offsets: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ops.offsets.move as move

    operated.send(9)
    operated.apply(3, 3, 3)
    noted = move.note_mirror

    def overtaken(*arguments: Any) -> None:
        noted(*arguments)
        place = (operated.pipeline.topic, 1)
        move_progress(operated.settings, operated.group, operated.known, {place: 2}, seen={place: 0})

    monkeypatch.setattr(move, "note_mirror", overtaken)
    answer = offsets("reset", operated.group, "--to-earliest", *on(operated), *YES)
    assert answer.code == 1
    assert f"{operated.pipeline.topic}/1: progress was to be 0, and is 2" in answer.said


def test_where_progress_cannot_be_reached_kafka_is_not_moved(
    operated: Operated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operated.send(9)
    operated.apply(3, 3, 3)
    given = environment_of_ours(operated.settings, tmp_path)
    away = "postgresql://accounting:x@127.0.0.1:1/payrelay"
    for role in ("ACCOUNTING", "OPS"):
        command = Command(monkeypatch, {**given, f"PAYRELAY_DSN__{role}": away})
        with pytest.raises(OperationalError):  # which `main` tells, with exit code 3
            command("reset", operated.group, "--to-earliest", *on(operated), *YES)
    without = {name: value for name, value in given.items() if name != "PAYRELAY_DSN__ACCOUNTING"}
    refused = Command(monkeypatch, without)("reset", operated.group, "--to-earliest", *on(operated), *YES)
    assert (refused.code, "PAYRELAY_DSN__ACCOUNTING" in refused.said) == (2, True)
    other = Command(monkeypatch, given | {"PAYRELAY_GROUP_PREFIX": "other-"})
    refused = other("reset", operated.group, "--to-earliest", *YES)
    assert (refused.code, "has progress in accounting" in refused.said) == (1, True)
    assert (operated.progress(), operated.kafka()) == ([3, 3, 3], [3, 3, 3])


def test_a_reset_killed_between_progress_and_kafka_is_mended_by_the_next_start(
    operated: Operated, offsets: Command, tmp_path: Path
) -> None:
    worker = operated.pipeline.start()
    operated.send(60)
    operated.pipeline.all_posted()
    operated.pipeline.ready(worker)
    eventually(lambda: operated.kafka() == [20, 20, 20], what="mirrored")
    refused = offsets("reset", operated.group, "--to-earliest", *YES)
    assert refused.code == 1
    assert "payrelay worker accounting" in refused.said
    assert "on 127.0.0.1  6 partitions" in refused.said
    assert worker.end() == 0

    command = [
        sys.executable,
        "-m",
        "tests.faults.cut_off_reset",
        "offsets",
        "reset",
        operated.group,
        "--to-offset",
        "4",
    ]
    killed = subprocess.run(
        [*command, *on(operated), *YES], env=os.environ.copy(), cwd=ROOT, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (operated.progress(), operated.kafka()) == ([4, 4, 4], [20, 20, 20])
    plan = offsets("reset", operated.group, "--to-current", *on(operated))
    assert "Kafka is at 20, which is not ours" in plan.rows[0]["note"]
    operated.send(3)
    operated.pipeline.start()
    operated.pipeline.all_posted()
    eventually(lambda: operated.kafka() == operated.progress() == [21, 21, 21], what="the mirror follows progress")
    assert operated.mirrored() == [21, 21, 21]
    operated.pipeline.prove()


# ---- workers of the local stack ---------------------------------------------------------------------------------------


@pytest.fixture
def local(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command for whoever has this stack as the local one."""
    folder = stack.embedded
    return Command(monkeypatch, {"PAYRELAY_STACK": folder.name, "PAYRELAY_HOME": str(folder.home)})


def pid_of(stack: Stack, part: str) -> int | None:
    [state] = [state for state in stack.embedded.states() if state.name == part]
    return state.pid if state.state == "running" else None


def test_workers_of_the_local_stack_are_stopped_and_run_again_also_after_an_error(stack: Stack, local: Command) -> None:
    part = "worker:points"
    before = pid_of(stack, part)
    refused = local("reset", "points", "--to-current", *YES)
    assert (refused.code, f"payrelay stop {part}" in refused.said) == (1, True)
    assert pid_of(stack, part) == before
    done = local("reset", "points", "--to-current", "--stop-workers", "--undo-file", undo_of(stack), *YES)
    assert done.code == 0, done.said
    after = pid_of(stack, part)
    assert after not in (None, before)
    assert f"stopping {part}" in done.said
    assert f"starting {part}" in done.said
    failed = local("reset", "points", "--to-order", "nosuch", "--stop-workers", *YES)
    assert failed.code == 2
    eventually(lambda: pid_of(stack, part) not in (None, after), what="running again")


def undo_of(stack: Stack) -> Path:
    return stack.embedded.path / f"undo-{os.getpid()}-{utc_now().timestamp()}.csv"


def test_an_operators_stop_stays_and_a_killed_commands_does_not(stack: Stack, local: Command) -> None:
    del local  # only its environment
    folder, part = stack.embedded, "exporter"
    run = CliRunner()
    assert run.invoke(app, ["stop", part]).exit_code == 0
    status = run.invoke(app, ["status"])
    assert status.exit_code == 1
    assert [line.split()[1] for line in status.stdout.splitlines() if line.startswith(part)] == ["stopped"]
    with stopped(folder, [part], reason="a test"):
        assert pid_of(stack, part) is None
    assert pid_of(stack, part) is None, "its operator has not started it"

    holding = f"from ops.stack.control import *; from ops.stack.state import *\nwith stopped(StackFolder(name={folder.name!r}), [{part!r}], reason='killed'):\n print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holding], cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        refused = run.invoke(app, ["start", part])
        assert isinstance(refused.exception, Refused), refused
        holder.kill()
    eventually(lambda: pid_of(stack, part), what="started again by itself")
    assert run.invoke(app, ["start", part]).exit_code == 0
    with pytest.raises(Refused, match="no part nosuch; there are: postgres"), stopped(folder, ["nosuch"], reason=""):
        pass
