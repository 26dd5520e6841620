"""payrelay parked: list, show, retry, skip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer

from ops.cli.context import current_settings
from ops.cli.intent import is_meant
from ops.cli.options import Execute, Output, OutputOfOne, Yes, whole
from ops.cli.output import Format, print_object, print_rows, say
from ops.cli.times import Zone, span, time_option
from outbox.errors import UnknownName

app = typer.Typer(help="Show, retry and skip parked events, which a consumer could not apply.", no_args_is_help=True)

Identity = Annotated[
    str, typer.Argument(metavar="[ID]", help="id of a parked event, as `payrelay parked list --events` shows it")
]
Consumer = Annotated[str, typer.Option("--consumer", help="consumer, e.g. accounting")]
Key = Annotated[str, typer.Option("--key", help="message key, e.g. a payment number")]
Type = Annotated[str, typer.Option("--type", help="event type, e.g. payment.settled.v1")]
CauseOption = Annotated[str, typer.Option("--cause", help="why it is parked, e.g. REJECTED, UNDECODABLE")]
Begin = Annotated[datetime | None, time_option("--from", "parked from this time on")]
End = Annotated[datetime | None, time_option("--to", "parked before this time")]
LESS = ("parked_at", "attempts", "consumer", "type", "place")
"""Columns of events that a narrow terminal does without, in this order."""

Limit = Annotated[int, typer.Option("--limit", parser=whole(1, 10_000), help="events at most")]


@app.command("list")
def list_(
    consumer: Consumer = "",
    key: Key = "",
    type_: Type = "",
    cause: CauseOption = "",
    begin: Begin = None,
    end: End = None,
    tz: Zone = "",
    events: Annotated[bool, typer.Option("--events", help="show the events themselves, oldest first")] = False,
    limit: Limit = 100,
    output: Output = Format.TABLE,
) -> None:
    """Show how many events are parked, by consumer, cause and type. With --events, show the events."""
    from ops.delivery.parked import ParkedCount, ParkedRow, counts
    from ops.delivery.parked import events as parked_events
    from ops.pipeline.health import reader_engine

    settings = current_settings()
    wanted = _filter(consumer=consumer, key=key, type=type_, cause=cause, between=span(begin, end, tz))
    with reader_engine(settings).connect() as connection:
        groups = counts(connection, wanted)
        rows: list[ParkedCount] | list[ParkedRow] = parked_events(connection, wanted, limit=limit) if events else groups
    columns = tuple((ParkedRow if events else ParkedCount).__dataclass_fields__)
    print_rows([asdict(row) for row in rows], output, columns=columns, less=LESS if events else ())
    total = sum(count.events for count in groups)
    say(f"{total} parked" + (f", the {limit} oldest shown" if events and total > limit else ""))


@app.command()
def show(
    identity: Annotated[
        str, typer.Argument(metavar="ID", help="id of a parked event, as `payrelay parked list --events` shows it")
    ],
    output: OutputOfOne = Format.JSON,
) -> None:
    """Show one parked event: its place in the log, why it is parked, its headers and its body."""
    from ops.delivery.parked import event, place_of
    from ops.pipeline.health import reader_engine

    place_of(identity)
    with reader_engine(current_settings()).connect() as connection:
        print_object(event(connection, identity), output)


@app.command()
def retry(
    identity: Identity = "",
    consumer: Consumer = "",
    key: Key = "",
    type_: Type = "",
    cause: CauseOption = "",
    begin: Begin = None,
    end: End = None,
    tz: Zone = "",
    limit: Annotated[int, typer.Option("--limit", parser=whole(1, 10_000), help="keys at most")] = 1_000,
    reason: Annotated[str, typer.Option("--reason", help="why; kept in the audit table")] = "",
    execute: Execute = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Apply parked events again, key by key and in order. If an event still fails, its key waits on.

    Safe beside running workers. Exit code 1 if something still fails.
    """
    from ops.delivery.parked import operator, queues
    from ops.delivery.parked import retry as retry_queues
    from ops.pipeline.health import reader_engine
    from outbox.parking import Act, Action

    settings = current_settings()
    wanted = _filter(
        identity=identity, consumer=consumer, key=key, type=type_, cause=cause, between=span(begin, end, tz)
    )
    with reader_engine(settings).connect() as connection:
        chosen = queues(connection, wanted, limit=limit)
    _require_there(identity, chosen)
    say(f"{sum(queue.events for queue in chosen)} parked events to retry, in {len(chosen)} queues")
    if not execute:
        rows = [asdict(queue) | {"key": queue.legible_key} for queue in chosen]
        print_rows(rows, output, columns=("id", "consumer", "key", "events", "cause", "type", "error"))
    question = "retry them?" if chosen else ""
    if not is_meant(execute=execute, yes=yes, does="retries them", question=question):
        return
    act = Act(action=Action.RETRY, actor=operator(), reason=reason)
    rows = [
        {"id": queue.id, "consumer": queue.consumer, "key": queue.legible_key, **asdict(drained)}
        for queue, drained in retry_queues(settings, chosen, act)
    ]
    print_rows(rows, output, columns=("id", "consumer", "key", "applied", "known", "cause", "error"))
    failing = sum(row["cause"] is not None for row in rows)
    say(f"{sum(row['applied'] for row in rows)} applied; {failing} queues still fail at their first event")
    if failing:
        raise typer.Exit(1)


