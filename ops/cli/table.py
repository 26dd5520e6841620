"""A table within a terminal's width: words wrap, then columns are left out, then each row is a block of lines. Pure.

A value without spaces, such as an id, is never cut or broken.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

PROSE_MIN = 16
"""A column of words is not made narrower than this: a table of single words is no table."""
COMMAND = "payrelay "
GAP = 2
"""Spaces between two columns."""

Cells = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Column:
    """A column's widths: of all in one line, and with its words wrapped."""

    name: str
    natural: int
    least: int


def plain_table(columns: Sequence[Column], cells: Cells) -> list[str]:
    """Return a table's lines where nothing limits their width; as rich prints them, which need not be imported for it."""
    widths = {column.name: column.natural for column in columns}
    gap = " " * GAP
    return [
        gap.join(row[name] + " " * (width - _cell_len(row[name])) for name, width in widths.items())
        for row in ({name: name for name in widths}, *cells)
    ]


def width_of(columns: Sequence[Column]) -> int:
    """Return how wide a table is where nothing wraps."""
    return sum(column.natural + GAP for column in columns) - GAP


def _cell_len(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def measured(name: str, cells: Cells) -> Column:
    """Return a column as its name and its values ask for it."""
    values = [name, *(row[name] for row in cells)]
    natural = max(map(_cell_len, values))
    word = max(map(_least, values))
    return Column(name=name, natural=natural, least=max(word, min(natural, PROSE_MIN)))


def _least(value: str) -> int:
    """Return how narrow a value may be: its longest word, and all of a command, which is to be copied."""
    return _cell_len(value) if value.startswith(COMMAND) else max(map(_cell_len, value.split(" ")))


def fitting(
    columns: Sequence[Column], width: int, *, less: Collection[str]
) -> tuple[dict[str, int] | None, tuple[str, ...]]:
    """Return how wide each column is to be, and which are left out; no widths where none will do.

    >>> id, error = Column("id", 8, 8), Column("error", 40, 16)
    >>> fitting([id, error], 80, less=()), fitting([id, error], 30, less=())
    (({'id': 8, 'error': 40}, ()), ({'id': 8, 'error': 20}, ()))
    >>> fitting([id, error], 20, less=["error"]), fitting([id, error], 20, less=())
    (({'id': 8}, ('error',)), (None, ()))
    """
    left_out: list[str] = []
    for name in ("", *less):
        if name:
            left_out += [column.name for column in columns if column.name == name]
        kept = [column for column in columns if column.name not in left_out]
        room = width - GAP * (len(kept) - 1)
        if sum(column.natural for column in kept) <= room:
            return {column.name: column.natural for column in kept}, tuple(left_out)
        if sum(column.least for column in kept) <= room:
            return _shared_out(kept, room), tuple(left_out)
    return None, ()


def _shared_out(columns: Sequence[Column], room: int) -> dict[str, int]:
    """Return widths that fill the room: what is over goes to the columns that lack least, first."""
    widths = {column.name: column.least for column in columns}
    over = room - sum(widths.values())
    wanting = sorted(columns, key=lambda column: column.natural - column.least)
    for number, column in enumerate(wanting):
        more = min(column.natural - column.least, over // (len(wanting) - number))
        widths[column.name] += more
        over -= more
    return widths


def block(row: Mapping[str, str], width: int) -> str:
    """Return a row as lines of name and value, and an empty line; what is empty is left out, and no word is broken.

    >>> block({"id": "accounting:1", "key": "", "error": "it broke"}, 40).splitlines()
    ['id     accounting:1', 'error  it broke']
    """
    label = max(map(_cell_len, row), default=0) + GAP
    lines = []
    for name, value in row.items():
        beside = label + _least(value) <= width
        indent = label if beside else min(GAP, max(0, width - _least(value)))
        more = [" " * indent + line for line in _wrapped(value, width - indent)]
        if value:
            lines += [f"{name:<{label}}{more[0][label:]}", *more[1:]] if beside else [name, *more]
    return "\n".join([*lines, ""])


def _wrapped(value: str, width: int) -> list[str]:
    if value.startswith(COMMAND):
        return [value]
    return textwrap.wrap(value, max(1, width), break_long_words=False, break_on_hyphens=False) or [value]
