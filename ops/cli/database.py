"""What turns to a stack's servers themselves: migrate, sql, tool."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from ops.cli.context import current_settings, local_folder, this_stack
from ops.cli.output import say


def migrate() -> None:
    """Bring the database to this version: schemas, roles, partitions for the days ahead, publication, slot. Safe to repeat."""
    from outbox.migrate import migrate as bring

    bring(current_settings(), today=datetime.now(UTC).date())
    say("the database has the schemas, roles, days, publication and slot of this version")


def sql(
    as_: Annotated[
        str,
        typer.Option(
            "--as", metavar="SERVICE", help="use this service's role, which can write its own schema; local stack only"
        ),
    ] = "",
    command: Annotated[str, typer.Option("-c", "--command", metavar="SQL", help="run this SQL and exit")] = "",
    arguments: Annotated[list[str] | None, typer.Argument(help="arguments for psql, after --")] = None,
) -> None:
    """Open psql on the stack's database with the role `ops`: it can read every service's rows, in read-only transactions.

    Exit code 1 if psql fails.
    """
    from ops.stack.tools import run_sql
    from outbox.errors import Refused, UnknownName
    from outbox.settings import READER, SERVICES

    if as_ and as_ not in SERVICES:
        raise UnknownName(f"there is no service {as_!r}; there are: {', '.join(SERVICES)}")
    if as_ and local_folder() is None:
        raise Refused(
            "--as works on the local stack only, and PAYRELAY_KAFKA_BOOTSTRAP names another stack, whose rows only its services write"
        )
    settings = current_settings()
    sys.stdout.flush()
    if run_sql(settings, as_ or READER, [*(["-c", command] if command else []), *(arguments or [])]):
        raise typer.Exit(1)


def tool(
    program: Annotated[
        str,
        typer.Argument(help="psql, pg_dump, pg_restore, pg_basebackup, kafka-topics, kafka-consumer-groups and so on"),
    ],
    arguments: Annotated[list[str] | None, typer.Argument(help="the program's own arguments")] = None,
) -> None:
    """Run a program of PostgreSQL or Kafka, of the server's own version, against the stack.

    PostgreSQL's programs connect as the database's owner. Exit code 1 if the program fails.
    """
    from ops.stack.programs import installed_programs
    from ops.stack.tools import run_tool

    settings = current_settings()
    sys.stdout.flush()
    if run_tool(settings, program, arguments or [], programs=installed_programs(this_stack().home)):
        raise typer.Exit(1)
