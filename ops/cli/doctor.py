"""payrelay doctor and upkeep."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated

import typer

from ops.cli.output import Format, Output, print_rows, say
from ops.cli.pipeline import current_settings
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
    """Judge the pipeline by what moves: heartbeat, slot, lag; not by what Kafka Connect says. Exit code 1 if something is wrong."""
    from ops.doctor import examine, plan_repair, repair_slot

    settings = current_settings()
    if repair:
        plan = plan_repair(settings, now=utc_now(), since=since)
        say(f"{len(plan.missing)} recorded events are on no topic")
        say(f"{plan.rows} rows of the last {plan.minutes:.0f} minutes will be emitted; those known already are dropped")
        if not yes:
            typer.confirm("stop the connector, make slot and publication new, and emit them?", abort=True, err=True)
        repair_slot(settings, plan, say=say)
    checks = examine(settings, now=utc_now())
    print_rows([asdict(check) for check in checks], output)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def upkeep(output: Output = Format.TABLE) -> None:
    """Make days ahead, and drop days past their retention that nothing needs any more. For cron; the local stack makes its days itself."""
    from outbox.migrate import owner_engine
    from outbox.partitions import drop_days, make_days
    from outbox.settings import SERVICES

    settings = current_settings()
    engine, today = owner_engine(settings), utc_now().date()
    rows = [{"day": name, "outcome": "made"} for name in make_days(engine, SERVICES, today=today)]
    for service in SERVICES:
        for table, days in (("outbox", settings.outbox_days), ("inbox", settings.inbox_days)):
            before = today - timedelta(days=days)
            dropped, kept = drop_days(engine, service, table, before=before, slot=settings.slot)
            rows += [{"day": name, "outcome": "dropped"} for name in dropped]
            rows += [{"day": f"{service}.{name}", "outcome": f"kept: {reason}"} for name, reason in kept.items()]
    print_rows(rows, output, columns=("day", "outcome"))


COMMANDS = (doctor, upkeep)
