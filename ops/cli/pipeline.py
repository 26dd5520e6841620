"""What runs on a stack, local or not: migrate, topics, worker, serve, exporter, tool."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pkgutil import resolve_name
from typing import Annotated

import typer

from consumers.notification.queues import QUEUES
from consumers.processors import PROCESSORS
from ops.cli.local import this_stack
from ops.cli.output import Format, Output, print_rows, say
from ops.stack.processes import HTTP_SERVICES, NOTIFIER, NOTIFIERS
from ops.stack.state import StackFolder
from outbox.clock import in_zone, zone_of
from outbox.errors import Misused
from outbox.settings import Settings

topics = typer.Typer(help="Topics, as schemas/topics.py declares them.", no_args_is_help=True)


def current_settings() -> Settings:
    """Return the environment's settings where they name a Kafka, else those of the local stack."""
    settings = Settings()
    if settings.kafka_bootstrap:
        return settings
    try:
        return this_stack().settings()
    except FileNotFoundError as error:
        raise Misused(f"{error}; or set PAYRELAY_KAFKA_BOOTSTRAP and the rest for a stack of your own") from error


def local_folder() -> StackFolder | None:
    """Return the local stack's folder if that is the stack that commands mean."""
    return None if Settings().kafka_bootstrap else this_stack()


FORMATS = [
    "%Y-%m-%d",
    *(
        f"%Y-%m-%d{between}%H:%M:%S{fraction}{zone}"
        for between in "T "
        for fraction in ("", ".%f")
        for zone in ("", "%z")
    ),
]
"""How commands take a time."""


def zoned(settings: Settings, at: datetime | None) -> datetime | None:
    """Return a time as it was meant: in the zone of payment limits where it names none; what that zone has twice is refused."""
    return instant(at, settings.zone)


Zone = Annotated[str, typer.Option("--tz", metavar="ZONE", help="of times that name none, e.g. Asia/Shanghai")]


def instant(at: datetime | None, tz: str) -> datetime | None:
    """Return a time as it was meant; one that names no zone is refused unless `tz` does: a wrong guess moves money."""
    if at is None:
        return None
    if at.tzinfo is None and not tz:
        raise typer.BadParameter(f"{at.isoformat()} names no zone: add one (2026-11-23T08:00:00+0800) or --tz")
    try:
        meant = in_zone(at, zone_of(tz)) if at.tzinfo is None else at
        meant.astimezone(UTC)  # as it is looked up
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except OverflowError as error:
        raise typer.BadParameter(f"{at.isoformat()} is before the year 1 or after 9999") from error
    return meant


def span(begin: datetime | None, end: datetime | None, tz: str) -> tuple[datetime | None, datetime | None]:
    """Return both ends of a window as they were meant; one that ends before it begins is refused: it would find nothing wrong."""
    first, last = instant(begin, tz), instant(end, tz)
    if first is not None and last is not None and first >= last:
        raise typer.BadParameter(f"nothing lies from {first.isoformat()} on and before {last.isoformat()}")
    return first, last


def migrate() -> None:
    """Bring the database to this version: schemas, roles, days ahead, publication, slot. May be repeated."""
    from outbox.migrate import migrate as bring

    bring(current_settings(), today=datetime.now(UTC).date())
    say("the database is as this version needs it")


@topics.command("list")
def topics_list(output: Output = Format.TABLE) -> None:
    """Show each declared topic and how the broker's differs. Exit code 1 if one does."""
    from ops.kafka.topics import topic_states

    rows = [asdict(state) | {"problems": "; ".join(state.problems)} for state in topic_states(current_settings())]
    print_rows(rows, output, less=("topic_id", "retention_ms", "found", "partitions"))
    if any(row["problems"] for row in rows):
        raise typer.Exit(1)


