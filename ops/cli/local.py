"""The local stack: setup, up, down, stop, start, restart."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer

from ops.cli.context import this_stack
from ops.cli.options import Stack
from ops.cli.output import legible, say
from ops.stack.state import PartState, StackFolder


def setup() -> None:
    """Download the programs that the local stack needs, and check each by sha256.

    Programs that are there already are only checked, without the network.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ops.cli.output import errors
    from ops.stack.programs import installed_programs, locked

    programs = installed_programs(this_stack().home)
    columns = (
        TextColumn("Kafka, Kafka Connect, Debezium"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
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
    infrastructure: Annotated[
        bool,
        typer.Option("--infrastructure", help="start PostgreSQL, Kafka and Kafka Connect only, no services or workers"),
    ] = False,
) -> None:
    """Start the local stack, including parts that have failed or were stopped.

    Leaves one supervisor process, the parent of all parts. If the stack runs already and the code has changed, applies
    migrations, topics and the connector's configuration, restarts parts that run older code, and says what it changed.
    """
    from rich.live import Live
    from rich.text import Text

    from ops.cli.output import errors
    from ops.stack.control import up as start
    from ops.stack.renew import end_older_supervisor, renew

    folder = this_stack(stack)  # a name that is none is refused before anything is fetched
    setup()
    live = Live(console=errors, transient=True, refresh_per_second=8) if errors.is_terminal else nullcontext()
    with live as screen:

        def watch(states: list[PartState]) -> None:
            if screen is not None:
                lines = (legible(f"{state.name} {state.state} {state.condition}".rstrip()) for state in states)
                screen.update(Text("\n".join(lines)))  # text: a server's words are no markup

        changes = end_older_supervisor(folder)
        started = start(folder, infrastructure=infrastructure, watch=watch)
    if not started:
        changes += renew(folder)
    for change in changes:
        say(change)
    say("the stack is up" if started else f"the stack was up already{', and now runs this code' if changes else ''}")
    for line in _guide(folder):
        say(line)


def _guide(folder: StackFolder) -> list[str]:
    """Return where the stack's parts are, and what to do next."""
    from ops.stack.processes import HTTP_SERVICES

    ports = folder.read("ports.json")
    if not ports:
        return []
    addresses = {
        "PostgreSQL": f"127.0.0.1:{ports['postgres']}, database payrelay: payrelay sql",
        "Kafka": f"127.0.0.1:{ports['kafka']}: payrelay topics tail payment.order",
        "Kafka Connect": f"http://127.0.0.1:{ports['connect']}",
        **{f"service {name}": f"http://127.0.0.1:{ports[f'service:{name}']}" for name in HTTP_SERVICES},
    }
    width = max(map(len, addresses))
    return [
        *(f"  {name:<{width}}  {address}" for name, address in addresses.items()),
        "next: payrelay demo drives payments; payrelay console shows them; payrelay status and payrelay logs PART; payrelay down",
    ]


def down(
    stack: Stack = "", wipe: Annotated[bool, typer.Option("--wipe", help="also remove the stack's data")] = False
) -> None:
    """Stop the local stack. Its data stays unless --wipe is given."""
    from ops.stack.control import down as stop

    folder = this_stack(stack)
    there = folder.path.exists()
    was_up = stop(folder, wipe=wipe)
    wiped = (", its data removed" if there else f", and stack {folder.name} has no data") if wipe else ""
    say(("the stack is down" if was_up else "nothing was running") + wiped)


Parts = Annotated[
    list[str],
    typer.Argument(metavar="PART...", help="part names as `payrelay status` shows them, e.g. worker:accounting"),
]


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


def restart(parts: Parts, stack: Stack = "") -> None:
    """Restart parts of the local stack, including stopped ones."""
    from ops.stack.control import restart as restart_parts

    restart_parts(this_stack(stack), parts)
    say(f"running again: {', '.join(parts)}")
