"""payrelay doctor and upkeep."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli.context import current_settings, local_folder
from ops.cli.intent import is_meant
from ops.cli.options import DAY_S, Output, Yes, whole
from ops.cli.output import Format, print_rows, say, say_rows
from ops.cli.times import Zone, instant, time_option
from outbox.clock import utc_now

if TYPE_CHECKING:
    from ops.pipeline.upkeep_report import Upkeep


def doctor(
    repair: Annotated[
        bool,
        typer.Option("--repair-slot", help="repair a lost slot or publication; without --execute, only show the plan"),
    ] = False,
    since: Annotated[
        datetime | None,
        time_option(
            "--since",
            "with --repair-slot: look for unpublished events from this time on, e.g. 2026-11-23T08:00:00+0800",
        ),
    ] = None,
    tz: Zone = "",
    execute: Annotated[bool, typer.Option("--execute", help="with --repair-slot: carry out the repair")] = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Check that every recorded event arrives, and that everything that should run does. Exit code 1 if something is wrong.

    Each finding names the command that fixes it.
    """
    from ops.pipeline.checks import examine
    from ops.pipeline.repair import plan_repair, repair_slot

    if execute and not repair:
        raise typer.BadParameter("--execute needs --repair-slot: doctor's checks change nothing")
    since = instant(since, tz)
    settings = current_settings()
    if repair:
        plan = plan_repair(settings, now=utc_now(), since=since)
        say(f"{len(plan.missing)} recorded events are on no topic")
        say(
            f"{plan.rows} rows of the last {plan.minutes:.0f} minutes will be published; consumers drop events that are already applied"
        )
        question = "stop the connector, make slot and publication new, and publish these rows?"
        if is_meant(execute=execute, yes=yes, does="repairs slot and publication", question=question):
            repair_slot(settings, plan, say=say)
    checks = examine(settings, now=utc_now(), folder=local_folder())
    print_rows([asdict(check) for check in checks], output)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def upkeep(
    every: Annotated[
        int,
        typer.Option(
            "--every", parser=whole(0, DAY_S), metavar="SECONDS", help="seconds between rounds; 0 runs one round"
        ),
    ] = 0,
    catch_up: Annotated[
        bool,
        typer.Option("--catch-up", help="drop every day that is due, not just two of each table; first only shown"),
    ] = False,
    execute: Annotated[bool, typer.Option("--execute", help="with --catch-up: drop them")] = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Create partitions for the days ahead, drop days past their retention, and purge old answers to the bank.

    Runs one round, or one every --every seconds, with -o json each round is a line. Needs the owner's DSN. The local stack runs a round every hour by itself.
    A day is dropped only when nothing can need it any more. Retention counts back from the earliest of three times: the
    host's clock, the database's clock, the newest row. A round drops at most two days of each table. Exit code 1 if a part
    of the round failed; the next round tries that part again.
    """
    from ops.pipeline.upkeep import upkeep as one_round

    if (every and catch_up) or (execute and not catch_up):
        raise typer.BadParameter("--execute needs --catch-up, which runs one round: not with --every")
    settings = current_settings()
    if catch_up:
        plan = one_round(settings, now=utc_now(), catch_up=True, execute=False)
        count = len(plan.dropped)
        execute = execute and count > 0
        if not execute or output is Format.TABLE:  # else what was done is the document
            print_rows(plan.rows(planned=True), output, columns=("what", "outcome"))
        elif not yes:
            say_rows(plan.rows(planned=True))
        ahead, question = f"{count} days would be dropped", f"drop {count} days?"
        if not is_meant(ahead, execute=execute, yes=yes, does="drops them", question=question):
            raise typer.Exit(1 if plan.errors else 0)
    while True:
        report = one_round(settings, now=utc_now(), catch_up=catch_up)
        _tell(report, output, again=every > 0)
        if not every:
            break
        try:
            time.sleep(every)
        except KeyboardInterrupt:
            return
    if report.errors:
        raise typer.Exit(1)


def _tell(report: Upkeep, output: Format, *, again: bool) -> None:
    """A round's report is printed, and kept where `payrelay status` looks."""
    from ops.pipeline.upkeep_report import REPORT

    if (local := local_folder()) is not None:
        try:
            local.write(REPORT, asdict(report))
        except OSError as error:  # a full disk, say: the rounds go on
            say(f"the report cannot be written, so `payrelay status` misses this round: {error}")
    print_rows(report.rows(), output, columns=("what", "outcome"), again=again)
    say(f"{report.at} {report.summary()}")
