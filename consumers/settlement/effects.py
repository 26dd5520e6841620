"""What events should have caused at settlement: the end of a balance payment. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from consumers.effects import Effects, Values
from schemas.codec import Envelope
from schemas.events import BalancePaid, BalanceRefused

ORDER = "order"


def expected(envelope: Envelope, _: Mapping[str, str]) -> Values:
    """Return the status that an answer of funds should have given to its payment."""
    match envelope.event:
        case BalancePaid():
            return {ORDER: "SETTLED"}
        case BalanceRefused():
            return {ORDER: "FAILED"}
        case _:
            return {}


EFFECTS = Effects(
    expected=expected,
    rows="""
        SELECT payment_no AS business_no, 'order' AS effect, status AS value, NULL AS status
        FROM payments.payment WHERE method = 'balance' AND status IN ('SETTLED', 'FAILED') AND {where}""",
    no_rebuild="its rows are payments' orders, which HTTP requests make and time expires: its topic tells only how some end",
)
