"""Fees and points, as numbers."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.money import fee_at_rate, format_yuan, parse_yuan, points_of


@pytest.mark.parametrize(("amount_fen", "rate_bp", "fee_fen"), [
    (10_000, 60, 60), (1, 60, 0), (83, 60, 0), (84, 60, 1), (250, 100, 2), (350, 100, 4), (100, 0, 0), (100, 10_000, 100),
])  # fmt: skip
def test_fee_is_rounded_half_even_to_the_fen(amount_fen: int, rate_bp: int, fee_fen: int) -> None:
    assert fee_at_rate(amount_fen, rate_bp) == fee_fen


@given(st.integers(1, 10**15), st.integers(0, 10_000))
def test_fee_is_within_half_a_fen_and_never_above_the_amount(amount_fen: int, rate_bp: int) -> None:
    fee_fen = fee_at_rate(amount_fen, rate_bp)
    assert abs(Fraction(amount_fen * rate_bp, 10_000) - fee_fen) <= Fraction(1, 2)
    assert 0 <= fee_fen <= amount_fen


@given(st.integers(0, 10**14))
def test_yuan_reads_back_what_it_prints(amount_fen: int) -> None:
    assert parse_yuan(format_yuan(amount_fen)) == amount_fen


@pytest.mark.parametrize("text", ["", "1.234", "-1", "1e3", "１", "1,00", " 1"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an amount"):
        parse_yuan(text)


def test_points_are_whole_yuan() -> None:
    assert [points_of(fen) for fen in (0, 99, 100, 199, 200)] == [0, 0, 1, 1, 2]
