"""How-to pages that are run: each `$ command` of a console block, and what it prints held against what the page says.

    <!-- name -->          a hook of the test's: the fault, or the wait for what comes by itself
    ```console             commands and their output, in order; ids, times and the like may differ
    ```console numbers     the numbers may differ too
    …                      in an output: anything, within a line or any lines

`pytest --write-pages` writes outputs that differ back to the page, and fails nowhere for them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ops.stack.state import StackFolder

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs/how-to"
COMMAND_S = 120

_PART = re.compile(
    r"^<!-- (?P<hook>\w+) -->$|^```console(?P<numbers> numbers)?\n(?P<block>.*?)^```$", re.MULTILINE | re.DOTALL
)
_COMMAND = re.compile(r"^\$ (?P<command>.*)\n(?P<output>(?:(?!\$ ).*\n)*)", re.MULTILINE)

_VARYING = [
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\b[PB][0-9a-f]{32}\b"), "NO"),
    (re.compile(r"\bD\d{18}\b"), "RUN"),
    (re.compile(r"\b[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\b"), "TRACE"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?"), "TIME"),
    (re.compile(r"\b\d{8}T\d{6}\.\d+Z"), "TIME"),
    (re.compile(r"(?<!\S)[\w+/-]{22}(?!\S)"), "TOPIC-ID"),
    (re.compile(r"\blsn [0-9A-F]+/[0-9A-F]+"), "LSN"),
    (re.compile(r"\b(\w+\.\w+/)\d+@\d+"), r"\1PLACE"),
    (re.compile(r"-?\b\d+\.\d+\b"), "FLOAT"),
    (re.compile(r"[ \t]+"), " "),
]
_FLOAT = re.compile(r"\bFLOAT\b")
_NUMBER = re.compile(r"(?<!exit code )(?<![\w-])-?\d[\d,]*\b")


@dataclass(frozen=True)
class Terminal:
    """A shell whose `payrelay` means a stack."""

    folder: StackFolder
    path: Sequence[Path]
    """Where programs are looked for first."""
    environment: Mapping[str, str] = field(default_factory=dict)
    root: Path = ROOT
    """Where commands run."""

    def run(self, command: str) -> str:
        """Return what a command prints on both channels, its exit code behind it where that is not 0."""
        path = ":".join([*map(str, self.path), os.environ["PATH"]])
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            env={**os.environ, "PATH": path, "PAYRELAY_STACK": self.folder.name, **self.environment},
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        printed = done.stdout.replace(f"{self.root}/", "").replace(f"/stacks/{self.folder.name}/", "/stacks/local/")
        lines = [line.rstrip() for line in printed.splitlines()]
        code = [f"(exit code {done.returncode})"] if done.returncode else []
        return "".join(f"{line}\n" for line in [*lines, *code])


def follow(page: Path, run: Callable[[str], str], hooks: Mapping[str, Callable[[], object]], *, write: bool) -> None:
    """Every command of the page was run, every hook called, in the page's order, and each output is the page's.

    With `write`, the page has the outputs instead, where they differ. Raises AssertionError for one that differs, for a page
    without commands, and for a hook that is not on the page.
    """
    text = page.read_text()
    called, written, done = set(), [], 0
    for part in _PART.finditer(text):
        written.append(text[done : part.start()])
        done = part.end()
        if hook := part["hook"]:
            hooks[hook]()
            called.add(hook)
            written.append(part[0])
            continue
        numbers = part["numbers"] or ""
        written.append(replayed(part["block"], run, numbers=numbers, write=write))
    assert called == set(hooks), f"{page.name} does not call {set(hooks) - called}"
    assert "```console" in text, f"{page.name} has no commands"
    if write:
        page.write_text("".join(written) + text[done:])


def replayed(block: str, run: Callable[[str], str], *, numbers: str, write: bool) -> str:
    """Return a console block after its commands were run: as it was, or with `write` with their outputs where they differ.

    Raises AssertionError for an output that differs, unless it writes.
    """
    steps = []
    for step in _COMMAND.finditer(block):
        printed = run(step["command"])
        same = agrees(step["output"], printed, numbers=bool(numbers))
        assert same or write, f"$ {step['command']}\n{printed}\nbut the page says\n{step['output']}"
        steps.append(f"$ {step['command']}\n{step['output'] if same else printed}")
    return f"```console{numbers}\n{''.join(steps)}```"


def agrees(expected: str, printed: str, *, numbers: bool = False) -> bool:
    """Return whether an output is as expected, except for values that vary, parts left out with `…`, and the order of its lines.

    Two things that happen at once may print in either order. An exit code is never left out.

    >>> agrees("P0123456789abcdef0123456789abcdef  2 events\\n", "Pfedcba9876543210fedcba9876543210 2 events\\n")
    True
    >>> agrees("2 events\\n", "3 events\\n"), agrees("2 events\\n", "3 events\\n", numbers=True)
    (False, True)
    >>> agrees("a  1   b\\n", "a  1000  b\\n", numbers=True)
    True
    >>> agrees("one\\ntwo\\n", "two\\none\\n"), agrees("one\\ntwo\\n", "two\\n")
    (True, False)
    >>> agrees("one …\\n…\\n", "zero\\none two\\n"), agrees("…\\n", "one\\n(exit code 1)\\n")
    (True, False)
    """
    lines, left = _masked(expected, numbers=numbers), _masked(printed, numbers=numbers)
    for line in sorted(lines, key=lambda text: "…" in text):
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        counterpart = next((candidate for candidate in left if pattern.fullmatch(candidate)), None)
        if line != "…" and counterpart is None:
            return False
        if line != "…":
            left.remove(counterpart)
    return not left or ("…" in lines and not any(line.startswith("(exit code") for line in left))


def _masked(output: str, *, numbers: bool) -> list[str]:
    for varying, name in [*_VARYING, *([(_NUMBER, "N"), (_FLOAT, "N")] if numbers else [])]:
        output = varying.sub(name, output)
    # A column is as wide as its longest number, or as what may also stand in it.
    lines = [line.strip() for line in output.splitlines()]
    return [re.sub("-{3,}", "---", re.sub(" {2,}", "  ", line)) for line in lines] if numbers else lines
