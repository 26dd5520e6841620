"""docs/reference/offsets.md is what the commands print on the real stack; `pytest --write-pages` on this file writes it again.

What differs between two runs is masked by something of the same length, so that tables stay as they were printed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ops.cli.main import app
from outbox.errors import PayrelayError
from tests.foreign import BEGIN, Command, Foreign
from tests.foreign import ours as environment_of_ours
from tests.integration.test_offsets_ours import Operated
from tests.pipeline import ROOT, Pipeline
from tests.providers import Stack

TARGET = ROOT / "docs" / "reference" / "offsets.md"
SHOWN_PREFIX = "eu-west-1-"
"""As long as a test's own."""


class Page:
    """Prose, and commands with what they print."""

    def __init__(self, masked: Callable[[str], str]) -> None:
        self.masked = masked
        self.lines: list[str] = []

    def say(self, *lines: str) -> None:
        self.lines += [*lines, ""]

    def run(self, *arguments: object, only: str = "") -> None:
        """Show the command, and what it printed, or the lines of it that match."""
        words = ["offsets", *map(str, arguments)]
        result = CliRunner().invoke(app, words)
        if result.exception is not None and not isinstance(result.exception, PayrelayError | SystemExit):
            raise result.exception
        printed = result.output.splitlines()
        code = result.exit_code
        if isinstance(result.exception, PayrelayError):
            printed += [
                f"payrelay: {result.exception.message}",
                *(f"  {line}" for line in result.exception.details),
            ]
            code = result.exception.exit_code
        shown = [line.rstrip() for line in printed if re.search(only, line)]
        command = " ".join(f"'{word}'" if re.search(r"[ {]", word) else word for word in words)
        ending = [f"(exit code {code})"] if code else []
        block = "\n".join(["```", f"$ payrelay {command}", *shown, *ending, "```"])
        self.say(*self.masked(block).splitlines())

    def text(self) -> str:
        return re.sub(r"\n\n+", "\n\n", "\n".join(self.lines)).rstrip() + "\n"


