"""All commands, each thin: it calls a function that says what is true afterwards."""

from __future__ import annotations

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
app.command(context_settings=pipeline.PASSED_ON)(pipeline.tool)
app.add_typer(pipeline.topics, name="topics")
app.add_typer(connect.app, name="connect")
app.add_typer(console.app, name="console")
app.add_typer(ledger.app, name="ledger")
app.add_typer(notify.app, name="notify")
app.add_typer(offsets.app, name="offsets")
app.add_typer(parked.app, name="parked")
app.add_typer(replay.app, name="replay")
