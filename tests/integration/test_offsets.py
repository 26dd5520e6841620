"""`payrelay offsets` on the real broker: somebody else's groups without a database, and ours with progress and Kafka together."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Producer

from ops.kafka.reader import append_times, bounds
from ops.offsets.delete import TOOL
from ops.offsets.files import from_csv
from ops.stack.parts import tied
from ops.stack.programs import installed_programs, java
from ops.stack.state import StackFolder
from outbox.errors import Unreachable
from outbox.settings import Settings
from tests.foreign import BEGIN, Command, Foreign, kafka_alone
from tests.waiting import eventually

YES = ("--execute", "--yes")
PLAN = ("partition", "old", "new", "delta")


@pytest.fixture
def foreign(settings: Settings, prefix: str) -> Generator[Foreign]:
    made = Foreign(settings, prefix)
    yield made
    made.close()


@pytest.fixture
def offsets(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command for somebody who has only a Kafka."""
    return Command(monkeypatch, kafka_alone(settings, tmp_path))


# ---- any group, on any Kafka, with no database ------------------------------------------------------------------------


def test_a_foreign_group_is_moved_read_back_and_undone(foreign: Foreign, offsets: Command, tmp_path: Path) -> None:
    foreign.make(20, 20, 20)
    foreign.commit(5, 20)
    shown = offsets("reset", foreign.group, "--to-offset", 12)
    assert shown.of(*PLAN, "lag", "lands_at") == [
        (0, 5, 12, 7, 8, "2026-01-05T08:12:00.000Z"),
        (1, 20, 12, -8, 8, "2026-01-05T08:12:00.000Z"),
    ]
    assert (shown.code, foreign.committed()) == (0, {0: 5, 1: 20}), "nothing without --execute"
    assert "nothing was done" in shown.said
    assert not list(tmp_path.rglob("*.csv"))

    assert offsets("reset", foreign.group, "--to-offset", 12, *YES).code == 0
    assert foreign.committed() == {0: 12, 1: 12}
    undone = offsets("undo", foreign.group, *YES)
    assert (undone.code, foreign.committed()) == (0, {0: 5, 1: 20})
    assert offsets("undo", foreign.group, *YES).code == 0
    assert foreign.committed() == {0: 12, 1: 12}, "undone twice: made again"
    assert len(list(tmp_path.rglob("*.csv"))) == 3
    mine = tmp_path / "mine.csv"
    assert offsets("reset", foreign.group, "--to-earliest", "--undo-file", mine, *YES).code == 0
    assert mine.read_text() == f"{foreign.topic},0,12\n{foreign.topic},1,12\n"
    refused = offsets("reset", foreign.group, "--to-latest", "--undo-file", mine, *YES)
    assert (refused.code, foreign.committed()) == (1, {0: 0, 1: 0}), "without an undo file nothing is moved"


def test_what_lies_outside_the_log_is_clamped_and_it_is_said(foreign: Foreign, offsets: Command) -> None:
    foreign.make(20, 20, low=6)
    foreign.commit(10, 15)
    for how, news in ((("--shift-by", -5), [6, 10]), (("--to-offset", 3), [6, 6]), (("--to-offset", 0), [6, 6]), (("--to-offset", 99), [20, 20]),
                      (("--shift-by", 7), [17, 20])):  # fmt: skip
        shown = offsets("reset", foreign.group, *how)
        assert [row["new"] for row in shown.rows] == news
        clamped = ["clamped" in row["note"] for row in shown.rows]
        assert clamped == [new in (6, 20) and not (how[1] == -5 and new == 10) for new in news], shown.rows
    foreign.commit(2, 40)
    rows = offsets("describe", foreign.group).rows["partitions"]
    assert [(row["committed"], row["begin"], row["end"], row["lag"]) for row in rows] == [
        (2, 6, 20, 14),
        (40, 6, 20, 0),
    ]


