"""payrelay timeline: one order's whole story."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ops.cli.context import current_settings
from ops.cli.options import Output
from ops.cli.output import Format, print_json, print_line, print_rows, say
from outbox.errors import UnknownName


def timeline(
    number: Annotated[str, typer.Argument(metavar="ORDER_NO", help="number of an order or a payment")],
    merchant: Annotated[
        str, typer.Option("--merchant", help="only this merchant's order: other merchants may use the same number")
    ] = "",
    output: Output = Format.TABLE,
) -> None:
    """Show an order's whole story across every table and topic, in time order, with latencies.

    Whatever should be there but is not has a line `missing`, with the command that fixes it. Exit code 1 if something is
    missing.
    """
    from ops.timeline.story import StoryLine, timeline

    stories = timeline(current_settings(), number, merchant_no=merchant)
    if not stories:
        raise UnknownName(
            f"no order and no payment has the number {number!r}: check it, and --merchant if you gave one"
        )
    if output is Format.JSON:
        print_json([asdict(story) for story in stories])
    elif output is Format.CSV:
        rows = [{"payment_no": story.payment_no, **asdict(line)} for story in stories for line in story.lines]
        print_rows(rows, output)
    else:
        for story in stories:
            print_line(
                f"payment {story.payment_no} of order {story.order_no} at merchant {story.merchant_no}: "
                f"{story.status}, {story.amount_fen} fen {story.currency}, {story.method}"
            )
            columns = [
                name
                for name in StoryLine.__dataclass_fields__
                if name != "fix" or any(line.fix for line in story.lines)
            ]
            print_rows([asdict(line) for line in story.lines], output, columns=columns)
    if holes := sum(not story.is_whole for story in stories):
        say(f"{holes} of {len(stories)} payments have something missing: column fix names the command")
        raise typer.Exit(1)
