"""payrelay replay: redeliver, rebuild, checkpoint, drop."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from getpass import getuser
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from ops.cli.context import current_settings
from ops.cli.intent import is_meant
from ops.cli.options import Execute, Output, Yes, whole
from ops.cli.output import Format, legible, print_rows, say, say_rows
from ops.cli.times import Zone, span, time_option
from outbox.quoting import quoted

if TYPE_CHECKING:
    from consumers.delivery.redeliver import Redelivered
    from ops.rebuild.correct import Correction
    from ops.rebuild.feeding import ReportProgress
    from ops.rebuild.rebuild import Rebuilt
    from outbox.settings import Settings

app = typer.Typer(help="Hand events to a consumer again, or rebuild its rows from its topics.", no_args_is_help=True)

Consumer = Annotated[str, typer.Argument(help="consumer, e.g. accounting")]

LINES_EACH = 25_000
"""Messages between two lines of progress, where standard error is no terminal."""


COUNTS = ("applied", "superseded", "known", "resent", "parked", "waiting", "refused", "failed", "unreadable", "outside")


@app.command("redeliver")
def redeliver(
    consumer: Annotated[str, typer.Option("--consumer", help="consumer, e.g. accounting")],
    topic: Annotated[str, typer.Option("--topic", help="one of the consumer's topics; default: all")] = "",
    begin: Annotated[
        datetime | None, time_option("--from", "appended (--from-outbox: recorded) from this time on")
    ] = None,
    end: Annotated[datetime | None, time_option("--to", "appended (--from-outbox: recorded) before this time")] = None,
    tz: Zone = "",
    key: Annotated[str, typer.Option("--key", help="message key, e.g. a payment number")] = "",
    type_: Annotated[str, typer.Option("--type", help="event type, e.g. payment.settled.v1")] = "",
    order: Annotated[str, typer.Option("--order", help="events of this order number")] = "",
    event: Annotated[list[UUID] | None, typer.Option("--event", help="event id; may be repeated")] = None,
    from_outbox: Annotated[
        bool, typer.Option("--from-outbox", help="read the outbox: events that are on no topic, or no longer on it")
    ] = False,
    resend_external: Annotated[
        bool,
        typer.Option("--resend-external", help="also notify again about events already applied, under the same ids"),
    ] = False,
    execute: Execute = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Hand events to a consumer again: new ones are applied, events already applied are dropped.

    Runs beside the consumer's worker, whose position stays. Exit code 1 if an event failed, was refused or was not found.
    """
    from ops.delivery.redeliver import carry_out, plan
    from ops.delivery.search import Window

    begin, end = span(begin, end, tz)
    window = Window(
        topic=topic, begin=begin, end=end, key=key, type=type_, order=order, events=frozenset(event or ())
    )  # fmt: skip
    settings = current_settings()
    foreseen = plan(settings, consumer, window, from_outbox=from_outbox, resends_external=resend_external)
    total = foreseen.total
    ahead = (
        f"apply {total.applied} events, notify about {total.outside} for the first time and about {total.resent} again"
    )
    if not execute:
        print_rows(
            [_row(place, counted) for place, counted in foreseen.places.items()], output, columns=("place", *COUNTS)
        )
    question = f"{ahead}?" if total.applied or total.resent else ""
    if not is_meant(f"would {ahead}", execute=execute, yes=yes, question=question):
        _tell(total)
        if not total.is_whole:
            raise typer.Exit(1)
        return
    outcome = carry_out(settings, consumer, window, from_outbox=from_outbox, resends_external=resend_external)
    print_rows([_row(consumer, outcome)], output, columns=("place", *COUNTS))
    _tell(outcome)
    if not outcome.is_whole:
        raise typer.Exit(1)


def _row(place: str, outcome: Redelivered) -> dict[str, Any]:
    counts = asdict(outcome) | {"refused": len(outcome.refused), "failed": len(outcome.failed)}
    return {"place": place} | {name: counts[name] for name in COUNTS}


def _tell(outcome: Redelivered) -> None:
    """Standard error says what was not done, and what to do about it."""
    for identity, error in [*outcome.failed.items(), *outcome.refused.items()][:20]:
        say(f"{identity}: {error}")
    for identity in sorted(outcome.missing)[:20]:
        say(f"{identity}: not found: check the id, the time and --from-outbox")
    if outcome.parked:
        say(f"{outcome.parked} are parked, or behind a parked event of their key: payrelay parked retry")
    if outcome.waiting:
        say(f"{outcome.waiting} are still to be read or published. Do all parts run? payrelay status")
    if outcome.cut_short:
        say("too many events have failed, so the rest was not tried: fix the handler, then repeat the command")


