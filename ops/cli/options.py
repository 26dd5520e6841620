"""Options that many commands have, and what numbers options take: `parser=whole(1, 100)`, `parser=decimal(0, 60)`."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Annotated

import typer

from ops.cli.output import Format
from schemas.numeric import WHOLE_MAX, parse_decimal, parse_whole

DAY_S = 86_400

Output = Annotated[Format, typer.Option("-o", "--output", help="output format: table, json or csv")]
OutputOfOne = Annotated[
    Format, typer.Option("-o", "--output", help="output format: table, json or csv (default: json)")
]
Execute = Annotated[bool, typer.Option("--execute", help="carry it out; without it, only show what would be done")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask for confirmation")]
Stack = Annotated[str, typer.Option("--stack", help="name of the stack; several can run side by side")]


def whole(low: int = 0, high: int = WHOLE_MAX) -> Callable[[str | int], int]:
    """Return what reads a whole number within bounds; anything else is wrong usage (exit code 2)."""

    def read(given: str | int) -> int:
        if isinstance(given, int):  # the default
            return given
        try:
            return parse_whole(given, low=low, high=high)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    read.__name__ = _span(low, high)
    return read


def decimal(low: float, high: float) -> Callable[[str | float], float]:
    """Return what reads a number with at most three decimals within bounds; anything else is wrong usage (exit code 2)."""

    def read(given: str | float) -> float:
        if isinstance(given, float):  # the default
            return given
        try:
            return float(parse_decimal(given, low=Decimal(str(low)), high=Decimal(str(high)), places=3))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    read.__name__ = _span(low, high)
    return read


def _span(low: float, high: float) -> str:
    """Return what the help shows for the value.

    >>> _span(1, 100), _span(0, WHOLE_MAX), _span(-WHOLE_MAX, WHOLE_MAX)
    ('1..100', '0..', 'number')
    """
    if high < WHOLE_MAX:
        return f"{low}..{high}"
    return f"{low}.." if low > -WHOLE_MAX else "number"