def test_scopes_choose_partitions(foreign: Foreign, offsets: Command) -> None:
    foreign.make(9, 9, 9)
    other = foreign.make(4, topic=f"{foreign.prefix}other")
    foreign.commit(1, 2)
    foreign.commit(3, topic=other)

    def moved(*how: object) -> list[tuple[str, int]]:
        shown = offsets("reset", foreign.group, "--to-latest", *how)
        return [tuple(place) for place in shown.of("topic", "partition")] if shown.code == 0 else []  # type: ignore[misc]

    clicks = foreign.topic
    assert moved() == [(clicks, 0), (clicks, 1), (other, 0)], "all that it stands in"
    assert moved("--topic", clicks) == [(clicks, 0), (clicks, 1), (clicks, 2)], "whole, begun or not"
    assert moved("--topic", f"{clicks}:2", "--topic", other) == [(clicks, 2), (other, 0)]
    assert moved("--topic", clicks, "-p", "0,2") == [(clicks, 0), (clicks, 2)]
    assert moved("-p", "0") == [(clicks, 0), (other, 0)]
    for wrong, says in (
        (("--topic", "nosuch"), "there is no topic"), (("--topic", f"{clicks}:7"), "has no partition 7"),
        (("-p", "1"), "has no partition 1"),
    ):  # fmt: skip
        refused = offsets("reset", foreign.group, "--to-latest", *wrong)
        assert (refused.code, says in refused.said) == (2, True), refused.said
    assert moved("--topic", f"{clicks}:0", "--topic", f"{clicks}:1") == [(clicks, 0), (clicks, 1)], "both, not the last"
    mapped = offsets("reset", foreign.group, "--topic", clicks, "--map", '{"0": 7, "2": 1}')
    assert mapped.of(*PLAN) == [(0, 1, 7, 6), (2, None, 1, None)]
    beyond = offsets("reset", foreign.group, "--topic", clicks, "--map", '{"0": 7, "9": 19}')
    assert (beyond.code, f"no partition {clicks}/9" in beyond.said) == (2, True), beyond.said
    shift = offsets("reset", foreign.group, "--topic", clicks, "--shift-by", 1)
    assert "has no committed offset to shift" in shift.said


@pytest.mark.parametrize(
    "how",
    [
        (), ("--to-earliest", "--to-latest"), ("--to-datetime", "2026-01-05T08:00:00"), ("--by-duration", "5"),
        ("--to-datetime", "2026-01-05T08:00:00Z", "--by-duration", "1h"), ("--map", '{"0": 1}'), ("--to-offset", "-1"), ("--to-offset", "0", "--to-latest"),
        ("--to-datetime", "2026-01-05", "--tz", "Nowhere/Else"), ("--to-earliest", "-p", "x"), ("--to-earliest", "--topic", "a:b"),
        ("--to-earliest", "--wait", "soon"), ("--by-duration", "99999999d"), ("--to-datetime", "0001-01-01T00:00:00+14:00"),
    ],
)  # fmt: skip
def test_what_could_mean_two_things_is_a_usage_error(offsets: Command, how: tuple[str, ...]) -> None:
    assert offsets("reset", "anybody", *how).code == 2


def test_times_are_told_in_utc_and_local_and_with_what_they_land_on(foreign: Foreign, offsets: Command) -> None:
    foreign.make(20, 3, 0)
    foreign.commit(0, 0, 0)
    for written in (
        ("2026-01-05T08:07:30Z",), ("2026-01-05T16:07:30+08:00",), ("1767600450",), ("1767600450000",),
        ("2026-01-05 16:07:30", "--tz", "Asia/Shanghai"),
    ):  # fmt: skip
        shown = offsets("reset", foreign.group, "--to-datetime", *written)
        assert shown.of("new", "lands_at") == [(8, "2026-01-05T08:08:00.000Z"), (3, None), (0, None)]
        assert "2026-01-05T08:07:30.000Z = " in shown.said
    assert "2026-01-05 16:07:30+0800 CST" in shown.said
    assert "--tz" in offsets("reset", foreign.group, "--to-datetime", "2026-01-05T08:07:30").said
    ago = offsets("reset", foreign.group, "--by-duration", "36500d")
    assert [row["new"] for row in ago.rows] == [0, 0, 0]


