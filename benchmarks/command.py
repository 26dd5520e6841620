"""payrelay bench: measured figures. The command line finds it as an entry point of the group payrelay.commands."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli.options import Output
from ops.cli.output import Format, print_json, print_rows, say


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="benchmark: startup, latency, throughput, repair, delivery, ledger, poison, rebuild, reconcile or notifier"
        ),
    ],
    output: Output = Format.TABLE,
) -> None:
    """Run a benchmark on a stack of its own. Exit code 1 if a target is missed or the run is not valid."""
    from benchmarks import report

    if name not in report.NAMES:
        raise typer.BadParameter(f"there is no benchmark {name!r}; there are: {', '.join(report.NAMES)}")
    outcome = report.run(name)
    if output is Format.JSON:
        print_json(outcome)
    else:
        print_rows(outcome["targets"], output)
        say(f"{outcome['machine']}, load {outcome['load']}")
    if (
        not outcome.get("valid", True)
        or not outcome.get("holds", True)
        or not all(row["ok"] for row in outcome["targets"])
    ):
        raise typer.Exit(1)
