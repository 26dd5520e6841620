"""The command line: thin; each command calls a function that says what is true afterwards."""

from __future__ import annotations

import sys

import typer

from ops.cli import (
    bench,
    connect,
    console,
    demo,
    doctor,
    ledger,
    local,
    notify,
    offsets,
    parked,
    pipeline,
    reconcile,
    replay,
    timeline,
)
from ops.cli.output import say
from outbox.errors import PayrelayError, Unreachable

app = typer.Typer(
    name="payrelay",
    help="An event-driven payment pipeline that never loses money and never moves it twice.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
for module in (local, pipeline, demo, doctor, timeline, reconcile, bench):
    for command in module.COMMANDS:
        app.command()(command)
app.add_typer(pipeline.topics, name="topics")
app.add_typer(connect.app, name="connect")
app.add_typer(console.app, name="console")
app.add_typer(ledger.app, name="ledger")
app.add_typer(notify.app, name="notify")
app.add_typer(offsets.app, name="offsets")
app.add_typer(parked.app, name="parked")
app.add_typer(replay.app, name="replay")


def main() -> None:
    """Run a command; errors of ours become one message and an exit code."""
    try:
        app()
    except PayrelayError as error:
        say(f"payrelay: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        from sqlalchemy.exc import OperationalError  # here: most commands start faster without it

        if not isinstance(error, OperationalError):
            raise
        say(f"payrelay: PostgreSQL does not answer: {str(error.orig).splitlines()[0]}")
        sys.exit(Unreachable.exit_code)


if __name__ == "__main__":
    main()