@app.command()
def skip(
    reason: Annotated[str, typer.Option("--reason", help="why; kept in the audit table")],
    identity: Identity = "",
    consumer: Consumer = "",
    key: Key = "",
    type_: Type = "",
    cause: CauseOption = "",
    begin: Begin = None,
    end: End = None,
    tz: Zone = "",
    limit: Limit = 1_000,
    execute: Execute = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Take events out of the parking lot without applying them. They are kept whole in the service's `parked_audit`.

    The events that wait behind them can then be retried.
    """
    from ops.delivery.parked import ParkedFilter, ParkedRow, operator, queues
    from ops.delivery.parked import events as parked_events
    from ops.delivery.parked import skip as skip_events
    from ops.pipeline.health import reader_engine
    from outbox.parking import Act, Action

    settings = current_settings()
    wanted = _filter(
        identity=identity, consumer=consumer, key=key, type=type_, cause=cause, between=span(begin, end, tz)
    )
    if wanted == ParkedFilter():
        raise typer.BadParameter("choose events: name an ID, or give --consumer, --key, --type, --cause, --from, --to")
    if not reason.strip():
        raise typer.BadParameter("--reason is empty: give it, because the audit table keeps it")
    with reader_engine(settings).connect() as connection:
        chosen = parked_events(connection, wanted, limit=limit)
        behind = sum(queue.events for queue in queues(connection, wanted, limit=limit)) - len(chosen)
    _require_there(identity, chosen)
    print_rows([asdict(row) for row in chosen], output, columns=tuple(ParkedRow.__dataclass_fields__), less=LESS)
    ahead = f"{len(chosen)} parked events would be skipped"
    question = f"skip {len(chosen)} events? They will not be applied" if chosen else ""
    if not is_meant(ahead, execute=execute, yes=yes, does="skips them", question=question):
        return
    skipped = skip_events(settings, chosen, Act(action=Action.SKIP, actor=operator(), reason=reason))
    say(f"{skipped} skipped and kept in parked_audit")
    if behind > 0:
        say(f"{behind} other events of the same keys are parked: payrelay parked retry")


def _require_there(identity: str, chosen: Sequence[object]) -> None:
    """An id that was typed is an event's. Raises UnknownName: a filter may match nothing, a name may not."""
    if identity and not chosen:
        raise UnknownName(
            f"no parked event {identity} matches. Parked events are shown by: payrelay parked list --events"
        )


def _filter(*, between: tuple[datetime | None, datetime | None], **given: str) -> Any:
    from ops.delivery.parked import ParkedFilter, place_of

    if given.get("identity"):
        place_of(given["identity"])
    return ParkedFilter(**given, begin=between[0], end=between[1])
