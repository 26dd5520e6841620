"""Every `payrelay …` that is written in a page, in help, in a hint or in an alert is a command that parses: nothing is run."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import typer

from ops.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = ROOT / "docs/reference/cli.md"
SOURCES = [path for name in ("schemas", "outbox", "producers", "consumers", "connect", "ops", "benchmarks") for path in sorted((ROOT / name).rglob("*.py"))]  # fmt: skip

FILLED = "\x00"
"""Stands for a value that is filled in when the text is written."""
OPEN = re.compile(rf"{FILLED}|…|\.\.\.|<|>|^[A-Z][A-Z_]*(:[A-Z_]+)?$")
"""A value that stands for others."""
PROSE = {
    "and", "brings", "drives", "command", "commands", "forgets", "has", "lists", "makes", "moves", "needs", "notes", "on", "prints", "removes",
    "shows", "takes", "tell", "tells", "uses",
}  # fmt: skip
"""Words with which the sentence around a command goes on, in texts that have no marks around it."""
SESSIONS = {"owner", "repair", "notifier"}
"""What an application name of ours begins with, after `payrelay `: no command."""
OPERATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>", "2>&1", ">&2", "(", ")"}


@cache
def root() -> Any:
    return typer.main.get_command(app)


def problem(words: list[str], *, whole: bool) -> str:
    """Return why a command does not parse; empty where it does. `whole`: what it requires has to be there."""
    command, path = root(), []
    while words and (children := getattr(command, "commands", None)) is not None and not words[0].startswith("-"):
        if FILLED in words[0]:
            return ""
        if words[0] not in children:
            if getattr(command, "invoke_without_command", False):
                break
            return f"no command {words[0]!r}"
        path, command = [*path, words[0]], children[words[0]]
        words = words[1:]
    if path == ["tool"]:
        return ""
    if getattr(command, "commands", None) is not None and not getattr(command, "invoke_without_command", False):
        return "" if not whole or words in (["--help"], ["--version"]) else f"{' '.join(path)} lacks a command"
    context = typer.Context(command, info_name=" ".join(path))
    try:
        given, rest, _ = command.make_parser(context).parse_args(
            [word.rstrip(FILLED) if word.startswith("--") else word for word in words if word != "--help"]
        )
    except Exception as error:  # noqa: BLE001 - whatever the parser dislikes
        return str(getattr(error, "message", error))
    if rest := [word for word in rest if word != FILLED]:
        return f"too much: {rest}"
    for parameter in command.params:
        value = given.get(parameter.name)
        missing = value is None or value == () or "UNSET" in repr(value).upper()
        if whole and parameter.required and missing and "--help" not in words:
            return f"lacks {parameter.name}"
        for text in [] if missing else value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and not OPEN.search(text) and (wrong := refused(command, parameter, value)):
                return wrong
    return ""


def refused(command: Any, parameter: Any, value: Any) -> str:
    """Return why a parameter does not take a value; what has to be a file need not be there."""
    if "exists=True" in repr(getattr(parameter, "parameter_info", "")) or getattr(parameter, "type_name", "") == "path":
        return ""
    try:
        parameter.process_value(typer.Context(command), value)
    except Exception as error:  # noqa: BLE001
        return "" if "does not exist" in str(error) else f"{parameter.name}: {error}"
    return ""


def commands_in(line: str) -> Iterator[list[str]]:
    """Give the words of each payrelay command in a line of shell."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words = list(lexer)
    except ValueError:
        return
    current: list[str] | None = None
    for number, word in enumerate(words):
        if word in OPERATORS or re.fullmatch(r"[|&;<>()]+", word):
            if current is not None:
                if current and current[-1] == "2" and word.startswith(">"):
                    current.pop()
                yield current
            current = None
        elif current is not None:
            current.append(word)
        elif word.rsplit("/", 1)[-1] == "payrelay" and all("=" in before or before in OPERATORS or before == "$" for before in words[max(0, number - 1) : number]):  # fmt: skip
            current = []
    if current is not None:
        yield current


def alternatives(line: str) -> Iterator[list[str]]:
    """Give the commands of a line of usage such as `payrelay a b [--x] | c   what it is for`."""
    for chunk in re.split(r"\s{2,}", line.partition("payrelay ")[2].strip()):
        before: list[str] = []
        for text in re.split(r"\s*\|\s*", re.sub(r"[\[\]]", "", chunk)):
            words = [word for word, last in pairs(text.split()) if word != "…" or last.startswith("--")]
            group = groups_of(before)
            if not words:
                continue
            if words[0].startswith("-"):
                before = [*before, *words]
            elif before and words[0] in getattr(command_at(group), "commands", {}):
                before = [*group, *words]
            elif words[0] in root().commands:
                before = words
            elif not before:
                break  # what the line says of the command
            else:
                before = [*group, *words]
            yield before


def pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    return zip(words, ["", *words], strict=False)


def groups_of(words: list[str]) -> list[str]:
    """Return the words at the beginning that name groups."""
    command, path = root(), []
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None or not hasattr(command, "commands"):
            break
        path.append(word)
    return path


def command_at(path: list[str]) -> Any:
    command = root()
    for name in path:
        command = command.commands[name]
    return command


def written_in_pages() -> Iterator[tuple[str, list[str], bool]]:
    for page in PAGES:
        if page == GENERATED:
            continue
        fenced = False
        for number, line in enumerate(page.read_text().splitlines(), 1):
            place = f"{page.relative_to(ROOT)}:{number}"
            if line.startswith("```"):
                fenced = not fenced
            elif fenced and re.match(r"(\$ )?(\.venv/bin/)?payrelay ", line):
                if page.name == "README.md" or "[" in line:
                    yield from ((place, words, False) for words in alternatives(line))
                else:
                    command = re.split(r"\s{2,}", line.removeprefix("$ "))[0]
                    for words in commands_in(command):
                        sentence = next((number for number, word in enumerate(words) if word in PROSE), len(words))
                        yield place, words[:sentence], line.startswith("$")
            elif not fenced:
                for code in re.findall(r"`((?:\.venv/bin/)?payrelay [^`]+)`", line):
                    if re.search(r"\S?\|\S|\[", code):
                        yield from ((place, words, False) for words in alternatives(code))
                    else:
                        yield from ((place, words, False) for words in commands_in(code))


HINT = re.compile(
    r"(?<![\w/.-])payrelay ((?:--version|[a-z][a-z-]*(?= |$|[;,.:`)\n\"'])).*?)(?=$|`|\n|; |, |: |\. |\) |\)$|\.$)"
)


def written_in_source() -> Iterator[tuple[str, list[str], bool]]:
    for path in SOURCES:
        parts: set[int] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else FILLED for part in node.values)
                parts |= {id(part) for part in node.values}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                text = node.value
            else:
                continue
            for match in HINT.finditer(text):
                for words in commands_in(f"payrelay {match[1].rstrip('.')}"):
                    sentence = next((number for number, word in enumerate(words) if word in PROSE), len(words))
                    if words[0] not in SESSIONS and (kept := words[:sentence]):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", kept, False


def written_in_alerts() -> Iterator[tuple[str, list[str], bool]]:
    text = (ROOT / "ops/monitoring/alerts.yaml").read_text()
    for code in re.findall(r"`(payrelay [^`]+)`", re.sub(r"\{\{.*?\}\}", FILLED, text)):
        yield from (("ops/monitoring/alerts.yaml", words, False) for words in commands_in(code))


@pytest.mark.parametrize("written", [written_in_pages, written_in_source, written_in_alerts])
def test_every_command_that_is_written_down_parses(written: Any) -> None:
    commands = list(written())
    wrong = {
        f"{place}: payrelay {' '.join(words)}".replace(FILLED, "{}"): why
        for place, words, whole in commands
        if words and (why := problem(words, whole=whole))
    }
    assert not wrong, "\n".join(f"{text}  ->  {why}" for text, why in wrong.items())
    assert len(commands) > {"written_in_pages": 150, "written_in_source": 50, "written_in_alerts": 4}[written.__name__]


@pytest.mark.parametrize(
    "line",
    [
        "payrelay topics aply", "payrelay topics apply --do-it", "payrelay replay redeliver", "payrelay ledger reverse x --reason r",
        "payrelay status -o yaml", "payrelay stop", "payrelay timeline a b", "payrelay notify show no-uuid",
    ],
)  # fmt: skip
def test_what_does_not_parse_is_found(line: str) -> None:
    [words] = commands_in(line)
    assert problem(words, whole=True)


def test_what_parses_passes() -> None:
    for line in (
        "payrelay logs worker:funds 2>&1 | tail -n 1", "PAYRELAY_STACK=x payrelay topics list -o json >f", f"payrelay notify show {UUID(int=1)}",
    ):  # fmt: skip
        [words] = commands_in(line)
        assert problem(words, whole=True) == "", words
