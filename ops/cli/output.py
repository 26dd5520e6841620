"""How commands speak: -o table|json|csv, exit codes 0 done, 1 found something wrong, 2 usage, 3 cannot reach."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


Output = Annotated[Format, typer.Option("-o", "--output", help="table, json or csv")]

Execute = Annotated[bool, typer.Option("--execute", help="without it, only show what would be done")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]

PIPE_WIDTH = 10_000
"""Columns where standard output is no terminal: nothing is cut or wrapped that a program or a file is to read."""

console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, soft_wrap=True, emoji=False, markup=False)
errors = Console(stderr=True, soft_wrap=True, emoji=False)


def print_rows(rows: Sequence[Mapping[str, Any]], output: Format, *, columns: Sequence[str] | None = None) -> None:
    """The rows are on standard output: a table for people, a JSON list, or CSV with a header."""
    names = list(columns or (rows[0].keys() if rows else ()))
    if output is Format.JSON:
        print_json(rows)
    elif output is Format.CSV:
        writer = csv.writer(sys.stdout)
        writer.writerow(names)
        writer.writerows([_text(row.get(name)) for name in names] for row in rows)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in names:
            table.add_column(name)
        for row in rows:
            table.add_row(*(_text(row.get(name)) for name in names))
        console.print(table)


def print_json(content: object) -> None:
    """The content is on standard output as JSON."""
    sys.stdout.write(json.dumps(content, indent=2, default=_plain) + "\n")


def say(message: str) -> None:
    """The message is on standard error, so that standard output stays what was asked for."""
    errors.print(message, markup=False, highlight=False)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
