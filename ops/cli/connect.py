"""payrelay connect: the outbox connector."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
from ops.cli.times import Zone, span, time_option
from outbox.clock import utc_now
from outbox.errors import Refused, UnknownName

if TYPE_CHECKING:
    from connect.client import ConnectClient, ConnectorStatus
    from outbox.settings import Settings

app = typer.Typer(help="Operate the outbox connector on Kafka Connect.", no_args_is_help=True)

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
    """Validate the connector's configuration and show what differs; with --execute, change it.

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
    """Show the state that Kafka Connect reports. It can report RUNNING for a dead pipeline: `payrelay doctor` checks the flow."""
    client, settings = _client()
    state = client.status(settings.connector)
    _print(state, output)
    if not state.is_running:
        raise typer.Exit(1)


@app.command()
def wait(timeout: Timeout = 60.0, output: Output = Format.TABLE) -> None:
    """Wait until the connector and its tasks run. Exit code 1, with the first cause, if a task fails or time runs out."""
    client, settings = _client()
    _print(client.wait_running(settings.connector, timeout_s=timeout), output)


@app.command()
def restart(
    failed: Annotated[bool, typer.Option("--failed", help="restart only what has failed")] = False,
    timeout: Timeout = 60.0,
) -> None:
    """Restart the connector and its tasks, and wait until they run."""
    client, settings = _client()
    client.restart(settings.connector, only_failed=failed)
    client.wait_running(settings.connector, timeout_s=timeout)
    say("the connector and its tasks run again")


@app.command()
def pause() -> None:
    """Pause the connector: its task keeps the slot and reads nothing. PostgreSQL keeps its WAL meanwhile."""
    client, settings = _client()
    client.pause(settings.connector)
    say("the connector is paused. To go on: payrelay connect resume")


@app.command()
def resume(timeout: Timeout = 60.0) -> None:
    """Resume a paused or stopped connector, and wait until it and its tasks run."""
    client, settings = _client()
    client.resume(settings.connector)
    client.wait_running(settings.connector, timeout_s=timeout)
    say("the connector and its tasks run")


@app.command()
def stop(timeout: Timeout = 60.0) -> None:
    """Stop the connector: its tasks end and release the slot; offsets stay. PostgreSQL keeps its WAL meanwhile."""
    client, settings = _client()
    client.stop(settings.connector)
    client.wait_stopped(settings.connector, timeout_s=timeout)
    say("the connector is stopped. To go on: payrelay connect resume")


offsets = typer.Typer(
    help="Show or reset the offset that Kafka Connect stores for the connector.", no_args_is_help=True
)
app.add_typer(offsets, name="offsets")


@offsets.command("get")
def offsets_get(output: OutputOfOne = Format.JSON) -> None:
    """Print the offset that Kafka Connect stores, as JSON for `reset --from-file`, and the slot's position, which is what counts."""
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
        typer.Option(
            "--from-file", exists=True, dir_okay=False, help="file printed by `get`; without it, delete the offset"
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", dir_okay=False, help="file that keeps the present offset; default: a new one"),
    ] = None,
    execute: Execute = False,
    yes: Yes = False,
) -> None:
    """Delete the offset that Kafka Connect stores, or set it: stop the connector, change the offset, resume.

    The connector then reads on from the replication slot's position. PostgreSQL's slot does not go back, so this reads nothing again. To publish rows again: payrelay connect snapshot.
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
        say("the connector would be stopped, and would then read on from the file's position; nothing is lost")
    else:
        repair = plan_reset(settings, at=utc_now())
        say(f"the connector would be stopped, and would then publish {repair.rows} rows of the last {repair.minutes:.0f} minutes again, "
            f"{len(repair.missing)} of them for the first time; consumers drop events that are already applied")  # fmt: skip
    if not is_meant(execute=execute, yes=yes, question="stop, change and resume the connector?"):
        return
    target = export or Path(f"{settings.connector}-offsets-{utc_now():%Y%m%dT%H%M%SZ}.json")
    try:
        with target.open("x") as file:  # never over an earlier one
            file.write(positions.noted.as_text())
    except OSError as error:
        raise Refused(f"the present offset cannot be kept, nothing was done: {error}. Name another --export") from error
    say(f"the offset from before is kept in {target}")
    reset_offsets(settings, wanted, clock=utc_now, say=say)
    say(standing(settings).described())


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} cannot be read, so nothing was done: {error}") from error


def _outbox_rows(ids_by_service: Mapping[str, Sequence[UUID]]) -> list[dict[str, object]]:
    return [
        {"outbox": f"{name}.outbox", "rows": len(ids), "first": ids[0], "last": ids[-1]}
        for name, ids in ids_by_service.items()
    ]


@app.command()
def snapshot(
    where: Annotated[
        str,
        typer.Option(
            "--where", metavar="SQL", help="SQL condition on the outbox's columns, e.g. \"type = 'payment.settled.v1'\""
        ),
    ] = "",
    service: Annotated[list[str] | None, typer.Option("--service", help="only its outbox; may be repeated")] = None,
    since: Annotated[datetime | None, time_option("--from", "recorded from this time on", "--since")] = None,
    to: Annotated[datetime | None, time_option("--to", "recorded before this time")] = None,
    tz: Zone = "",
    order: Annotated[str, typer.Option("--order", help="events of this order number")] = "",
    event: Annotated[list[UUID] | None, typer.Option("--event", help="event id; may be repeated")] = None,
    within: Annotated[
        float, typer.Option("--within", parser=decimal(1, DAY_S), help="seconds to wait until all are on their topics")
    ] = 300.0,
    execute: Execute = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Publish kept outbox rows again, under the same event ids: consumers drop the events that they have already applied.

    Uses Debezium's incremental snapshot, in chunks between live events. Needs the owner's DSN.
    """
    from ops.pipeline.snapshot import Rows, emit_again, find_rows
    from outbox.settings import SERVICES

    begin, end = span(since, to, tz)
    wanted = Rows(where=where, begin=begin, end=end, order=order, events=frozenset(event or ()))
    if wanted == Rows():
        raise typer.BadParameter("say which rows to publish: --where, --from, --to, --order or --event")
    settings = current_settings()
    ids_by_service = find_rows(settings, service or SERVICES, wanted)
    if missing := sorted(wanted.events.difference(*ids_by_service.values())):
        about = f"{len(missing)} of these events are in none of the outboxes searched, the first is {missing[0]}"
        raise UnknownName(f"{about}: check the ids, and --service")
    print_rows(_outbox_rows(ids_by_service), output, columns=("outbox", "rows", "first", "last"))
    total = sum(map(len, ids_by_service.values()))
    question = f"publish {total} rows again?" if total else ""
    ahead = f"{total} rows would be published again"
    if not is_meant(ahead, execute=execute, yes=yes, does="publishes them", question=question):
        return
    emit_again(settings, ids_by_service, within_s=within)
    say(f"{total} events are on their topics again")
