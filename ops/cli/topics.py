"""payrelay topics: list, apply, tail."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ops.cli.context import current_settings
from ops.cli.intent import is_meant
from ops.cli.options import Execute, Output, whole
from ops.cli.output import Format, json_line, print_line, print_rows, reader_has_gone, say

app = typer.Typer(help="List, apply and read the topics that schemas/topics.py declares.", no_args_is_help=True)


@app.command("list")
def topics_list(output: Output = Format.TABLE) -> None:
    """Show each declared topic and how the broker's topic differs from it. Exit code 1 if one differs."""
    from ops.kafka.topics import topic_states

    rows = [asdict(state) | {"problems": "; ".join(state.problems)} for state in topic_states(current_settings())]
    print_rows(rows, output, less=("topic_id", "retention_ms", "found", "partitions"))
    if any(row["problems"] for row in rows):
        raise typer.Exit(1)


@app.command("apply")
def topics_apply(
    execute: Execute = False,
    output: Output = Format.TABLE,
) -> None:
    """Show missing topics and differences of configuration; with --execute, create and change them.

    Partitions are never added, because keys would move. Exit code 1 without --execute if something would change.
    """
    from ops.kafka.topics import apply_topics

    done = apply_topics(current_settings(), execute=execute)
    if output is Format.TABLE:
        for line in done:
            say(line)
    else:
        print_rows([{"change": line} for line in done], output, columns=("change",))
    if not done:
        say("every topic is as declared: nothing to do")
    elif is_meant(f"{len(done)} topics would change", execute=execute, yes=True, does="changes them"):
        say(f"{len(done)} topics changed")
    else:
        raise typer.Exit(1)


@app.command()
def tail(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="topic name as the broker has it, e.g. payment.order")],
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="start with the oldest message; without it, only new ones")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", parser=whole(1, 10_000_000), help="stop after this many messages")
    ] = None,
    key: Annotated[str, typer.Option("--key", help="only messages with this key")] = "",
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="with --from-beginning: stop at the end of what is there now")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Print a topic's messages as they arrive, with keys, headers and bodies, until Ctrl-C.

    Joins no consumer group and commits nothing. With -o json each message is a JSON object on its own line.
    """
    from ops.kafka.tail import lines_of, row_of
    from ops.kafka.tail import tail as messages_of

    if output is Format.CSV:
        raise typer.BadParameter("messages cannot be printed as CSV: use -o table or -o json")
    if no_follow and not from_beginning:
        raise typer.BadParameter("--no-follow needs --from-beginning: without both there is nothing to print")
    shown = 0
    try:
        for message in messages_of(current_settings(), topic, from_beginning=from_beginning, live=not no_follow):
            if reader_has_gone() or (limit is not None and shown >= limit):
                return
            if message is None or (key and (message.key() or b"") != key.encode()):
                continue
            row, shown = row_of(message), shown + 1
            for line in [json_line(row)] if output is Format.JSON else lines_of(row):
                print_line(line)
            if shown == limit:
                return
    except KeyboardInterrupt:
        return
