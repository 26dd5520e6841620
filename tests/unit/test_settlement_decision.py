"""What a verified notification means for an order as it stands: every case, and money never dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.payments.settlement import Standing, decide
from schemas.bank import BankNotification

OPEN = Standing(status="CREATED", amount_fen=100, currency="CNY", bank_transaction_no=None, expired=False)
SUCCESS = BankNotification(transaction_no="B1", payment_no="P1", amount_fen=100, currency="CNY", status="SUCCESS")
FAILED = BankNotification(
    transaction_no="B1", payment_no="P1", amount_fen=100, currency="CNY", status="FAILED", reason="no"
)
OTHER_AMOUNT = BankNotification(transaction_no="B1", payment_no="P1", amount_fen=99, currency="CNY", status="SUCCESS")


@pytest.mark.parametrize(("order", "told", "act"), [
    (OPEN, SUCCESS, "settle"),
    (OPEN, FAILED, "fail"),
    (OPEN, OTHER_AMOUNT, "suspend"),
    (None, SUCCESS, "suspend"),
    (None, FAILED, "refuse"),
    (replace(OPEN, expired=True), SUCCESS, "suspend"),
    (replace(OPEN, status="EXPIRED", expired=True), SUCCESS, "suspend"),
    (replace(OPEN, status="FAILED"), SUCCESS, "suspend"),
    (replace(OPEN, status="SETTLED", bank_transaction_no="B1"), SUCCESS, "repeat"),
    (replace(OPEN, status="SETTLED", bank_transaction_no="B0"), SUCCESS, "suspend"),
    (replace(OPEN, status="SETTLED", bank_transaction_no="B1"), FAILED, "repeat"),
    (replace(OPEN, currency="USD"), SUCCESS, "suspend"),
])  # fmt: skip
def test_decision(order: Standing | None, told: BankNotification, act: str) -> None:
    assert decide(order, told).act == act


@given(
    st.one_of(st.none(), st.builds(
        Standing, status=st.sampled_from(["CREATED", "SETTLED", "FAILED", "EXPIRED"]), amount_fen=st.integers(99, 101),
        currency=st.sampled_from(["CNY", "USD"]), bank_transaction_no=st.sampled_from([None, "B1", "B2"]), expired=st.booleans(),
    )),
)  # fmt: skip
def test_money_that_the_bank_has_taken_is_settled_repeated_or_in_suspense(order: Standing | None) -> None:
    assert decide(order, SUCCESS).act in ("settle", "repeat", "suspend")