@pytest.fixture
def page(
    stack: Stack, pipeline: Pipeline, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[Page]:
    _ = stack.embedded  # whose cluster the page names
    Command(monkeypatch, environment_of_ours(pipeline.settings, tmp_path / ".payrelay"))
    ticks = count()
    monkeypatch.setattr("ops.cli.offsets.utc_now", lambda: BEGIN + timedelta(hours=2, seconds=next(ticks)))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    seen: dict[str, str] = {}

    def identity(match: re.Match[str]) -> str:
        return seen.setdefault(match[0], f"01a2079e-7a00-7000-8000-{len(seen) + 1:012}")

    def masked(text: str) -> str:
        text = text.replace(str(tmp_path) + "/", "").replace(prefix, SHOWN_PREFIX)
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", identity, text)
        return re.sub(r"20\d\d-(?!01-05)\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "2026-01-06T09:00:00.000Z", text)

    yield Page(masked)
    monkeypatch.undo()
    time.tzset()


def test_the_reference_page_is_what_the_commands_print(
    page: Page,
    pipeline: Pipeline,
    stack: Stack,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    foreign, operated = Foreign(pipeline.settings, pipeline.settings.topic_prefix), Operated(pipeline)
    try:
        _anybodys(page, foreign, tmp_path)
        _ours(page, operated)
        Command(monkeypatch, {"PAYRELAY_STACK": stack.embedded.name, "PAYRELAY_HOME": str(stack.embedded.home)})
        _stopping(page, tmp_path)
    finally:
        foreign.close()
    if request.config.getoption("--write-pages"):
        TARGET.write_text(page.text())
    assert TARGET.read_text() == page.text(), "pytest --write-pages on this file, and see what has changed"


def _anybodys(page: Page, foreign: Foreign, folder: Path) -> None:
    group, topic = foreign.group, foreign.topic
    foreign.make(20, 20, 20, low=6)
    foreign.make(4, topic=f"{foreign.prefix}views")
    foreign.commit(10, 20, 8)
    foreign.commit(3, topic=f"{foreign.prefix}views")
    page.say(
        "# Offsets",
        "",
        "This page shows what `payrelay offsets` prints on the real stack. `pytest --write-pages tests/integration/test_offsets_reference.py` writes it,",
        "and the same test compares it. Options: [command line](cli.md). Everything works on any Kafka with `PAYRELAY_KAFKA_BOOTSTRAP` alone, without a",
        "database or a JVM; for payrelay's consumers it shows more. Nothing is moved or deleted without `--execute`, which asks first, unless `--yes` is given.",
        "Exit codes: 0 done, 1 refused or read back different, 2 usage, 3 cannot reach. Every command takes `-o table|json|csv`.",
        "(`faust reset` deletes Faust's local tables, not offsets.)",
    )  # fmt: skip
    page.say(
        "## Groups and their positions",
        "",
        "The list includes groups that are not consumer groups, which Kafka's own tool does not show.",
    )
    page.run("list", "-o", "csv", only=f"^(group|{foreign.prefix}|payrelay-connect)")
    page.say(
        "Lag is shown in messages and in seconds, the age of the oldest message that waits. `--watch` repeats every 2 s."
    )
    page.run("describe", group)
    page.run("describe", group, "--only-lagging", "--topic", f"{topic}:0,1")
    page.run("peek", group, "--topic", topic, "-p", "0", "--before", 2, "--after", 3)

    page.say(
        "## A plan first",
        "",
        "A plan shows the old and the new offset, what lies between, the time of the message at the new offset, and the lag there.",
    )
    page.run("reset", group, "--to-earliest")
    page.run("reset", group, "--to-latest", "--topic", topic)
    page.say(
        "A time is ISO 8601 or an epoch. One without a zone is refused, unless `--tz` names it. The plan repeats the time in UTC and in the zone."
    )
    page.run("reset", group, "--to-datetime", "2026-01-05T16:10:30")
    page.run("reset", group, "--to-datetime", "2026-01-05T16:10:30", "--tz", "Asia/Shanghai", "--topic", topic)
    page.run("reset", group, "--by-duration", "1h50m", "-p", "0")
    page.say("An offset outside the log is moved to its nearest end, and a note says so.")
    page.run("reset", group, "--shift-by", -5, "--topic", topic)
    page.run("reset", group, "--to-offset", 12, "--topic", f"{topic}:0,2")
    page.run("reset", group, "--topic", topic, "--map", '{"0": 7, "2": 19}')
    page.run("reset", group, "--to-current", "--topic", topic, "-p", "1", "-o", "json")

    page.say("## Moved, read back, undone", "", "The group's position is in an undo file before it is moved. A second undo makes the move again.")  # fmt: skip
    page.run("reset", group, "--to-earliest", "--topic", topic, "--execute", "--yes")
    page.run("undo", group, "--execute", "--yes")
    page.say(
        "The files have the format of `kafka-consumer-groups`: `--from-file` reads its `--export`, and it reads these."
    )
    page.run("export", group)
    page.run("export", group, "--file", folder / "report.csv")
    page.run("reset", group, "--from-file", folder / "report.csv", "--topic", topic)
    page.say("Another group's position, to try something in its shadow first:")
    page.run("reset", f"{group}-shadow", "--from-group", group, "--execute", "--yes")

    page.say("## An active group", "", "An active group is refused. The error names its members, where they run and how to stop them; `--wait 60s` waits for them to end. Groups that are EMPTY or DEAD are moved.")  # fmt: skip
    consumer = foreign.join()
    page.run("reset", group, "--to-earliest", "--execute", "--yes")
    consumer.close()

    page.say("## Deleted", "", "Delete a group, or its offsets of one topic: with Kafka's own tool where the stack's programs are installed, else as here. `undo` brings them back.")  # fmt: skip
    page.run("delete", group, "--topic", f"{foreign.prefix}views", "--execute", "--yes")
    page.run("delete", f"{group}-shadow")
    page.run("delete", f"{group}-shadow", "--execute", "--yes")
    page.run("undo", f"{group}-shadow")


def _ours(page: Page, operated: Operated) -> None:
    topic = ("--topic", operated.pipeline.topic)
    operated.send(30, unreadable=[0])
    operated.apply(10, 7, 4)
    page.say(
        "## Payrelay's consumers",
        "",
        "Their position is `progress` in the service's database, and Kafka's committed offset its mirror ([ADR 2](../adr/0002-progress-is-the-truth.md)).",
        "Both are moved together, `progress` first. If the command is cut off between the two, the next start of the worker writes the mirror. If `progress`",
        "cannot be reached, nothing is moved. A plan counts the events between old and new by what the consumer has done with them. A group that moves back is redelivered",
        "these events, and drops those already applied. A group that moves ahead SKIPS them, and the plan warns of events that were never applied. More than `--count-limit` are not counted.",
        "",
        "`payrelay replay redeliver` fills such holes beside the running worker, `payrelay replay rebuild` makes a consumer's tables again.",
    )  # fmt: skip
    page.run("describe", operated.group, *topic, "-p", "0")
    page.run("reset", operated.group, "--to-earliest", *topic)
    page.run("reset", operated.group, "--to-latest", *topic)
    page.run(
        "peek", operated.group, *topic, "-p", "0", "--before", 10, "--after", 0, "-o", "csv", only="^topic|,0,.*PARKED"
    )
    page.say(
        "An order or an event can name a position: the partitions that hold it move to its first event, the others stay."
    )
    page.run("reset", operated.group, "--to-order", operated.pipeline.sent[13].order_no)
    page.run("reset", operated.group, "--to-event", operated.ids[3], "--execute", "--yes")
    page.run("undo", operated.group, "--execute", "--yes")
    page.say(
        "An offset that another tool has committed moves nothing. `--from-kafka` adopts it, `--to-current` overwrites it in Kafka."
    )
    from ops.kafka.groups import commit

    commit(operated.settings, operated.group, {(operated.pipeline.topic, 1): 10})
    page.run("reset", operated.group, "--from-kafka", *topic, "-p", "1")


def _stopping(page: Page, folder: Path) -> None:
    page.say(
        "## Workers of the local stack",
        "",
        "`--stop-workers` stops the parts that run the group and starts them again, also after an error or Ctrl-C. The plan that you confirm was made",
        "while they were stopped. If the command is killed, nothing stays stopped: its stop is a locked file, and the supervisor starts the part again as",
        "soon as nobody holds it. `payrelay stop PART` and `payrelay start PART` do the same by hand; `payrelay status` then shows `stopped`.",
    )  # fmt: skip
    page.run("reset", "points", "--to-current", "--stop-workers", "--execute", "--yes", "--undo-file", folder / "undo.csv",
             only=r"^(stopping|points|starting)")  # fmt: skip
