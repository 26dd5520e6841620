"""How commands speak: -o table|json|csv, exit codes 0 done, 1 found something wrong, 2 usage, 3 cannot reach.

All text of a command goes through here: what an event, a group or a server has put into it can neither steer the terminal nor
pass for a line of ours, and a spreadsheet takes none of it for a formula.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TextIO

from ops.cli.table import Cells, Column, block, fitting, measured, plain_table, width_of

if TYPE_CHECKING:
    from rich.console import Console


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


PIPE_WIDTH = 10_000
"""Columns where standard output is no terminal: nothing is cut or wrapped that a program or a file is to read."""
if TYPE_CHECKING:
    console: Console
    """Of standard output."""
    errors: Console
    """Of standard error."""
else:

    def __getattr__(name):
        """`console` and `errors` are made when they are first used: most commands print plain lines, and rich takes a tenth of a second."""
        if name not in ("console", "errors"):
            raise AttributeError(name)
        from rich.console import Console

        if name == "errors":
            made = Console(stderr=True, soft_wrap=True, emoji=False)
        else:
            width = None if _is_terminal() else PIPE_WIDTH
            made = Console(width=width, soft_wrap=True, emoji=False, markup=False)
        return globals().setdefault(name, made)


def _is_terminal() -> bool:
    return bool(sys.stdout and sys.stdout.isatty())


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    output: Format,
    *,
    columns: Sequence[str] | None = None,
    less: Collection[str] = (),
    again: bool = False,
) -> None:
    """The rows are on standard output: a table for people, a JSON list, or CSV with a header.

    `again`: they are printed again and again, so the JSON list is one line.
    On a terminal that is too narrow for the table, words wrap, then the columns of `less` are left out, in that order, and then
    each row is a block of lines. A value without spaces, such as an id, is never cut or broken.
    """
    names = list(columns or (rows[0].keys() if rows else ()))
    if output is Format.JSON and again:
        print_line(json_line(rows))
    elif output is Format.JSON:
        print_json(rows)
    elif output is Format.CSV:
        writer = csv.writer(sys.stdout)
        writer.writerow(names)
        writer.writerows([csv_cell(row.get(name)) for name in names] for row in rows)
    else:
        _print_table(names, rows, less)


def print_object(content: Mapping[str, Any], output: Format) -> None:
    """One thing is on standard output: its fields line by line, or as JSON; what is nested is JSON in its line."""
    if output is Format.JSON:
        print_json(content)
    else:
        rows = [{"field": name, "value": _field(value)} for name, value in content.items()]
        print_rows(rows, output, columns=("field", "value"))


def _field(value: object) -> object:
    return json_line(value) if isinstance(value, dict | list | tuple) else value


def print_json(content: object) -> None:
    """The content is on standard output as JSON."""
    text = json.dumps(content, indent=2, default=_plain)
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")  # the only control character that JSON leaves as it is


def json_line(content: object) -> str:
    """Return the content as JSON in one line, in ASCII: nothing of it steers a terminal."""
    return json.dumps(content, default=_plain).replace("\x7f", "\\u007f")


def print_line(text: str) -> None:
    """The text is a line on standard output."""
    _write_line(legible(text))


def _write_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(message: str) -> None:
    """The message is a line on standard error, so that standard output holds only the command's result."""
    if (shown := globals().get("errors")) is not None:  # it may have a bar in its last line
        shown.print(legible(message), markup=False, highlight=False)
    else:
        sys.stderr.write(legible(message) + "\n")
        sys.stderr.flush()


def say_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """The rows are on standard error, a line each: what is asked about is on the screen, and standard output has its own document."""
    for row in rows:
        say(", ".join(f"{name} {_field(value)}" for name, value in row.items() if value not in ("", None)))


def confirm(question: str) -> None:
    """The operator has said yes. Raises Abort otherwise."""
    import typer

    typer.confirm(legible(question), abort=True, err=True)


