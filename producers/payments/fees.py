"""What a payment costs, by rule: the merchant's fee, and what the channel keeps. Pure; all of it in whole fen."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.money import fee_at_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class FeeRule:
    """A rate and a fixed part, not below a minimum, not above a cap. The tables check that `min_fen` is within `cap_fen`."""

    rate_bp: int = 0
    fixed_fen: int = 0
    min_fen: int = 0
    cap_fen: int | None = None


@dataclass(frozen=True, kw_only=True)
class Charges:
    """What is decided of a payment's money, once."""

    fee_fen: int
    fee_rule: str
    cost_fen: int
    cost_rule: str
    points: int


def fee_of(rule: FeeRule, amount_fen: int) -> int:
    """Return what a rule takes of an amount: the rate's part rounded half-even to the fen, never more than the amount.

    >>> plain = FeeRule(rate_bp=60)
    >>> fee_of(plain, 10_000)                                   # 0.60 % of 100.00 yuan
    60
    >>> half = FeeRule(rate_bp=100, fixed_fen=10)
    >>> fee_of(half, 250), fee_of(half, 350)                    # 2.5 and 3.5 fen go to the even fen; then the fixed 10
    (12, 14)
    >>> bounded = FeeRule(rate_bp=38, fixed_fen=2, min_fen=8, cap_fen=2_000)
    >>> fee_of(bounded, 1_000), fee_of(bounded, 10_000)         # 3.8 -> 4 and 2 are below the minimum; 38 and 2
    (8, 40)
    >>> fee_of(bounded, 1_000_000)                              # 3,800 and 2 are above the cap
    2000
    >>> fee_of(bounded, 8), fee_of(bounded, 5)                  # an amount smaller than the minimum is all fee
    (8, 5)
    """
    fee_fen = max(fee_at_rate(amount_fen, rule.rate_bp) + rule.fixed_fen, rule.min_fen)
    if rule.cap_fen is not None:
        fee_fen = min(fee_fen, rule.cap_fen)
    return min(fee_fen, amount_fen)


def described(rule: FeeRule) -> str:
    """Return a rule in words, for the record.

    >>> described(FeeRule(rate_bp=60)), described(FeeRule(rate_bp=38, fixed_fen=2, min_fen=8, cap_fen=0))
    ('rate 60 bp', 'rate 38 bp + 2, min 8, max 0')
    """
    fixed = f" + {rule.fixed_fen}" if rule.fixed_fen else ""
    least = f", min {rule.min_fen}" if rule.min_fen else ""
    most = f", max {rule.cap_fen}" if rule.cap_fen is not None else ""
    return f"rate {rule.rate_bp} bp{fixed}{least}{most}"
