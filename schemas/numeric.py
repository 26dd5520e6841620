"""Numbers in text from outside: queries, options, files, headers and settings are all read by these two functions.

A number is read once: the text that is checked is the text that is used. Its length is bounded before it is parsed.
"""

from __future__ import annotations

import re
from decimal import Decimal

WHOLE_MAX = 2**63 - 1
"""The largest number that a bigint column or a Kafka offset can hold."""

LENGTH_MAX = 40
"""No text longer than this is looked at as a number."""

_WHOLE = re.compile(r"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(r"(?!-0(\.0*)?$)-?(?:0|[1-9][0-9]*)(?P<fraction>\.[0-9]+)?")


def parse_whole(text: str | bytes, *, low: int = 0, high: int = WHOLE_MAX) -> int:
    """Return the whole number that a text is, within low and high; raises ValueError, whose message names both.

    ASCII digits only: a sign other than a minus, a space, an underscore or a leading zero makes it no number.

    >>> parse_whole("0"), parse_whole(b"199"), parse_whole("-1", low=-1)
    (0, 199, -1)
    >>> parse_whole("00000000199999", low=1, high=200)
    Traceback (most recent call last):
    ValueError: '00000000199999' is not a whole number from 1 to 200
    """
    given = _as_text(text)
    if len(given) <= LENGTH_MAX and _WHOLE.fullmatch(given) and low <= int(given) <= high:
        return int(given)
    raise ValueError(f"{_shown(given)} is not a whole number from {low} to {high}")


def parse_decimal(text: str | bytes, *, low: Decimal | int, high: Decimal | int, places: int = 6) -> Decimal:
    """Return the decimal number that a text is, within low and high, exactly; raises ValueError, whose message names both.

    Written like a whole number, with at most `places` digits behind a point: no exponent, no infinity, no NaN.

    >>> parse_decimal("0.5", low=0, high=60), parse_decimal("60", low=0, high=60)
    (Decimal('0.5'), Decimal('60'))
    >>> parse_decimal("nan", low=0, high=60)
    Traceback (most recent call last):
    ValueError: 'nan' is not a number from 0 to 60 with at most 6 decimals
    """
    given = _as_text(text)
    match = _DECIMAL.fullmatch(given) if len(given) <= LENGTH_MAX else None
    if match and len(match["fraction"] or "") <= places + 1 and low <= Decimal(given) <= high:
        return Decimal(given)
    raise ValueError(f"{_shown(given)} is not a number from {low} to {high} with at most {places} decimals")


def _as_text(text: str | bytes) -> str:
    return text if isinstance(text, str) else text[: LENGTH_MAX + 1].decode("latin-1")


def _shown(text: str) -> str:
    return repr(text if len(text) <= LENGTH_MAX else f"{text[:LENGTH_MAX]}…")
