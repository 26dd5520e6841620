"""payrelay connect: the outbox connector."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from ops.cli.context import current_settings
from ops.cli.intent import is_meant
from ops.cli.options import DAY_S, Execute, Output, OutputOfOne, Yes, decimal
from ops.cli.output import Format, print_object, print_rows, say
from ops.cli.times import FORMATS, Zone, span
from outbox.clock import utc_now
from outbox.errors import Refused, UnknownName

if TYPE_CHECKING:
    from connect.client import ConnectClient, ConnectorStatus
    from outbox.settings import Settings

app = typer.Typer(help="The outbox connector on Kafka Connect.", no_args_is_help=True)

Begin = Annotated[
    datetime | None, typer.Option("--from", "--since", formats=FORMATS, metavar="TIME", help="recorded from then on")
]
End = Annotated[datetime | None, typer.Option("--to", formats=FORMATS, metavar="TIME", help="recorded before then")]
Timeout = Annotated[float, typer.Option("--timeout", parser=decimal(0.1, DAY_S), help="seconds to wait")]


def _client() -> tuple[ConnectClient, Settings]:
    from connect.client import ConnectClient

    settings = current_settings()
    return ConnectClient(settings.connect_url), settings


def _print(status: ConnectorStatus, output: Format) -> None:
    rows = [{"part": f"connector {status.name}", "state": status.state, "worker": "", "cause": ""}]
    rows += [
        {"part": f"task {task.id}", "state": task.state, "worker": task.worker, "cause": task.cause}
        for task in status.tasks
    ]
    print_rows(rows, output)


@app.command()
def apply(
    execute: Execute = False,
    output: Output = Format.TABLE,
) -> None:
    """Bring the connector to its configuration: validate, show the difference, change it with --execute. Nothing happens if equal.

    Exit code 1 without --execute if something would change.
    """
    from connect.apply import apply_connector

    client, settings = _client()
    changes = apply_connector(client, settings, execute=execute)
    print_rows(
        [{"key": key, "old": old, "new": new} for key, old, new in changes], output, columns=("key", "old", "new")
    )
    if not changes:
        say("nothing changed")
    elif is_meant(f"{len(changes)} values would change", execute=execute, yes=True, does="changes them"):
        say(f"{len(changes)} values changed")
    else:
        raise typer.Exit(1)


@app.command()
def status(output: Output = Format.TABLE) -> None:
    """Show what Kafka Connect says. It says RUNNING of a dead pipeline too: `payrelay doctor` judges health."""
    client, settings = _client()
    state = client.status(settings.connector)
    _print(state, output)
    if not state.is_running:
        raise typer.Exit(1)


@app.command()
def wait(timeout: Timeout = 60.0, output: Output = Format.TABLE) -> None:
    """Wait until connector and tasks run; exit code 1 with the first cause if a task fails or time is over."""
    client, settings = _client()
    _print(client.wait_running(settings.connector, timeout_s=timeout), output)


@app.command()
def restart(
    failed: Annotated[bool, typer.Option("--failed", help="only what failed")] = False, timeout: Timeout = 60.0
) -> None:
    """Restart the connector and its tasks, and wait until they run."""
    client, settings = _client()
    client.restart(settings.connector, only_failed=failed)
    client.wait_running(settings.connector, timeout_s=timeout)
    say("restarted")


@app.command()
def pause() -> None:
    """Pause: the task stays and keeps its slot, and reads nothing. WAL is kept meanwhile."""
    client, settings = _client()
    client.pause(settings.connector)
    say("paused: payrelay connect resume")


@app.command()
def resume(timeout: Timeout = 60.0) -> None:
    """Go on after pause or stop, and wait until connector and tasks run."""
    client, settings = _client()
    client.resume(settings.connector)
    client.wait_running(settings.connector, timeout_s=timeout)
    say("running")


@app.command()
def stop(timeout: Timeout = 60.0) -> None:
    """Stop: tasks end and let go of the slot, offsets stay. WAL is kept meanwhile."""
    client, settings = _client()
    client.stop(settings.connector)
    client.wait_stopped(settings.connector, timeout_s=timeout)
    say("stopped: payrelay connect resume")


offsets = typer.Typer(help="What Kafka Connect has noted of how far the connector has read.", no_args_is_help=True)
app.add_typer(offsets, name="offsets")


@offsets.command("get")
def offsets_get(output: OutputOfOne = Format.JSON) -> None:
    """Print Connect's note, its JSON as `reset --from-file` takes it, and say where the slot stands, which is what counts."""
    from ops.pipeline.source import standing

    positions = standing(current_settings())
    if output is Format.JSON:
        sys.stdout.write(positions.noted.as_text())
    else:
        print_object(asdict(positions.noted), output)
    say(positions.described())


