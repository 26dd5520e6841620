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
        "What `payrelay offsets` prints, on the real stack: written by `pytest --write-pages tests/integration/test_offsets_reference.py`, and",
        "compared by the same test. Options: [command line](cli.md). All of it works on any Kafka with `PAYRELAY_KAFKA_BOOTSTRAP` alone and no",
        "database, without a JVM; of groups of ours it knows more. Nothing is moved or deleted without `--execute`, which asks, unless `--yes`.",
        "Exit codes: 0 done, 1 refused or read back different, 2 usage, 3 cannot reach. Everywhere `-o table|json|csv`.",
        "(`faust reset` deletes Faust's local tables, and no offsets.)",
    )  # fmt: skip
    page.say(
        "## Groups, and where they stand",
        "",
        "Also those that are none of consumers, which Kafka's own tool does not show.",
    )
    page.run("list", "-o", "csv", only=f"^(group|{foreign.prefix}|payrelay-connect)")
    page.say("Lag is in messages and in seconds: the age of the oldest that waits. `--watch` shows it again every 2 s.")
    page.run("describe", group)
    page.run("describe", group, "--only-lagging", "--topic", f"{topic}:0,1")
    page.run("peek", group, "--topic", topic, "-p", "0", "--before", 2, "--after", 3)

    page.say(
        "## A plan first",
        "",
        "Old, new, what lies between, when the record was made that it lands on, and the lag there.",
    )
    page.run("reset", group, "--to-earliest")
    page.run("reset", group, "--to-latest", "--topic", topic)
    page.say(
        "A time without a zone is refused, unless one is given; it is told back in UTC and as it is here. ISO 8601, or an epoch."
    )
    page.run("reset", group, "--to-datetime", "2026-01-05T16:10:30")
    page.run("reset", group, "--to-datetime", "2026-01-05T16:10:30", "--tz", "Asia/Shanghai", "--topic", topic)
    page.run("reset", group, "--by-duration", "1h50m", "-p", "0")
    page.say("What lies outside the log is clamped, and it is said.")
    page.run("reset", group, "--shift-by", -5, "--topic", topic)
    page.run("reset", group, "--to-offset", 12, "--topic", f"{topic}:0,2")
    page.run("reset", group, "--topic", topic, "--map", '{"0": 7, "2": 19}')
    page.run("reset", group, "--to-current", "--topic", topic, "-p", "1", "-o", "json")

    page.say("## Moved, read back, undone", "", "Where the group stood is in an undo file before it is moved. Undone twice, it is moved again.")  # fmt: skip
    page.run("reset", group, "--to-earliest", "--topic", topic, "--execute", "--yes")
    page.run("undo", group, "--execute", "--yes")
    page.say(
        "The files are those of `kafka-consumer-groups`, both ways: its `--export` is read by `--from-file`, and it reads these."
    )
    page.run("export", group)
    page.run("export", group, "--file", folder / "report.csv")
    page.run("reset", group, "--from-file", folder / "report.csv", "--topic", topic)
    page.say("Another group's position, to try something in its shadow first:")
    page.run("reset", f"{group}-shadow", "--from-group", group, "--execute", "--yes")

    page.say("## An active group", "", "It is refused with its members, where they run, and what stops them; `--wait 60s` waits for it. EMPTY and DEAD are moved.")  # fmt: skip
    consumer = foreign.join()
    page.run("reset", group, "--to-earliest", "--execute", "--yes")
    consumer.close()

    page.say("## Deleted", "", "A group, or its offsets of one topic: by Kafka's own tool where the stack's programs are at hand, else as here. `undo` brings them back.")  # fmt: skip
    page.run("delete", group, "--topic", f"{foreign.prefix}views", "--execute", "--yes")
    page.run("delete", f"{group}-shadow")
    page.run("delete", f"{group}-shadow", "--execute", "--yes")
    page.run("undo", f"{group}-shadow")


def _ours(page: Page, operated: Operated) -> None:
    topic = ("--topic", operated.pipeline.topic)
    operated.send(30, unreadable=[0])
    operated.apply(10, 7, 4)
    page.say(
        "## Groups of ours",
        "",
        "Their position is `progress` in the service's database, and Kafka's committed offset its mirror ([ADR 2](../adr/0002-progress-is-the-truth.md)).",
        "They are moved together, `progress` first; cut off between the two, the next start of the worker writes the mirror. Where `progress`",
        "cannot be reached nothing is moved. A plan says what the events between old and new are to the consumer: a group moved back is redelivered,",
        "and what is applied is skipped; one moved ahead SKIPS, and what was never applied is said loudly. More than `--count-limit` are not counted.",
        "",
        "`payrelay replay redeliver` fills such holes beside the running worker, `payrelay replay rebuild` makes a consumer's tables anew.",
    )  # fmt: skip
    page.run("describe", operated.group, *topic, "-p", "0")
    page.run("reset", operated.group, "--to-earliest", *topic)
    page.run("reset", operated.group, "--to-latest", *topic)
    page.run(
        "peek", operated.group, *topic, "-p", "0", "--before", 10, "--after", 0, "-o", "csv", only="^topic|,0,.*PARKED"
    )
    page.say(
        "An order or an event is a position: the partitions that hold it stand at its first event, the others stay."
    )
    page.run("reset", operated.group, "--to-order", operated.pipeline.sent[13].order_no)
    page.run("reset", operated.group, "--to-event", operated.ids[3], "--execute", "--yes")
    page.run("undo", operated.group, "--execute", "--yes")
    page.say(
        "What another tool has committed moves nothing; `--from-kafka` adopts it, `--to-current` brings Kafka back into line."
    )
    from ops.kafka.groups import commit

    commit(operated.settings, operated.group, {(operated.pipeline.topic, 1): 10})
    page.run("reset", operated.group, "--from-kafka", *topic, "-p", "1")


def _stopping(page: Page, folder: Path) -> None:
    page.say(
        "## Workers of the local stack",
        "",
        "`--stop-workers` stops the parts that run the group and starts them again, also after an error or Ctrl-C; what is confirmed was planned",
        "while they stood still. Killed, the command leaves nothing stopped: its stop is a locked file, and the supervisor starts the part again as",
        "soon as nobody holds it. `payrelay stop PART` and `payrelay start PART` do the same by hand; `payrelay status` then shows `stopped`.",
    )  # fmt: skip
    page.run("reset", "points", "--to-current", "--stop-workers", "--execute", "--yes", "--undo-file", folder / "undo.csv",
             only=r"^(stopping|points|starting)")  # fmt: skip