@app.command()
def rebuild(
    consumer: Consumer,
    anew: Annotated[bool, typer.Option("--anew", help="start over, whatever an earlier call has left")] = False,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="start from this checkpoint")] = "",
    correct: Annotated[
        bool, typer.Option("--correct", help="ledger only: show vouchers that correct differences")
    ] = False,
    switch: Annotated[bool, typer.Option("--switch", help="projections only: switch to the rebuilt tables")] = False,
    reason: Annotated[str, typer.Option("--reason", help="with --correct: why; kept on the vouchers")] = "",
    actor: Annotated[str, typer.Option("--actor", help="with --correct: who does it; default: your user name")] = "",
    execute: Annotated[
        bool, typer.Option("--execute", help="carry out --correct or --switch; else only show it")
    ] = False,
    yes: Yes = False,
    limit: Annotated[int, typer.Option("--limit", parser=whole(1, 100_000), help="findings shown at most")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """Rebuild a consumer's rows from its topics in a shadow schema, and show how the live rows differ.

    The consumer runs on meanwhile: both sides are compared at the same position in every partition. If it is killed, the next call resumes.
    Exit code 1 if the rows differ.
    """
    from ops.rebuild.rebuild import rebuild as rebuild_consumer

    if correct and switch:
        raise typer.BadParameter("--correct is for money and --switch is for projections: give one of them")
    if correct and not reason.strip():
        raise typer.BadParameter("--correct needs a --reason, because the vouchers keep it")
    if execute and not (correct or switch):
        raise typer.BadParameter("--execute needs --correct or --switch: a rebuild alone changes no live row")
    settings = current_settings()
    with _progress(f"rebuilding {consumer}") as progress:
        rebuilt = rebuild_consumer(settings, consumer, anew=anew, checkpoint=checkpoint, progress=progress)
    if correct:
        _correct(settings, rebuilt, reason.strip(), actor.strip() or getuser(), output, execute=execute, yes=yes)
    else:
        _show(rebuilt, limit, output)
        if switch:
            _switch(settings, rebuilt, execute=execute, yes=yes)
    if switch and execute:
        return
    if execute:  # what was done is proved
        with _progress(f"rebuilding {consumer}") as progress:
            rebuilt = rebuild_consumer(settings, consumer, checkpoint=rebuilt.shadow.base, progress=progress)
        say(f"compared again: {_summary(rebuilt)}")
    if not rebuilt.difference.is_empty:
        raise typer.Exit(1)


def _correct(
    settings: Settings, rebuilt: Rebuilt, reason: str, actor: str, output: Format, *, execute: bool, yes: bool
) -> None:
    """The ledger's corrections are shown; posted, where that is meant."""
    from ops.rebuild.correct import correct, corrections_of
    from outbox.clock import utc_now

    chosen = corrections_of(rebuilt)
    rows = [_correction(correction) for correction in chosen]
    say(f"{_summary(rebuilt)}: {len(chosen)} corrections")
    if not execute or (chosen and not yes and output is Format.TABLE):  # else what was posted is the document
        print_rows(rows, output, columns=CORRECTION)
    elif not yes:
        say_rows(rows)
    if chosen and is_meant(execute=execute, yes=yes, does="posts it", question=f"post {len(chosen)} corrections?"):
        posted = correct(settings, rebuilt, chosen, reason=reason, actor=actor, at=utc_now())
        rows = [_correction(correction) | {"done": done} for correction, done in posted]
    if execute:
        print_rows(rows, output, columns=(*CORRECTION, "done"))


CORRECTION = ("action", "voucher_no", "subject", "live", "instead")


def _correction(correction: Correction) -> dict[str, object]:
    finding = correction.finding
    return {
        "action": correction.action,
        "voucher_no": finding.number,
        "subject": finding.subject,
        "live": finding.live,
        "instead": finding.rebuilt,
    }


def _switch(settings: Settings, rebuilt: Rebuilt, *, execute: bool, yes: bool) -> None:
    """The plan of a switch is shown; carried out, where that is meant."""
    from ops.pipeline.health import reader_engine
    from ops.rebuild.switch import require_switchable
    from ops.rebuild.switch import switch as switch_tables

    with reader_engine(settings).connect() as connection:
        require_switchable(connection, rebuilt)
    tables = ", ".join(rebuilt.subject.tables)
    what = f"{tables} of {rebuilt.shadow.name} in the place of the live ones"
    if not is_meant(execute=execute, yes=yes, does=f"puts {what}", question=f"put {what}?"):
        return
    with _progress("what has come since") as progress:
        done = switch_tables(settings, rebuilt, progress=progress)
    say(
        f"switched in {done.held_s:.2f} s; {done.known} events now applied, {done.unknown} no longer, {done.parked} parked"
    )
    say(f"the old tables are in {done.old}. To remove them: payrelay replay drop {quoted(done.old)} --execute")


@app.command()
def checkpoint(consumer: Consumer) -> None:
    """Save a consumer's rows with its position in every partition, so that a later rebuild can start there.

    Needed where the topics do not keep their whole history. Only reads the live rows. Exit code 1 if a balance is not the sum of its entries.
    """
    from ops.rebuild.checkpoint import take_checkpoint

    made = take_checkpoint(current_settings(), consumer)
    say(f"kept as {made.name}. To remove it: payrelay replay drop {quoted(made.name)} --execute")


@app.command()
def drop(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="name, as this command shows it without one")] = "",
    execute: Execute = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Remove a shadow, a checkpoint, or tables that a switch has put aside. Without a name, list them."""
    from ops.pipeline.health import reader_engine
    from ops.rebuild.schemas import drop_schema, find_schemas
    from outbox.errors import UnknownName
    from outbox.migrate import owner_engine

    settings = current_settings()
    with reader_engine(settings).connect() as connection:
        schemas = find_schemas(connection)
    if name and name not in {made.name for made in schemas}:
        raise UnknownName(
            f"{name!r} was not made by a rebuild, a switch or a checkpoint. What was made is shown by: payrelay replay drop"
        )
    print_rows(
        [asdict(made) for made in schemas if not name or made.name == name],
        output,
        columns=("name", "purpose", "consumer", "at", "base"),
    )
    question = f"remove {name} with all its rows?"
    if name and is_meant(execute=execute, yes=yes, does="removes it", question=question):
        with owner_engine(settings).begin() as owner:
            drop_schema(owner, name)
        say(f"{name} is removed")


def _show(rebuilt: Rebuilt, limit: int, output: Format) -> None:
    """The findings are on standard output, the rest on standard error."""
    difference = rebuilt.difference
    columns = ("what", "kind", "subject", "live", "rebuilt", "fix")
    print_rows([asdict(row) | {"what": row.what.value} for row in difference.findings[:limit]], output, columns=columns)
    begin = f"checkpoint {rebuilt.shadow.base}" if rebuilt.shadow.base else "offset 0"
    how = f"resumed, from {begin}" if rebuilt.was_resumed else f"from {begin}"
    rate = f", {rebuilt.records / rebuilt.feed_s:,.0f} a second" if rebuilt.records else ""
    say(f"{rebuilt.records} events read in {rebuilt.feed_s:.1f} s ({how}{rate}) into {rebuilt.shadow.name}")
    say(f"both sides at {', '.join(f'{log} {at}' for log, at in sorted(rebuilt.positions.items(), key=str))}")
    if rebuilt.subject.aside:
        say(f"not compared, taken as they are: {rebuilt.subject.aside}")
    if rebuilt.parked:
        say(f"{rebuilt.parked} events are parked in the shadow: the handler rejects them, or their key waits")
    if sum(difference.counts.values()) > limit:
        say(f"the first {limit} findings are shown: --limit shows more")
    say(f"compared in {rebuilt.compare_s:.1f} s: {_summary(rebuilt)}")


def _summary(rebuilt: Rebuilt) -> str:
    """Return how many rows were compared, and how many are what."""
    difference = rebuilt.difference
    summary = ", ".join(f"{kind} {what.value} {count}" for (what, kind), count in sorted(difference.counts.items()))
    return f"{difference.compared} times {rebuilt.subject.kind}, {summary or 'no difference'}"


@contextmanager
def _progress(what: str) -> Generator[ReportProgress]:
    """Give what shows how far it is: a bar on a terminal, else a line now and then."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ops.cli.output import errors

    if not errors.is_terminal:
        shown = 0

        def line(done: int, total: int) -> None:
            nonlocal shown
            if done < shown or done - shown >= LINES_EACH:
                shown = done
                say(f"{what}: {done} of {total}")

        yield line
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(legible(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