def test_an_active_group_is_refused_with_its_members_until_it_has_none(foreign: Foreign, offsets: Command) -> None:
    foreign.make(9)
    foreign.commit(4)
    consumer = foreign.join()
    plan = offsets("reset", foreign.group, "--to-earliest")
    assert (plan.code, "the group is active, and would be refused" in plan.said) == (0, True)
    for act in (("reset", foreign.group, "--to-earliest"), ("delete", foreign.group)):
        refused = offsets(*act, *YES)
        assert refused.code == 1
        assert re.search(r"reporter  on 127\.0\.0\.1  1 partitions  reporter-\S+\nEnd these processes", refused.said)
    assert foreign.committed() == {0: 4}
    stopped = offsets("reset", foreign.group, "--to-earliest", "--stop-workers", *YES)
    assert (stopped.code, "stop what runs it yourself" in stopped.said) == (1, True)
    described = offsets("describe", foreign.group).rows
    assert (described["state"], described["partitions"][0]["client"]) == ("STABLE", "reporter")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(offsets, "reset", foreign.group, "--to-earliest", "--wait", "60s", *YES)
        consumer.close()
        assert waiting.result(60).code == 0
    assert foreign.committed() == {0: 0}


def test_a_group_moved_since_the_plan_is_left_alone(
    foreign: Foreign, offsets: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ops.offsets.move as move

    foreign.make(9, 9)
    foreign.commit(4, 4)
    write = move.write_undo

    def beside(*arguments: Any) -> None:
        write(*arguments)
        foreign.commit(4, 5)

    monkeypatch.setattr(move, "write_undo", beside)
    refused = offsets("reset", foreign.group, "--to-earliest", *YES)
    assert (refused.code, foreign.committed()) == (1, {0: 4, 1: 5})
    assert f"{foreign.topic}/1 was moved since the plan" in refused.said
    assert "nothing of this group was moved from here" in offsets("undo", foreign.group).said


def test_a_read_back_that_differs_is_exit_code_1(
    foreign: Foreign, offsets: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ops.offsets.move as move

    foreign.make(9, 9)
    foreign.commit(4, 4)
    commit = move.commit

    def overtaken(*arguments: Any) -> None:
        commit(*arguments)
        foreign.commit(None, 7)

    monkeypatch.setattr(move, "commit", overtaken)
    answer = offsets("reset", foreign.group, "--to-earliest", *YES)
    assert answer.code == 1
    assert f"{foreign.topic}/1: Kafka was to be 0, and is 7" in answer.said


def test_a_group_takes_the_position_of_another_and_is_deleted_and_brought_back(
    foreign: Foreign, offsets: Command
) -> None:
    foreign.make(9, 9)
    other = foreign.make(5, topic=f"{foreign.prefix}other")
    foreign.commit(4, 6)
    foreign.commit(2, topic=other)
    shadow = f"{foreign.group}-shadow"
    assert offsets("reset", shadow, "--from-group", foreign.group, *YES).code == 0
    assert foreign.committed(group=shadow) == {0: 4, 1: 6}
    assert foreign.committed(group=shadow, topic=other) == {0: 2}
    assert "has no position" in offsets("reset", shadow, "--from-group", "nosuch").said
    for command in (("describe",), ("peek",), ("export",), ("export", shadow), ("delete",), ("delete", *YES)):
        code, _, said = offsets.text(*command, "nosuch")
        assert (code, "there is no group 'nosuch'" in said) == (2, True), command

    shown = offsets("delete", shadow)
    assert (shown.code, len(shown.rows), foreign.committed(group=shadow)) == (0, 3, {0: 4, 1: 6})
    assert offsets("delete", shadow, *YES).code == 0
    assert foreign.committed(group=shadow) == {}
    assert offsets("describe", shadow).code == 2
    assert offsets("undo", shadow, *YES).code == 0
    assert foreign.committed(group=shadow) == {0: 4, 1: 6}


@pytest.mark.parametrize("by_tool", [True, False])
def test_one_topic_of_a_group_is_forgotten(foreign: Foreign, offsets: Command, tmp_path: Path, by_tool: bool) -> None:
    """With the stack's programs at hand Kafka's own tool does it."""
    if by_tool:
        (tmp_path / "programs").symlink_to(CHECKOUT / "programs")
    foreign.make(9, 9)
    other = foreign.make(5, topic=f"{foreign.prefix}other")
    foreign.commit(4, 6)
    foreign.commit(2, topic=other)
    done = offsets("delete", foreign.group, "--topic", foreign.topic, *YES)
    assert done.code == 0, done.said
    assert ("Kafka's own tool" if by_tool else "the group was deleted") in done.said
    assert (foreign.committed(), foreign.committed(topic=other)) == ({}, {0: 2})
    assert offsets("undo", foreign.group, *YES).code == 0
    assert (foreign.committed(), foreign.committed(topic=other)) == ({0: 4, 1: 6}, {0: 2})
    assert "no offset of 'nosuch'" in offsets("delete", foreign.group, "--topic", "nosuch", *YES).said


def test_cut_off_while_the_other_offsets_are_not_back_it_says_how_they_come_back(
    foreign: Foreign, offsets: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka goes away between the two."""
    foreign.make(9, 9)
    other = foreign.make(5, topic=f"{foreign.prefix}other")
    foreign.commit(4, 6)
    foreign.commit(2, topic=other)

    def away(*_: object) -> None:
        raise Unreachable("Kafka does not answer")

    with monkeypatch.context() as cut:
        cut.setattr("ops.offsets.delete.commit", away)
        failed = offsets("delete", foreign.group, "--topic", other, *YES)
    assert (failed.code, foreign.committed()) == (3, {})
    assert f"payrelay offsets undo --execute {foreign.group} " in failed.said
    assert offsets("undo", foreign.group, *YES).code == 0
    assert (foreign.committed(), foreign.committed(topic=other)) == ({0: 4, 1: 6}, {0: 2})


def test_list_describe_export_and_peek(foreign: Foreign, offsets: Command) -> None:
    foreign.make(9, 9, 0)
    foreign.commit(4, 9, 0)
    listed = {row["group"]: row for row in offsets("list").rows}
    assert listed[foreign.group] == {
        "group": foreign.group,
        "state": "EMPTY",
        "type": "CLASSIC",
        "members": 0,
        "ours": "",
    }
    assert listed["payrelay-connect"]["type"] == "connect", "Kafka's tool and client do not list it"
    assert "is no group of consumers" in offsets("describe", "payrelay-connect").said
    lagging = offsets("describe", foreign.group, "--only-lagging").rows["partitions"]
    assert [(row["partition"], row["lag"]) for row in lagging] == [(0, 5)]
    assert lagging[0]["lag_s"] > timedelta(days=30).total_seconds(), "the age of the oldest that waits"
    code, out, _ = offsets.text("export", foreign.group)
    assert (code, out) == (0, "".join(f"{foreign.topic},{n},{offset}\n" for n, offset in enumerate((4, 9, 0))))
    rows = offsets("peek", foreign.group, "--before", 1, "--after", 2).rows
    assert [(row["partition"], row["offset"], row["position"], row["key"], row["value"]) for row in rows] == [
        (0, 3, "", "k3", "click 3"), (0, 4, "next", "k4", "click 4"), (0, 5, "", "k5", "click 5"), (1, 8, "", "k8", "click 8"),
    ]  # fmt: skip


def test_a_watched_group_is_an_object_in_each_line(
    foreign: Foreign, offsets: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign.make(9)
    foreign.commit(4)
    pauses: list[float] = []

    def until_the_third(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("ops.cli.offsets.time", SimpleNamespace(sleep=until_the_third))
    _, out, _ = offsets.text("describe", foreign.group, "--watch", "-o", "json")
    looks = [json.loads(line) for line in out.splitlines()]
    assert [(look["group"], look["partitions"][0]["lag"]) for look in looks] == [(foreign.group, 5)] * 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("\ufeff{group},{topic},0,3\n{group},{topic},1,4\n", ""),
        ("{group},{topic},0,3\n,{topic},1,4\n", "line 2"),
        ("{group},{topic},0,3\n{group}x,{topic},1,4\n", "line 2"),
        ("{topic},0,3\n{topic},7,4\n", "no partition 7"),
        ("{topic},0,3\nnosuch,0,4\n", "nosuch"),
        ("{group},{topic},0,3\n{other},{topic},1,4\n", ""),
    ],
)
def test_a_file_whose_line_matches_nothing_moves_nothing(
    foreign: Foreign, offsets: Command, tmp_path: Path, content: str, says: str
) -> None:
    names = {"group": foreign.group, "topic": foreign.topic, "other": f"{foreign.group}-other"}
    foreign.make(9, 9)
    foreign.commit(1, 1)
    foreign.commit(1, group=names["other"])
    file = tmp_path / "wanted.csv"
    file.write_text(content.format(**names))
    shown = offsets("reset", foreign.group, "--from-file", file)
    code = 0 if not says else 1 if says.startswith("line") else 2  # a name that nothing has
    assert (shown.code, says.format(**names) in shown.said) == (code, True), shown.said
    if not says:
        assert shown.of("partition", "new") == ([(0, 3), (1, 4)] if "\ufeff" in content else [(0, 3)])


def test_a_time_that_is_no_date_and_a_position_beyond_the_end_are_shown(foreign: Foreign, offsets: Command) -> None:
    foreign.make(2, 3)
    producer = Producer({"bootstrap.servers": foreign.settings.kafka_bootstrap})
    producer.produce(foreign.topic, partition=0, value="microseconds", timestamp=1_767_600_450_000_000)
    assert producer.flush(30) == 0
    foreign.commit(2, 40)
    rows = offsets("describe", foreign.group).rows["partitions"]
    assert [(row["lag"], row["lag_s"]) for row in rows] == [(1, None), (0, 0.0)]
    assert "37 beyond the log's end" in rows[1]["note"]
    assert "notes on 1 partition" in offsets.text("describe", foreign.group)[2]
    assert [row["at"] for row in offsets("peek", foreign.group, "-p", "0").rows][-1] is None
    assert offsets("reset", foreign.group, "--to-offset", 2, "-p", "0").of("new", "lands_at") == [(2, None)]


def test_peek_tells_transactions_and_looks_past_what_was_compacted(foreign: Foreign, offsets: Command) -> None:
    foreign.make(2)
    aborted, opened = (
        Producer({"bootstrap.servers": foreign.settings.kafka_bootstrap, "transactional.id": foreign.prefix + name})
        for name in ("aborted", "open")
    )
    for producer in (aborted, opened):
        producer.init_transactions(20)
    for _ in range(30):  # markers: offsets that hold no record
        aborted.begin_transaction()
        aborted.produce(foreign.topic, partition=0, value="aborted")
        aborted.flush(20)
        aborted.abort_transaction(20)
    plain = Producer({"bootstrap.servers": foreign.settings.kafka_bootstrap})
    plain.produce(foreign.topic, partition=0, value="committed")
    assert plain.flush(30) == 0
    opened.begin_transaction()
    opened.produce(foreign.topic, partition=0, value="open")
    opened.flush(20)
    foreign.commit(2)
    rows = offsets("peek", foreign.group, "--before", 1, "--after", 40).rows
    assert [(row["value"], row.get("transaction"), row["position"]) for row in rows] == [
        ("click 1", "", ""),
        *[("aborted", "aborted", "")] * 30,
        ("committed", "", "next"),
        ("open", "open", ""),
    ]
    opened.abort_transaction(20)


def test_a_share_group_is_in_the_list(foreign: Foreign, offsets: Command) -> None:
    foreign.make(1)
    group = f"{foreign.group}-shared"
    command = [java(), "-XX:TieredStopAtLevel=1", "-cp", installed_programs(CHECKOUT).class_path(Path.cwd()),
               "org.apache.kafka.tools.consumer.ConsoleShareConsumer", "--bootstrap-server", foreign.settings.kafka_bootstrap,
               "--topic", foreign.topic, "--group", group]  # fmt: skip
    process = subprocess.Popen(tied(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def row() -> dict[str, Any] | None:
            return next((row for row in offsets("list").rows if row["group"] == group), None)

        assert eventually(row, within_s=60, what="the share group listed")["type"] == "SHARE"
    finally:
        process.kill()
        process.wait()


def test_a_log_that_ends_in_transaction_markers_has_a_lag_of_no_age(foreign: Foreign, offsets: Command) -> None:
    """Nothing waits there that could be read: without an end of its own the look would wait for a record for ever."""
    foreign.make(2)
    producer = Producer({"bootstrap.servers": foreign.settings.kafka_bootstrap, "transactional.id": foreign.prefix})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(foreign.topic, partition=0, value="aborted")
    producer.flush(20)
    producer.abort_transaction(20)
    place = (foreign.topic, 0)
    eventually(
        lambda: bounds(foreign.settings, [foreign.topic])[place][1] == 4, what="the marker follows the abort's answer"
    )
    foreign.commit(3)
    [row] = offsets("describe", foreign.group).rows["partitions"]
    assert (row["lag"], row["lag_s"]) == (1, None)
    assert append_times(foreign.settings, {(place, 1), (place, 3)}) == {(place, 1): BEGIN + timedelta(minutes=1)}


def test_a_broker_that_is_away_is_exit_code_3(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.kafka.groups.TIMEOUT_S", 0.5)
    offsets = Command(monkeypatch, {"PAYRELAY_KAFKA_BOOTSTRAP": "127.0.0.1:1", "PAYRELAY_HOME": str(tmp_path)})
    assert offsets("list").code == 3


def test_the_name_of_a_group_of_ours_is_not_moved_without_its_database(foreign: Foreign, offsets: Command) -> None:
    foreign.make(9)
    refused = offsets("reset", "accounting", "--to-earliest", "--topic", foreign.topic)
    assert refused.code == 1
    assert "PAYRELAY_DSN__OPS" in refused.said
    assert "PAYRELAY_GROUP_PREFIX" in refused.said


# ---- Kafka's own tool: the same plans, the same files -----------------------------------------------------------------

CHECKOUT = StackFolder(name="any").home


@pytest.fixture(scope="module")
def kafka_tool(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run kafka-consumer-groups of the stack's programs; gives what it prints."""
    archive = tmp_path_factory.mktemp("jvm") / "classes.jsa"

    def run(settings: Settings, *arguments: object) -> str:
        sharing = "SharedArchiveFile" if archive.exists() else "ArchiveClassesAtExit"
        flags = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xlog:disable", f"-XX:{sharing}={archive}"]
        command = [java(), *flags, "-Duser.timezone=UTC", "-cp", installed_programs(CHECKOUT).class_path(Path.cwd()), TOOL,
                   "--bootstrap-server", settings.kafka_bootstrap, *map(str, arguments)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_plans_are_those_of_kafkas_own_tool_and_files_go_both_ways(
    foreign: Foreign, offsets: Command, kafka_tool: Callable[..., str], tmp_path: Path
) -> None:
    foreign.make(20, 20, 20, 0, low=6)
    foreign.commit(10, 20, None, 0)
    strange = f"{foreign.group}-strange"
    foreign.commit(3, 99, 8, group=strange)
    exported = tmp_path / "ours.csv"
    assert offsets.text("export", strange, "--file", exported)[0] == 0
    everywhere = ("--topic", foreign.topic)
    modes: dict[str, tuple[object, ...]] = {
        "earliest": ("--to-earliest", *everywhere),
        "latest": ("--to-latest", *everywhere),
        "current": ("--to-current", *everywhere),
        "offset": ("--to-offset", 8, *everywhere),
        "datetime": ("--to-datetime", "2026-01-05T08:10:30.000Z", *everywhere),
        "duration": ("--by-duration", "P1D", *everywhere),
        "shift": ("--shift-by", -7, "--topic", f"{foreign.topic}:0,1,3"),
        "file": ("--from-file", exported),
    }

    def theirs(mode: str) -> str:
        """Return what their plan is as CSV. They take times without a zone."""
        how = [str(option).removesuffix("Z") if mode == "datetime" else option for option in modes[mode]]
        printed = kafka_tool(
            foreign.settings, "--group", foreign.group, "--reset-offsets", "--dry-run", "--export", *how
        )
        return "".join(line for line in printed.splitlines(keepends=True) if not line.startswith("Warn:"))

    printed = {"earliest": theirs("earliest")}  # and the archive of classes that the others start from
    with ThreadPoolExecutor(2) as pool:
        printed |= dict(zip(list(modes)[1:], pool.map(theirs, list(modes)[1:]), strict=True))
    for mode, how in modes.items():
        plan = offsets("reset", foreign.group, *how)
        assert plan.code == 0, plan.said
        mine = {(row["topic"], row["partition"]): row["new"] for row in plan.rows}
        assert mine == from_csv(printed[mode], foreign.group), mode
        assert len(mine) >= 3
    theirs_file = tmp_path / "theirs.csv"
    theirs_file.write_text(printed["datetime"])
    assert offsets("reset", foreign.group, "--from-file", theirs_file, *YES).code == 0
    assert foreign.committed() == {place[1]: offset for place, offset in from_csv(printed["datetime"], "").items()}
    both = offsets.text("export", foreign.group, strange)[1]
    assert from_csv(both, strange, others=[foreign.group]) == from_csv(exported.read_text(), strange)
    assert both.startswith(f"{foreign.group},{foreign.topic},0,")