def legible(text: str) -> str:
    r"""Return the text with all that a terminal does not simply show written out: control and direction marks, stray bytes.

    >>> print(legible("M1\x1b[2J\nM2  0"))
    M1\x1b[2J\nM2  0
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or unicodedata.category(sign) == "Zs" else sign.encode("unicode_escape").decode()
        for sign in text
    )


FORMULA = re.compile(r"[=+\-@\uff1d\uff0b\uff0d\uff20]")
"""What a spreadsheet takes for the beginning of a formula; tabs and line ends are written out before."""
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def csv_cell(value: object) -> str:
    """Return a value as a cell of CSV: a number stays one, and text that a spreadsheet would calculate begins with an apostrophe.

    >>> csv_cell(-5), csv_cell("-5"), csv_cell("-M1"), csv_cell("=1+1"), csv_cell("M1")
    ('-5', '-5', "'-M1", "'=1+1", 'M1')
    """
    text = legible(_text(value))
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def open_channels() -> None:
    """Standard output and error take any text, and go on taking it when their reader has gone: `… | head -1` ends well.

    The command is carried out to its end then, and its exit code is its own. Called once, before anything is written.
    """
    sys.stdout, sys.stderr = _channel(sys.stdout, 1), _channel(sys.stderr, 2)


def reader_has_gone() -> bool:
    """Return whether nobody reads standard output any more: what would go on for ever ends."""
    return getattr(getattr(sys.stdout, "buffer", None), "raw", None) in _abandoned


_abandoned: set[object] = set()


def discard_output() -> None:
    """The rest of standard output is discarded: it cannot be written, as on a full disk, which was reported."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Pipe):
        raw.abandon()


class _Pipe(io.FileIO):
    """A file descriptor whose reader may go."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            self.abandon()
            return len(content)

    def abandon(self) -> None:
        """Whatever is written from now on goes nowhere."""
        _abandoned.add(self)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def _channel(stream: Any, descriptor: int) -> TextIO:
    if stream is None:  # it was closed before we began
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - as long as the process
    if stream not in (sys.__stdout__, sys.__stderr__) or stream.fileno() != descriptor:
        kept: TextIO = stream
        return kept
    return io.TextIOWrapper(
        io.BufferedWriter(_Pipe(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.isatty() or descriptor == 2,
    )


def _print_table(names: Sequence[str], rows: Sequence[Mapping[str, Any]], less: Collection[str]) -> None:
    cells = [{name: legible(_text(row.get(name))) for name in names} for row in rows]
    columns = [measured(name, cells) for name in names]
    is_narrow = _is_terminal() or "console" in globals() or width_of(columns) > PIPE_WIDTH
    if not is_narrow:
        for line in plain_table(columns, cells):
            _write_line(line)
    else:
        _print_within(columns, rows, cells, less)


def _print_within(
    columns: list[Column], rows: Sequence[Mapping[str, Any]], whole: Cells, less: Collection[str]
) -> None:
    """The table is on standard output, within the console's width."""
    from rich.table import Table

    console: Console = sys.modules[__name__].console
    cells, names = whole, [column.name for column in columns]
    if cells and width_of(columns) > console.width:
        cells = [{name: legible(_text(_to_the_second(row.get(name)))) for name in names} for row in rows]
        columns = [measured(name, cells) for name in names if any(row[name] for row in cells)]
    widths, left_out = fitting(columns, console.width, less=less)
    if widths is None:
        for row in whole:
            console.print(block(row, console.width), highlight=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, width in widths.items():
        table.add_column(name, width=width)
    for row in cells:
        table.add_row(*(row[name] for name in widths))
    console.print(table)
    if left_out:
        say(f"left out at {console.width} columns: {', '.join(left_out)}; -o json has all")


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _to_the_second(value: object) -> object:
    if not isinstance(value, datetime) or value.tzinfo is None:
        return value
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
