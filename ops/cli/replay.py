"""payrelay replay: redeliver."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from ops.cli.output import Format, Output, print_rows, say
from ops.cli.pipeline import FORMATS, Zone, current_settings, instant

if TYPE_CHECKING:
    from consumers.redeliver import Redelivered

app = typer.Typer(help="Events of the past, once more through the same handlers.", no_args_is_help=True)

COUNTS = ("applied", "superseded", "known", "resent", "parked", "waiting", "refused", "failed", "unreadable", "outside")


@app.callback()
def replay() -> None:
    """Events of the past, once more through the same handlers."""


@app.command("redeliver")
def redeliver(
    consumer: Annotated[str, typer.Option("--consumer", help="e.g. accounting")],
    topic: Annotated[str, typer.Option("--topic", help="one of the consumer's; all of them without it")] = "",
    begin: Annotated[
        datetime | None,
        typer.Option("--from", formats=FORMATS, metavar="TIME", help="appended, or recorded, from then on"),
    ] = None,
    end: Annotated[
        datetime | None,
        typer.Option("--to", formats=FORMATS, metavar="TIME", help="appended, or recorded, before then"),
    ] = None,
    tz: Zone = "",
    key: Annotated[str, typer.Option("--key", help="record key, e.g. a payment number")] = "",
    type_: Annotated[str, typer.Option("--type", help="e.g. payment.settled.v1")] = "",
    order: Annotated[str, typer.Option("--order", help="order number")] = "",
    event: Annotated[list[UUID] | None, typer.Option("--event", help="event id; may be given several times")] = None,
    from_outbox: Annotated[
        bool, typer.Option("--from-outbox", help="what never reached the topic, or is there no longer")
    ] = False,
    resend_external: Annotated[
        bool,
        typer.Option("--resend-external", help="also tell the outside again of what was applied, under the same ids"),
    ] = False,
    execute: Annotated[bool, typer.Option("--execute", help="without it, only show what would be done")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Hand events to a consumer once more: what it has not applied is applied, what it has is dropped.

    Beside its running worker, whose position stays. Exit code 1 if something failed, was refused or was not found.
    """
    from ops.replay import carry_out, plan
    from ops.window import Window

    settings = current_settings()
    window = Window(
        topic=topic, begin=instant(begin, tz), end=instant(end, tz), key=key, type=type_, order=order,
        events=frozenset(event or ()),
    )  # fmt: skip
    foreseen = plan(settings, consumer, window, from_outbox=from_outbox, resends_external=resend_external)
    total = foreseen.total
    ahead = f"apply {total.applied}, tell the outside of {total.outside} for the first time and of {total.resent} again"
    if not execute:
        print_rows([_row(place, one) for place, one in foreseen.places.items()], output, columns=("place", *COUNTS))
        say(f"would {ahead}; nothing was done: --execute does it")
        _tell(total)
        return
    if (total.applied or total.resent) and not yes:
        typer.confirm(f"{ahead}?", abort=True, err=True)
    outcome = carry_out(settings, consumer, window, from_outbox=from_outbox, resends_external=resend_external)
    print_rows([_row(consumer, outcome)], output, columns=("place", *COUNTS))
    _tell(outcome)
    if not outcome.is_whole:
        raise typer.Exit(1)


def _row(place: str, outcome: Redelivered) -> dict[str, Any]:
    counts = asdict(outcome) | {"refused": len(outcome.refused), "failed": len(outcome.failed)}
    return {"place": place} | {name: counts[name] for name in COUNTS}


def _tell(outcome: Redelivered) -> None:
    """What was not done, and what to do about it."""
    for identity, error in [*outcome.failed.items(), *outcome.refused.items()][:20]:
        say(f"{identity}: {error}")
    for identity in sorted(outcome.missing)[:20]:
        say(f"{identity}: not found")
    if outcome.parked:
        say(f"{outcome.parked} are parked, or behind what is: payrelay parked retry")
    if outcome.waiting:
        say(f"{outcome.waiting} are still ahead of the worker, or of the connector: payrelay status")
    if outcome.cut_short:
        say("too many have failed, the rest was not tried: mend the handler and repeat")
