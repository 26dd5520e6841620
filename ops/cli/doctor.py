"""payrelay doctor and upkeep."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from ops.cli.output import Format, Output, print_rows, say
from ops.cli.pipeline import current_settings, local_folder
from outbox.clock import utc_now


def doctor(
    repair: Annotated[bool, typer.Option("--repair-slot", help="mend a lost slot or publication")] = False,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--since",
            formats=["%Y-%m-%dT%H:%M:%S%z"],
            help="look for unpublished events from then on, e.g. 2026-11-23T08:00:00+0800",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Judge whether everything recorded arrives, and whether everything runs that should run. Exit code 1 if something is wrong.

    Each finding names the command that fixes it.
    """
    from ops.doctor import examine
    from ops.pipeline.repair import plan_repair, repair_slot

    settings = current_settings()
    if repair:
        plan = plan_repair(settings, now=utc_now(), since=since)
        say(f"{len(plan.missing)} recorded events are on no topic")
        say(f"{plan.rows} rows of the last {plan.minutes:.0f} minutes will be emitted; those known already are dropped")
        if not yes:
            typer.confirm("stop the connector, make slot and publication new, and emit them?", abort=True, err=True)
        repair_slot(settings, plan, say=say)
    checks = examine(settings, now=utc_now(), folder=local_folder())
    print_rows([asdict(check) for check in checks], output)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def upkeep(
    every: Annotated[
        int, typer.Option("--every", min=0, metavar="SECONDS", help="for ever, with so long between two rounds")
    ] = 0,
    output: Output = Format.TABLE,
) -> None:
    """Make days ahead, drop days past their retention that nothing can need any more, purge old answers to the bank.

    One round, or for ever; needs the owner's DSN. The local stack does it by itself, every hour. Exit code 1 if a part of the
    round failed; the next round tries it again.
    """
    from ops.upkeep import REPORT
    from ops.upkeep import upkeep as one_round

    settings, local = current_settings(), local_folder()
    while True:
        report = one_round(settings, now=utc_now())
        if local is not None:
            local.write(REPORT, asdict(report))
        print_rows(report.rows(), output, columns=("what", "outcome"))
        say(f"{report.at} {report.summary()}")
        if not every:
            break
        try:
            time.sleep(every)
        except KeyboardInterrupt:
            return
    if report.errors:
        raise typer.Exit(1)


COMMANDS = (doctor, upkeep)
