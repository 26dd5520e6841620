"""Commands answer in the same way: what shows something takes -o, an option has one meaning, and standard output holds one document."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ops.cli.main import app
from ops.cli.output import Format

CLI = Path(__file__).resolve().parents[2] / "ops/cli"

SHOW_NOTHING = {
    "setup", "up", "down", "stop", "start", "restart", "migrate", "connect restart", "connect pause", "connect resume", "connect stop",
    "connect offsets reset", "notify pause", "notify resume", "replay checkpoint",
}  # fmt: skip
"""They act, and say on standard error what they have done."""
RUN = {"worker", "serve", "exporter", "console"}
"""They run until they are ended."""
TEXT = {
    "logs": "lines of the parts' own",
    "sql": "psql's own",
    "tool": "the program's own",
    "offsets export": "a file as kafka-consumer-groups reads it",
    "console user": "a line for the environment",
}
"""What they write is a text of another form."""
WHOLE = {"notify show", "parked show", "connect offsets get"}
"""They show one thing whole: JSON where nothing else is said."""
MEAN_OTHERWISE = {
    "--grace": "ledger check counts seconds, reconcile takes a span",
    "--topic": "offsets may take several",
    "--from-file": "offsets: a file to be read; connect offsets: what `get` has printed",
}
"""Options that commands may read in ways of their own, and why."""


def leaves(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None or (command.invoke_without_command and path):
        yield path, command
    for name, child in (children or {}).items():
        yield from leaves(child, f"{path} {name}".strip())


LEAVES = dict(leaves(typer.main.get_command(app)))


def options_of(command: Any) -> Iterator[Any]:
    yield from (item for item in command.params if item.param_type_name == "option" and item.name != "help")


def output_of(command: Any) -> Any:
    return next((item for item in options_of(command) if "--output" in item.opts or "-o" in item.opts), None)


def test_every_command_takes_an_output_format_or_shows_nothing() -> None:
    without = {path for path, command in LEAVES.items() if output_of(command) is None}
    assert without == SHOW_NOTHING | RUN | TEXT.keys()


@pytest.mark.parametrize("path", sorted(LEAVES.keys() - SHOW_NOTHING - RUN - TEXT.keys()))
def test_the_output_format_is_the_same_option_everywhere(path: str) -> None:
    option = output_of(LEAVES[path])
    assert option.opts == ["-o", "--output"]
    assert option.type_descriptor.annotation is Format
    assert option.default is (Format.JSON if path in WHOLE else Format.TABLE)
    assert option.help.startswith("output format: table, json or csv")


@pytest.mark.parametrize("path", sorted(SHOW_NOTHING | RUN))
def test_what_takes_no_output_format_writes_nothing_on_standard_output(path: str) -> None:
    source = inspect.getsource(LEAVES[path].callback)
    assert not re.search(r"print_(rows|json|object|line)\(|sys\.stdout\.write\(", source)


def test_an_option_is_one_thing_in_every_command() -> None:
    meanings: dict[str, dict[tuple[object, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
    for path, command in LEAVES.items():
        for option in options_of(command):
            annotation = option.type_descriptor.annotation
            meaning = (tuple(sorted(option.opts)), option.is_flag, option.metavar, str(annotation))
            for name in option.opts:
                if name.startswith("--"):
                    meanings[name][meaning].append(path)
    differing = {name: dict(of) for name, of in meanings.items() if len(of) > 1 and name not in MEAN_OTHERWISE}
    for name in ("--from", "--since"):  # snapshot takes both words
        differing.pop(name, None)
    assert differing == {}


def test_help_of_a_stream_says_that_its_json_is_lines() -> None:
    streams = {path for path, command in LEAVES.items() if {"--watch", "--every", "--no-follow"} & {name for item in options_of(command) for name in item.opts}}  # fmt: skip
    assert streams == {"topics tail", "upkeep", "offsets describe"}
    for path in streams:
        assert re.search(r"-o json .*\bline\b", " ".join(LEAVES[path].help.split())), path


def test_only_exact_texts_are_written_beside_the_module_that_keeps_standard_output() -> None:
    """A note or file that another command reads, a log's own lines."""
    written = {
        f"{path.name}:{line.strip()}"
        for path in CLI.glob("*.py")
        if path.name != "output.py"
        for line in path.read_text().splitlines()
        if "sys.stdout.write(" in line
    }
    assert written == {
        "connect.py:sys.stdout.write(positions.noted.as_text())",
        "console.py:sys.stdout.write(f\"PAYRELAY_CONSOLE_USERS__{name.upper()}='{said}'\\n\")",
        'offsets.py:sys.stdout.write("".join(map(_shown_line, content.splitlines())))',
        "status.py:sys.stdout.write(text)",
    }
