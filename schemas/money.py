"""Money: an integer of minor units (fen) beside a currency. No float ever holds an amount."""

from __future__ import annotations

import re
from fractions import Fraction

FEN_PER_YUAN = 100
CNY = "CNY"
AMOUNT_FEN_MAX = 10**15
"""Of any event or entry."""

_YUAN = re.compile(r"\d{1,13}(\.\d{1,2})?", re.ASCII)


def parse_yuan(text: str) -> int:
    """Return the fen that a decimal text of yuan stands for; raises ValueError on anything else.

    >>> parse_yuan("12.3"), parse_yuan("0.01")
    (1230, 1)
    """
    if not _YUAN.fullmatch(text):
        raise ValueError(f"not an amount of yuan with at most two decimals: {text!r}")
    whole, _, cents = text.partition(".")
    return int(whole) * FEN_PER_YUAN + int(cents.ljust(2, "0"))


def format_yuan(amount_fen: int) -> str:
    """Return an amount as yuan with two decimals.

    >>> format_yuan(123456), format_yuan(-5)
    ('1234.56', '-0.05')
    """
    sign = "-" if amount_fen < 0 else ""
    yuan, fen = divmod(abs(amount_fen), FEN_PER_YUAN)
    return f"{sign}{yuan}.{fen:02d}"


def fee_at_rate(amount_fen: int, rate_bp: int) -> int:
    """Return the fee of an amount at a rate in basis points (1/10,000), rounded half-even to the fen.

    >>> fee_at_rate(10_000, 60)     # 100.00 yuan at 0.60 %
    60
    >>> fee_at_rate(250, 100), fee_at_rate(350, 100)    # 2.5 and 3.5 fen: half goes to the even fen
    (2, 4)
    """
    return round(Fraction(amount_fen * rate_bp, 10_000))


def points_of(amount_fen: int) -> int:
    """Return the points that an amount earns: one per whole yuan.

    >>> points_of(199), points_of(99)
    (1, 0)
    """
    return amount_fen // FEN_PER_YUAN