@offsets.command("reset")
def offsets_reset(
    from_file: Annotated[
        Path | None,
        typer.Option("--from-file", exists=True, dir_okay=False, help="what `get` has printed; without it, forget"),
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", dir_okay=False, help="where what is noted now is kept first")
    ] = None,
    execute: Execute = False,
    yes: Yes = False,
) -> None:
    """Forget Connect's note, or set it: stop, change, resume. The connector then reads on from the replication slot's position.

    No way to read anything again: PostgreSQL's slot does not go back. For that: payrelay connect snapshot.
    """
    from connect.source_offsets import exported_from
    from ops.pipeline.source import standing
    from ops.pipeline.source_offsets import plan_reset, require_harmless
    from ops.pipeline.source_offsets import reset as reset_offsets

    settings = current_settings()
    positions = standing(settings)
    say(positions.described())
    wanted = exported_from(_text_of(from_file), connector=settings.connector) if from_file else None
    if wanted is not None:
        require_harmless(settings, positions, wanted, at=utc_now())
        say("the connector would be stopped, would read on from the file's position, and lose nothing")
    else:
        repair = plan_reset(settings, at=utc_now())
        say(f"the connector would be stopped and would emit {repair.rows} rows of the last {repair.minutes:.0f} minutes again, "
            f"{len(repair.missing)} of them for the first time; those known already are dropped")  # fmt: skip
    if not is_meant(execute=execute, yes=yes, question="stop, change and resume the connector?"):
        return
    target = export or Path(f"{settings.connector}-offsets-{utc_now():%Y%m%dT%H%M%SZ}.json")
    try:
        with target.open("x") as file:  # never over an earlier one
            file.write(positions.noted.as_text())
    except OSError as error:
        raise Refused(f"what is noted cannot be kept, nothing was done: {error}; another --export") from error
    say(f"what was noted is kept in {target}")
    reset_offsets(settings, wanted, clock=utc_now, say=say)
    say(standing(settings).described())


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} cannot be read: {error}") from error


@app.command()
def snapshot(
    where: Annotated[
        str,
        typer.Option("--where", metavar="SQL", help="on the outbox's columns, e.g. \"type = 'payment.settled.v1'\""),
    ] = "",
    service: Annotated[list[str] | None, typer.Option("--service", help="whose outbox; all without it")] = None,
    since: Begin = None,
    to: End = None,
    tz: Zone = "",
    order: Annotated[str, typer.Option("--order", help="order number")] = "",
    event: Annotated[list[UUID] | None, typer.Option("--event", help="event id; may be given several times")] = None,
    within: Annotated[
        float, typer.Option("--within", parser=decimal(1, DAY_S), help="seconds to wait until all have come")
    ] = 300.0,
    execute: Execute = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Emit kept outbox rows again, under the same event ids: whoever has applied an event drops the repeat.

    By Debezium's incremental snapshot, in chunks between live events. Needs the owner's DSN.
    """
    from ops.pipeline.snapshot import Rows, emit_again, find_rows
    from outbox.settings import SERVICES

    since, to = span(since, to, tz)
    wanted = Rows(where=where, begin=since, end=to, order=order, events=frozenset(event or ()))
    if wanted == Rows():
        raise typer.BadParameter("say which rows: --where, --from, --to, --order or --event")
    settings = current_settings()
    ids_by_service = find_rows(settings, service or SERVICES, wanted)
    if missing := sorted(wanted.events.difference(*ids_by_service.values())):
        raise UnknownName(
            f"{len(missing)} of these events are in no outbox that is looked at, the first is {missing[0]}"
        )
    rows = [
        {"outbox": f"{name}.outbox", "rows": len(ids), "first": ids[0], "last": ids[-1]}
        for name, ids in ids_by_service.items()
    ]
    print_rows(rows, output, columns=("outbox", "rows", "first", "last"))
    total = sum(map(len, ids_by_service.values()))
    ahead, question = f"{total} rows would be emitted again", f"emit {total} rows again?" if total else ""
    if not is_meant(ahead, execute=execute, yes=yes, does="emits them", question=question):
        return
    emit_again(settings, ids_by_service, within_s=within)
    say(f"{total} events are on their topics again")
