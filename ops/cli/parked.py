"""payrelay parked: list, show."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from ops.cli.output import Format, Output, print_json, print_rows, say
from ops.cli.pipeline import FORMATS, current_settings, zoned

app = typer.Typer(help="Events that a consumer could not apply, and what waits behind them.", no_args_is_help=True)


@app.command("list")
def list_(
    consumer: Annotated[str, typer.Option("--consumer")] = "",
    key: Annotated[str, typer.Option("--key")] = "",
    type_: Annotated[str, typer.Option("--type", help="e.g. payment.settled.v1")] = "",
    cause: Annotated[str, typer.Option("--cause", help="e.g. REJECTED, UNDECODABLE")] = "",
    begin: Annotated[datetime | None, typer.Option("--from", formats=FORMATS, help="parked from then on")] = None,
    end: Annotated[datetime | None, typer.Option("--to", formats=FORMATS, help="parked before then")] = None,
    events: Annotated[bool, typer.Option("--events", help="the events themselves, oldest first")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = 100,
    output: Output = Format.TABLE,
) -> None:
    """Show how many events are parked, by consumer, cause and type; with --events, which ones."""
    from ops.health import reader_engine
    from ops.parked import Count, Filter, ParkedRow, counts
    from ops.parked import events as parked_events

    settings = current_settings()
    wanted = Filter(
        consumer=consumer, key=key, type=type_, cause=cause, begin=zoned(settings, begin), end=zoned(settings, end)
    )
    with reader_engine(settings).connect() as connection:
        found = counts(connection, wanted)
        rows: list[Count] | list[ParkedRow] = parked_events(connection, wanted, limit=limit) if events else found
    columns = tuple((ParkedRow if events else Count).__dataclass_fields__)
    print_rows([asdict(row) for row in rows], output, columns=columns)
    total = sum(count.events for count in found)
    say(f"{total} parked" + (f", the {limit} oldest shown" if events and total > limit else ""))


@app.command()
def show(identity: Annotated[str, typer.Argument(metavar="ID", help="as `parked list --events` shows it")]) -> None:
    """Show one parked event whole, as JSON: where it lay, why it is parked, its headers and its body."""
    from ops.health import reader_engine
    from ops.parked import event

    with reader_engine(current_settings()).connect() as connection:
        print_json(event(connection, identity))
