"""payrelay status, logs: what a local stack's files say."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ops.cli.context import this_stack
from ops.cli.options import Output, Stack, whole
from ops.cli.output import Format, print_line, print_rows, reader_has_gone, say
from ops.stack.processes import is_worker
from ops.stack.state import PartState, StackFolder, file_stem, part_of
from outbox.errors import Refused, UnknownName

LESS = ("metrics_port", "version", "since", "restarts", "pid", "port", "last_exit", "condition")
"""Columns of `status` that a narrow terminal does without, in this order."""


def status(stack: Stack = "", output: Output = Format.TABLE) -> None:
    """Show each part of the stack (state, pid, ports, version, start, restarts, last exit, condition), and the last round of upkeep.

    A worker that waits for its database or its broker is `waiting`. The condition of a `starting` part says how far it is.
    Exit code 1 unless every part runs and the last upkeep succeeded.
    """
    folder = this_stack(stack)
    stopped = folder.stopped_parts()
    rows = [_row(folder, state, stopped.get(state.name, "")) for state in folder.states()]
    if rows:
        _mark_older(folder, rows)
        rows.append(_upkeep(folder))
    print_rows(rows, output, less=LESS)
    if not rows:
        say("no stack runs here. To start it: payrelay up")
    if not rows or any(row["state"] not in ("running", "done") for row in rows):
        raise typer.Exit(1)


def _upkeep(folder: StackFolder) -> dict[str, Any]:
    """Return the last round of upkeep as a row."""
    from ops.pipeline.upkeep_report import REPORT, Upkeep

    said = folder.read(REPORT)
    if not said:
        return asdict(PartState(name="upkeep", state="done", condition="no round yet"))
    report = Upkeep(**said)
    state = "failed" if report.errors else "done"
    return asdict(PartState(name="upkeep", state=state, since=report.at, condition=report.summary()))


WAITING = ("waiting", "does not answer")
"""How the condition of a worker begins that lacks its database or its broker."""


def _row(folder: StackFolder, state: PartState, stopped: str) -> dict[str, Any]:
    """Return a part as a row: one that says of itself that it waits is not shown as running."""
    row = asdict(state) | {"condition": stopped or state.condition}
    if state.state == "running" and is_worker(state.name):
        said = folder.read(f"conditions/{file_stem(state.name)}.json")
        own = state.name.partition(":")[2]
        row["condition"] = "; ".join(text if name == own else f"{name}: {text}" for name, text in said.items())
        if any(text.startswith(WAITING) for text in said.values()):
            row["state"] = "waiting"
    return row


OLDER = "runs older code"


def _mark_older(folder: StackFolder, rows: list[dict[str, Any]]) -> None:
    """The rows of running parts that were started from other code than is here now say so, and it is said what renews them."""
    from ops.stack.code import CODE, named, outdated_files, outdated_parts

    code = folder.read(CODE)
    if not folder.is_up() or not code:
        return
    older = set(outdated_parts(code))
    marked = [row for row in rows if row["name"] in older and row["pid"] is not None]
    for row in marked:
        row["condition"] = "; ".join(filter(None, [row["condition"], OLDER]))
    if files := outdated_files(code):
        say(f"the supervisor {OLDER} ({named(files)}); to start the whole stack again: payrelay up")
    elif marked:
        say(f"older code runs in {', '.join(row['name'] for row in marked)}; to restart what runs it: payrelay up")


def logs(
    part: Annotated[
        str, typer.Argument(help="name of a part as `payrelay status` shows it, or supervisor; default: all of them")
    ] = "",
    stack: Stack = "",
    lines: Annotated[int, typer.Option("-n", "--lines", parser=whole(1, 1_000_000), help="lines of each log")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="keep printing new lines until Ctrl-C")] = False,
) -> None:
    """Print the end of a part's log, or of every part's."""
    folder = this_stack(stack)
    known = {part_of(path.stem): path for path in sorted(folder.logs.glob("*.log"))}
    if part and part not in known:
        raise UnknownName(
            f"there is no log of {part!r}; there are: {', '.join(known) or 'none, the stack was never up: payrelay up'}"
        )
    wanted = {part: known[part]} if part else known
    if not wanted:
        raise Refused("there are no logs, because the stack was never up: payrelay up")
    tail = ["/usr/bin/env", "tail", f"-n{lines}"]
    try:
        if follow:
            _print_log([*tail, "-F", *(path.name for path in wanted.values())], folder.logs)
            return
        for name, path in wanted.items():
            if not part:
                print_line(f"==> {name} <==")
            _print_log([*tail, str(path)], folder.logs)
    except KeyboardInterrupt:
        return


def _print_log(tail: list[str], logs: Path) -> None:
    """What `tail` prints of logs is printed under the names of their parts; on a terminal with what would steer it written out."""
    import subprocess

    with subprocess.Popen(tail, cwd=logs, stdout=subprocess.PIPE, text=True, errors="backslashreplace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            header = re.fullmatch(r"==> (.+)\.log <==\n", line)
            text = f"==> {part_of(header[1])} <==\n" if header else line
            if sys.stdout.isatty():
                print_line(text.removesuffix("\n"))
            else:
                sys.stdout.write(text)
                sys.stdout.flush()
            if reader_has_gone():
                process.terminate()
                return
