"""What a verified notification means for an order in each of its states: every case, and money is never dropped."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.payments.settlement import Booking, OrderState, decide, taken_at
from schemas.bank import BankNotification

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OPEN = OrderState(status="CREATED", amount_fen=100, currency="CNY", expired=False)
SUCCESS = BankNotification(transaction_no="B1", payment_no="P1", amount_fen=100, currency="CNY", status="SUCCESS")
FAILED = BankNotification(
    transaction_no="B1", payment_no="P1", amount_fen=100, currency="CNY", status="FAILED", reason="no"
)
OTHER_AMOUNT = BankNotification(transaction_no="B1", payment_no="P1", amount_fen=99, currency="CNY", status="SUCCESS")


BOOKED = Booking(payment_no="P1", amount_fen=100, currency="CNY")
SETTLED = replace(OPEN, status="SETTLED")


@pytest.mark.parametrize(("order", "notification", "booking", "act"), [
    (OPEN, SUCCESS, None, "settle"),
    (OPEN, FAILED, None, "fail"),
    (OPEN, OTHER_AMOUNT, None, "suspend"),
    (None, SUCCESS, None, "suspend"),
    (None, FAILED, None, "refuse"),
    (replace(OPEN, expired=True), SUCCESS, None, "suspend"),
    (replace(OPEN, status="EXPIRED", expired=True), SUCCESS, None, "suspend"),
    # The bank took the money in time; we were late.
    (replace(OPEN, status="EXPIRED"), SUCCESS, None, "settle"),
    (replace(OPEN, status="EXPIRED"), OTHER_AMOUNT, None, "suspend"),
    (replace(OPEN, status="EXPIRED", currency="USD"), SUCCESS, None, "suspend"),
    (replace(OPEN, status="EXPIRED", method="balance"), SUCCESS, None, "suspend"),
    (replace(OPEN, status="EXPIRED"), SUCCESS, BOOKED, "repeat"),
    (replace(OPEN, status="EXPIRED"), FAILED, None, "repeat"),
    (replace(OPEN, status="FAILED"), SUCCESS, None, "suspend"),
    (SETTLED, SUCCESS, BOOKED, "repeat"),
    (SETTLED, SUCCESS, None, "suspend"),
    (SETTLED, FAILED, BOOKED, "repeat"),
    (replace(OPEN, currency="USD"), SUCCESS, None, "suspend"),
    # One transaction moved money once, whatever the bank says of it later.
    (OPEN, SUCCESS, BOOKED, "repeat"),
    (None, SUCCESS, BOOKED, "repeat"),
    (OPEN, SUCCESS, replace(BOOKED, amount_fen=99), "refuse"),
    (OPEN, SUCCESS, replace(BOOKED, payment_no="P2"), "refuse"),
    (SETTLED, OTHER_AMOUNT, BOOKED, "refuse"),
    (OPEN, FAILED, BOOKED, "refuse"),
    (OPEN, FAILED, replace(BOOKED, payment_no="P2"), "refuse"),
    (SETTLED, FAILED, replace(BOOKED, payment_no="P2"), "refuse"),
])  # fmt: skip
def test_decision(order: OrderState | None, notification: BankNotification, booking: Booking | None, act: str) -> None:
    assert decide(order, notification, booking).act == act


@given(
    created_s=st.integers(-10, 10),
    executed_s=st.none() | st.integers(-10, 10).map(float) | st.floats(-9e6, 9e6),
    age_max_days=st.integers(1, 30),
)
def test_what_the_bank_says_of_its_time_counts_only_where_it_can_be(
    created_s: int, executed_s: float | None, age_max_days: int
) -> None:
    executed_at = None if executed_s is None else NOW + timedelta(seconds=executed_s)
    created_at, age_max = NOW + timedelta(seconds=created_s), timedelta(days=age_max_days)
    at = taken_at(executed_at, created_at=created_at, now=NOW, age_max=age_max)
    can_be = executed_at is not None and (
        executed_at >= created_at and executed_at - NOW <= timedelta(seconds=5) and NOW - executed_at <= age_max
    )
    assert at == (executed_at if can_be else NOW)


@given(
    st.one_of(st.none(), st.builds(
        OrderState, status=st.sampled_from(["CREATED", "SETTLED", "FAILED", "EXPIRED"]), amount_fen=st.integers(99, 101),
        currency=st.sampled_from(["CNY", "USD"]), expired=st.booleans(),
    )),
)  # fmt: skip
def test_money_that_the_bank_has_taken_is_settled_or_in_suspense_once(order: OrderState | None) -> None:
    assert decide(order, SUCCESS, None).act in ("settle", "suspend")
    assert decide(order, SUCCESS, BOOKED).act == "repeat"
