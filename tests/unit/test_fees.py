"""Fee rules: within the amount, monotone, minimum and cap hold, and their words fit the event."""

from __future__ import annotations

from fractions import Fraction

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from producers.payments.fees import FeeRule, described, fee_of
from tests.factories import settled

FEN_MAX = 10**12 - 1
"""The most that the tables take for a rule's parts."""

parts = st.integers(0, FEN_MAX) | st.integers(0, 500)
amounts = st.integers(1, 10**15) | st.integers(1, 2_000)


@st.composite
def rules(draw: st.DrawFn) -> FeeRule:
    cap_fen = draw(st.none() | parts)
    return FeeRule(
        rate_bp=draw(st.integers(0, 10_000)),
        fixed_fen=draw(parts),
        min_fen=draw(st.integers(0, FEN_MAX if cap_fen is None else cap_fen)),
        cap_fen=cap_fen,
    )


@given(rules(), amounts)
def test_a_fee_is_within_its_bounds(rule: FeeRule, amount_fen: int) -> None:
    fee_fen = fee_of(rule, amount_fen)
    assert 0 <= fee_fen <= amount_fen
    assert fee_fen >= min(rule.min_fen, amount_fen)
    assert rule.cap_fen is None or fee_fen <= rule.cap_fen


@given(rules(), amounts, amounts)
def test_a_larger_amount_has_no_smaller_fee(rule: FeeRule, one_fen: int, other_fen: int) -> None:
    low, high = sorted((one_fen, other_fen))
    assert fee_of(rule, low) <= fee_of(rule, high)


@given(rules(), amounts)
def test_between_its_bounds_a_fee_is_the_exact_one_to_half_a_fen(rule: FeeRule, amount_fen: int) -> None:
    fee_fen = fee_of(rule, amount_fen)
    if fee_fen not in (rule.min_fen, rule.cap_fen, amount_fen):
        exact = Fraction(amount_fen * rule.rate_bp, 10_000) + rule.fixed_fen
        assert abs(fee_fen - exact) <= Fraction(1, 2)
        assert abs(fee_fen - exact) < Fraction(1, 2) or (fee_fen - rule.fixed_fen) % 2 == 0


@given(rules())
def test_a_rules_words_fit_the_event(rule: FeeRule) -> None:
    event = settled(fee_rule=described(rule), cost_rule=described(rule))
    assert msgspec.json.decode(msgspec.json.encode(event), type=type(event)) == event
