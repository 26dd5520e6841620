"""payrelay demo: payments end to end, with the proof."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ops.cli.context import this_stack
from ops.cli.local import setup
from ops.cli.options import Output, Stack, decimal, whole
from ops.cli.output import Format, print_json, print_line, print_rows, say
from ops.stack.state import StackFolder
from outbox.errors import Refused

if TYPE_CHECKING:
    from outbox.settings import Settings

STAGES = ("paid", "settled", "effects", "notified")


def demo(
    orders: Annotated[int, typer.Option("--orders", parser=whole(1, 1_000_000), help="payments to drive")] = 300,
    seed: Annotated[int, typer.Option("--seed", parser=whole(), help="the same seed gives the same orders")] = 1,
    rate: Annotated[
        float | None,
        typer.Option("--rate", parser=decimal(0.1, 10_000), help="payments per second; default: as fast as possible"),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave the stack running if the demo started it")] = False,
    patience: Annotated[
        float,
        typer.Option(
            "--patience",
            parser=decimal(1, 86_400),
            help="seconds without progress after which the proof is made anyway",
        ),
    ] = 60.0,
    stack: Stack = "",
    output: Output = Format.TABLE,
) -> None:
    """Drive payments through the real services and prove that none was lost and none was doubled.

    Starts the stack if it is down, and stops it at the end. Refuses to run while an operator has parts stopped. Exit code 1
    unless unsettled, lost, doubled and parked are 0 and everything balances.
    """
    from ops.demo.run import as_json, run_demo

    with _running(stack, keep=keep) as settings:
        with _bars() as watch:
            proof, figures = run_demo(
                settings, this_stack(stack), orders=orders, seed=seed, rate=rate, patience_s=patience, watch=watch
            )
        content = as_json(proof, figures)
    if output is Format.JSON:
        print_json(content)
    else:
        print_rows([{"what": name, "result": value} for name, value in _flat(content)], output)
    for finding in proof.findings[:50]:
        say(f"  {finding}")
    if not proof.holds:
        say("the proof does not hold: the lines above say what is wrong; for details: payrelay reconcile")
        raise typer.Exit(1)
    if output is Format.TABLE:
        print_line("")
        print_line("Every payment arrived once: lost 0, doubled 0, and the ledger balances.")


@contextlib.contextmanager
def _running(stack: str, *, keep: bool) -> Generator[Settings]:
    """The stack is up meanwhile; what was started here ends here, also after Ctrl-C."""
    from ops.stack.control import down, up
    from outbox.settings import Settings

    given = Settings()
    if given.kafka_bootstrap:
        yield given
        return
    signal.signal(signal.SIGTERM, _interrupt)
    folder = this_stack(stack)  # a name that is none is refused before anything is fetched
    setup()
    was_up = folder.is_up()
    _require_all_wanted(folder, was_up=was_up)
    try:
        if not was_up:
            say("starting PostgreSQL, Kafka, Kafka Connect, services and workers")
        up(folder, with_parent=not keep)
        yield folder.settings()
    finally:
        if not was_up and not keep:
            down(folder)


def _require_all_wanted(folder: StackFolder, *, was_up: bool) -> None:
    """No part was stopped: what an operator stopped is his to start. Raises Refused naming the parts and the command."""
    if held := folder.stopped_parts():
        command = f"payrelay start {' '.join(sorted(held))}" if was_up else "payrelay up"
        why = ", ".join(f"{part} ({reason})" for part, reason in sorted(held.items()))
        raise Refused(f"the demo needs every part, but some were stopped: {why}. Start them first: {command}")


def _interrupt(_signum: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _bars() -> Generator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from ops.cli.output import errors

    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        tasks: dict[str, TaskID] = {name: progress.add_task(name, total=None) for name in STAGES}

        def watch(stage: str, done: int, total: int) -> None:
            progress.update(tasks[stage], completed=done, total=total)

        yield watch


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in content.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name} ")
        elif not isinstance(value, list):
            flat.append((prefix + name, value))
    return flat
