"""Vouchers balance, whatever the event; a replay in a year gives the same entries."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.accounting.effects import correcting_vouchers
from consumers.accounting.entries import Entry, Voucher, voucher_of
from consumers.effects import REVERSED, WrongEffect
from outbox.errors import Refused
from schemas.accounts import general_account
from schemas.codec import Envelope
from tests.factories import AT, ID, envelope, failed, settled, suspense


@given(st.integers(1, 10**12), st.data())
def test_a_settlement_balances(amount_fen: int, data: st.DataObject) -> None:
    fee_fen, cost_fen = data.draw(st.integers(0, amount_fen)), data.draw(st.integers(0, amount_fen))
    event = envelope(settled(amount_fen=amount_fen, fee_fen=fee_fen, cost_fen=cost_fen))
    voucher = voucher_of(event)
    assert voucher is not None
    moved = {entry.account: entry.amount_fen for entry in voucher.entries}
    assert sum(e.amount_fen for e in voucher.entries if e.side == "D") == amount_fen
    assert (moved.get("fee_income", 0), moved.get("channel_cost", 0)) == (fee_fen, cost_fen)
    assert moved.get("bank_clearing", 0) == amount_fen - cost_fen
    assert all(general_account(account).code for account in moved)
    assert voucher == voucher_of(event)


def test_money_in_suspense_has_a_voucher_and_a_failed_payment_none() -> None:
    voucher = voucher_of(envelope(suspense()))
    assert voucher is not None
    assert [(e.account, e.side) for e in voucher.entries] == [("bank_clearing", "D"), ("suspense", "C")]
    assert voucher_of(envelope(failed())) is None


def test_an_account_outside_the_chart_has_no_normal_side() -> None:
    with pytest.raises(ValueError, match="petty_cash"):
        general_account("petty_cash")


@given(st.lists(st.builds(Entry, account=st.just("suspense"), side=st.sampled_from("DC"), amount_fen=st.integers(1))))
def test_mirrored_twice_is_as_before(entries: list[Entry]) -> None:
    assert [entry.mirrored().mirrored() for entry in entries] == entries
    assert all(entry.mirrored().side != entry.side for entry in entries)


def test_a_voucher_out_of_balance_cannot_be_made() -> None:
    lines = (Entry(account="a", side="D", amount_fen=2), Entry(account="b", side="C", amount_fen=1))
    with pytest.raises(ValueError, match="debit 2, credit 1"):
        Voucher(business_no="x", kind="settlement", event_id=ID, currency="CNY", occurred_at=AT, entries=lines)


def wrong_settlement(
    event: Envelope, *, stands: str, currency: str = "CNY", reversed_by: int | None = None
) -> WrongEffect:
    voucher = voucher_of(event)
    assert voucher is not None
    return WrongEffect(
        business_no=voucher.business_no, effect=voucher.kind, stands=stands, wanted="CNY …", event_id=event.id,
        envelope=event, reason="r", actor="a", at=AT,
        state={
            "voucher_no": 7, "currency": currency, "occurred_at": AT, "reversed_by": reversed_by, "corrected_by": None,
            "entries": [asdict(entry) for entry in voucher.entries],
        },
    )  # fmt: skip


def test_a_wrong_voucher_is_reversed_and_corrected_in_one_transaction() -> None:
    event = envelope(settled())
    assert [write.given["kind"] for write in correcting_vouchers(wrong_settlement(event, stands="CNY 1"))] == [
        "reversal",
        "correction",
    ]
    by_people = wrong_settlement(event, stands=REVERSED, reversed_by=8)
    assert [write.given["kind"] for write in correcting_vouchers(by_people)] == ["correction"]


def test_a_voucher_in_another_currency_than_its_event_is_for_people() -> None:
    with pytest.raises(Refused, match="voucher 7 is in USD, its event in CNY: correct it by hand"):
        correcting_vouchers(wrong_settlement(envelope(settled()), stands="USD 1", currency="USD"))


def test_a_voucher_that_was_reversed_while_it_was_read_is_left_alone() -> None:
    with pytest.raises(Refused, match="was reversed meanwhile, and nothing was posted"):
        correcting_vouchers(wrong_settlement(envelope(suspense()), stands="CNY 1", reversed_by=8))