@topics.command("apply")
def topics_apply(
    execute: Annotated[
        bool,
        typer.Option(
            "--execute/--dry-run", help="do it, which is done without either; or only show what would be done"
        ),
    ] = True,
) -> None:
    """Create what is missing and bring configurations to what is declared, at once; with --dry-run only show it. Partitions are never added: keys would move."""
    from ops.kafka.topics import apply_topics

    done = apply_topics(current_settings(), execute=execute)
    for line in done:
        say(line)
    say(f"{len(done)} topics {'changed' if execute else 'would change'}")


def worker(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="processors, or `notifier` (every queue) or `notifier:QUEUE`; all processors and notifiers without it"
        ),
    ] = None,
) -> None:
    """Run the named processors, or notifiers, in one process, until SIGTERM or Ctrl-C.

    Without a name: all processors in one process, and each queue's notifier in a process beside it. They end together, so that
    whoever supervises this command sees it when one has failed. If PAYRELAY_METRICS_PORT is set, the processors serve metrics there
    and the notifiers at the next ports.
    """
    if not names:
        raise typer.Exit(_run_all())
    notifiers = {NOTIFIER: QUEUES} | NOTIFIERS
    if unknown := [name for name in names if name not in (*PROCESSORS, *notifiers)]:
        raise typer.BadParameter(f"{', '.join(unknown)}; there are: {', '.join((*PROCESSORS, *notifiers))}")
    queues = [notifiers[name] for name in names if name in notifiers]
    if not queues:
        from consumers.runtime.worker import run

        run([PROCESSORS[name] for name in dict.fromkeys(names)], current_settings())
    elif len(queues) == len(names):
        from consumers.notification.notifier.sender import run as run_sender

        run_sender(current_settings(), {queue: service for some in queues for queue, service in some.items()})
    else:
        raise typer.BadParameter("notifiers and processors run in processes of their own: name either, or none for all")


def _run_all() -> int:
    """Every processor and every notifier runs, until SIGTERM or Ctrl-C or until one of them ends; returns the exit code."""
    from ops.stack.together import run_together

    settings = current_settings()  # an error in them is reported once, not by each process
    commands = [["worker", *PROCESSORS], *(["worker", name] for name in NOTIFIERS)]
    port = settings.metrics_port
    ports = [{"PAYRELAY_METRICS_PORT": str(port + place)} if port else {} for place in range(len(commands))]
    return run_together(commands, ports)


def serve(
    names: Annotated[list[str] | None, typer.Argument(help="services; all without it")] = None,
) -> None:
    """Run HTTP services in one process, until SIGTERM or Ctrl-C."""
    wanted = names or list(HTTP_SERVICES)
    if unknown := [name for name in wanted if name not in HTTP_SERVICES]:
        raise typer.BadParameter(f"{', '.join(unknown)}; there are: {', '.join(HTTP_SERVICES)}")
    from outbox.http.app import serve as serve_apps

    settings = current_settings()
    services = [HTTP_SERVICES[name] for name in wanted]
    serve_apps(
        [(resolve_name(service.app)(settings), settings.host, service.port(settings)) for service in services], settings
    )


def tool(
    program: Annotated[
        str,
        typer.Argument(
            help="psql, pg_dump, pg_restore, pg_basebackup; kafka-topics, kafka-consumer-groups and the like"
        ),
    ],
    arguments: Annotated[list[str] | None, typer.Argument(help="its own, as it takes them")] = None,
) -> None:
    """Run a program of PostgreSQL's on the stack's database, as its owner, or of Kafka's on its broker, of the server's own version.

    Exit code 1 if the program fails.
    """
    from ops.stack.programs import installed_programs
    from ops.stack.tools import run_tool

    settings = current_settings()
    sys.stdout.flush()
    if run_tool(settings, program, arguments or [], programs=installed_programs(this_stack().home)):
        raise typer.Exit(1)


PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""How `tool` is read: what stands behind the program is the program's."""


def exporter() -> None:
    """Serve metrics of what belongs to no process: lag, outbox, slot, heartbeat, parked, ledger. Until SIGTERM or Ctrl-C."""
    from ops.monitoring.exporter import run

    run(current_settings())


COMMANDS = (migrate, worker, serve, exporter)
