"""The local stack: setup, up, down, stop, start, status, logs."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from ops.cli.options import whole
from ops.cli.output import Format, Output, errors, legible, print_line, print_rows, reader_has_gone, say
from ops.stack.processes import is_worker
from ops.stack.state import PartState, StackFolder, file_stem, part_of
from outbox.errors import Refused, UnknownName
from outbox.settings import Environment

Stack = Annotated[str, typer.Option("--stack", help="which stack; several may run side by side")]


def this_stack(name: str = "") -> StackFolder:
    """Return the folder of the named stack, or of the one the environment names."""
    return StackFolder(name=name or Environment().payrelay_stack)


def setup() -> None:
    """Fetch the stack's programs and check them by sha256. Repeated, it only checks, and needs no network."""
    from ops.stack.programs import installed_programs, locked

    programs = installed_programs(this_stack().home)
    columns = (
        TextColumn("Kafka, Kafka Connect, Debezium"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("checking", total=None)

        def advance(name: str, done: int, total: int) -> None:
            progress.update(task, description=name, completed=done, total=total)
            if not errors.is_terminal and (done % 20 == 0 or done == total):
                say(f"  {done} of {total} programs")

        fetched = programs.install(advance)
    if fetched:
        say(f"{fetched} of {len(locked())} programs fetched and checked by sha256")


def up(
    stack: Stack = "",
    infrastructure: Annotated[bool, typer.Option("--infrastructure", help="without services and workers")] = False,
) -> None:
    """Start the local stack; parts that have failed or were stopped are started. Leaves one supervisor process, the parent of all parts."""
    from ops.stack.control import up as start

    folder = this_stack(stack)  # a name that is none is refused before anything is fetched
    setup()
    live = Live(console=errors, transient=True, refresh_per_second=8) if errors.is_terminal else nullcontext()
    with live as screen:

        def watch(states: list[PartState]) -> None:
            if screen is not None:
                lines = (legible(f"{state.name} {state.state} {state.condition}".rstrip()) for state in states)
                screen.update(Text("\n".join(lines)))  # text: a server's words are no markup

        started = start(folder, infrastructure=infrastructure, watch=watch)
    say("the stack is up" if started else "the stack was up already")


def down(stack: Stack = "", wipe: Annotated[bool, typer.Option("--wipe", help="remove its data too")] = False) -> None:
    """Stop the local stack. Data stays, unless --wipe is given."""
    from ops.stack.control import down as stop

    folder = this_stack(stack)
    there = folder.path.exists()
    was_up = stop(folder, wipe=wipe)
    wiped = (", its data removed" if there else f", and stack {folder.name} has no data") if wipe else ""
    say(("the stack is down" if was_up else "nothing was running") + wiped)


Parts = Annotated[list[str], typer.Argument(metavar="PART...", help="as status shows them, e.g. worker:accounting")]


def stop(parts: Parts, stack: Stack = "") -> None:
    """Stop parts of the local stack. They stay stopped until `payrelay start` or `payrelay up`."""
    from ops.stack.control import stop as stop_parts

    stop_parts(this_stack(stack), parts)
    say(f"stopped: {', '.join(parts)}")


def start(parts: Parts, stack: Stack = "") -> None:
    """Start parts of the local stack that were stopped or have failed."""
    from ops.stack.control import start as start_parts

    start_parts(this_stack(stack), parts)
    say(f"running: {', '.join(parts)}")


LESS = ("metrics_port", "version", "since", "restarts", "pid", "port", "last_exit", "condition")
"""Columns of `status` that a narrow terminal does without, in this order."""


def status(stack: Stack = "", output: Output = Format.TABLE) -> None:
    """Show each part: state, pid, ports, version, since when, restarts, last exit, condition; and the last round of upkeep.

    A worker that waits for its database or its broker is `waiting`; the condition of a part that is `starting` says how it gets on.
    Exit code 1 unless all run and upkeep is done.
    """
    folder = this_stack(stack)
    stopped = folder.stopped_parts()
    rows = [_row(folder, state, stopped.get(state.name, "")) for state in folder.states()]
    if rows:
        rows.append(_upkeep(folder))
    print_rows(rows, output, less=LESS)
    if not rows:
        say("no stack here: payrelay up")
    if not rows or any(row["state"] not in ("running", "done") for row in rows):
        raise typer.Exit(1)


def _upkeep(folder: StackFolder) -> dict[str, Any]:
    """Return the last round of upkeep as a row."""
    from ops.pipeline.upkeep import REPORT, Upkeep

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


def logs(
    part: Annotated[
        str,
        typer.Argument(help="a part's name as status shows it, or supervisor; the parts and the supervisor without it"),
    ] = "",
    stack: Stack = "",
    lines: Annotated[int, typer.Option("-n", "--lines", parser=whole(1, 1_000_000))] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow")] = False,
) -> None:
    """Print the end of a part's log, or of every part's."""
    folder = this_stack(stack)
    known = {part_of(path.stem): path for path in sorted(folder.logs.glob("*.log"))}
    if part and part not in known:
        raise UnknownName(f"no log of {part!r}; there are: {', '.join(known) or 'none, the stack was never up'}")
    wanted = {part: known[part]} if part else known
    if not wanted:
        raise Refused("no logs: the stack was never up")
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


COMMANDS = (setup, up, down, stop, start, status, logs)
