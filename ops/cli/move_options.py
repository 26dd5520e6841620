"""Options of `payrelay offsets`: which group, which partitions, where to, and how a move is carried out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ops.cli.options import whole
from schemas.numeric import WHOLE_MAX

GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="name of the consumer group")]
Topics = Annotated[
    list[str] | None,
    typer.Option("--topic", help="only this topic, or topic:0,1 for some partitions; may be repeated"),
]
Partitions = Annotated[str, typer.Option("-p", "--partitions", metavar="0,2", help="only these partitions")]

# ---- where to -------------------------------------------------------------------------------------------------------

ToEarliest = Annotated[bool, typer.Option("--to-earliest", help="to the oldest message that is kept")]
ToLatest = Annotated[bool, typer.Option("--to-latest", help="to the end of the log")]
ToCurrent = Annotated[
    bool, typer.Option("--to-current", help="to its present position, moved into the log if it lies outside")
]
ToOffset = Annotated[int | None, typer.Option("--to-offset", parser=whole(), help="to this offset")]
ToDatetime = Annotated[
    str,
    typer.Option(
        "--to-datetime",
        metavar="TIME",
        help="to the first message from this time on: ISO 8601, or epoch in s or ms",
    ),
]
ByDuration = Annotated[
    str,
    typer.Option(
        "--by-duration", metavar="AGO", help="to the first message from this long ago on: 90m, 6h, 2d, PT1H30M"
    ),
]
ShiftBy = Annotated[
    int | None,
    typer.Option("--shift-by", parser=whole(-WHOLE_MAX), metavar="N", help="by this many offsets; back if negative"),
]
FromFile = Annotated[
    Path | None,
    typer.Option(
        "--from-file",
        exists=True,
        dir_okay=False,
        help="to the offsets in a CSV file, as kafka-consumer-groups writes it",
    ),
]
FromGroup = Annotated[str | None, typer.Option("--from-group", help="to the position of this other group")]
OffsetMap = Annotated[
    str,
    typer.Option("--map", metavar="JSON", help='to an offset per partition of one --topic: {"0": 123, "1": 456}'),
]
ToOrder = Annotated[
    str | None,
    typer.Option("--to-order", metavar="ORDER_NO", help="payrelay's consumers only: to the order's first event"),
]
ToEvent = Annotated[
    str | None, typer.Option("--to-event", metavar="EVENT_ID", help="payrelay's consumers only: to this event")
]
FromKafka = Annotated[
    bool,
    typer.Option("--from-kafka", help="payrelay's consumers only: to the offset that another tool committed"),
]

# ---- how a move is carried out --------------------------------------------------------------------------------------

Wait = Annotated[
    str, typer.Option("--wait", metavar="DURATION", help="how long to wait for the group to become inactive, e.g. 60s")
]
StopWorkers = Annotated[
    bool,
    typer.Option("--stop-workers", help="stop the local stack's workers of the group meanwhile, and start them again"),
]
UndoFile = Annotated[
    Path | None,
    typer.Option(
        "--undo-file", help="undo file to write; default: a new one in the stack's folder, or below .payrelay/undo"
    ),
]
CountLimit = Annotated[
    int,
    typer.Option(
        "--count-limit",
        parser=whole(0, 100_000_000),
        help="if more messages than this lie between old and new, do not count which are applied",
    ),
]
