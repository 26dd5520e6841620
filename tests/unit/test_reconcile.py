"""What is a hole, decided without a database; and what is on the topics, sorted beyond memory."""

from __future__ import annotations

import random
from datetime import timedelta
from types import SimpleNamespace
from uuid import UUID

import pytest
import typer

from consumers.effects import business_no
from consumers.processors import EFFECTS
from ops.cli.reconcile import span_of
from ops.reconcile import published
from ops.reconcile.facts import contradiction
from ops.reconcile.findings import Finding, Kind, fix_of
from ops.reconcile.published import Published
from ops.reconcile.verdict import Observed, judge
from outbox.settings import Settings
from schemas.codec import ID
from tests.factories import (
    balance_paid,
    balance_requested,
    bank_executed,
    deposited,
    envelope,
    failed,
    settled,
    suspense,
)

EXPECTED = {name: effects.expected for name, effects in EFFECTS.items()}
STANDS = {"M": "100"}


@pytest.mark.parametrize(
    ("calls_for", "seen", "kinds"),
    [
        ({"M": "100"}, Observed(known=True, present=STANDS), []),
        ({}, Observed(known=True), []),
        ({}, Observed(known=True, present=STANDS), []),
        ({"M": "100"}, Observed(known=True), [Kind.NO_EFFECT]),
        ({"M": "99"}, Observed(known=True, present=STANDS), [Kind.WRONG_EFFECT]),
        ({"M": "100", "U": "-100"}, Observed(known=True, present=STANDS), [Kind.WRONG_EFFECT]),
        ({"U": "-100"}, Observed(known=True, present={**STANDS, "U": "-100"}), [Kind.STRAY_EFFECT]),
        ({"U": "1"}, Observed(known=True, present={"M": "0", "U": "1"}), []),
        ({"M": "100"}, Observed(known=False, present=STANDS), [Kind.FORGOTTEN]),
        ({"M": "100"}, Observed(known=False), [Kind.UNDELIVERED]),
        ({}, Observed(known=False), [Kind.UNDELIVERED]),
        ({"M": "100"}, Observed(known=False, passed=False), None),
        ({"M": "100"}, Observed(known=False, on_topic=False), []),
        ({"M": "100"}, Observed(known=False, parked="funds:1 REJECTED"), [Kind.PARKED]),
        ({"merchant": ""}, Observed(known=True, present={"merchant": ""}), []),
        ({"merchant": ""}, Observed(known=True, present={"merchant": ""}, status="CREATED"), [Kind.UNTOLD]),
    ],
)
def test_a_hole_is_what_it_is(calls_for: dict[str, str], seen: Observed, kinds: list[Kind] | None) -> None:
    holes = judge(calls_for, seen)
    assert (holes if holes is None else [kind for kind, _, _ in holes]) == kinds


def test_each_event_calls_for_what_its_handlers_do() -> None:
    card, balance = envelope(settled(amount_fen=1_000, fee_fen=6, points=10)), envelope(settled(method="balance"))
    assert EXPECTED["funds"](card, {}) == {"T-M1": "994"}
    assert EXPECTED["points"](card, {}) == {"T-U1": "10"}
    assert EXPECTED["accounting"](card, {}) == {
        "settlement": "CNY bank_clearing D1000 merchant_payable:T-M1 C994 fee_income C6"
    }
    assert EXPECTED["funds"](balance, {}) == {}
    request = envelope(balance_requested(amount_fen=1_000, fee_fen=6))
    assert EXPECTED["funds"](request, {}) == {"decision": "paid", "payer:T-U1": "-1000", "T-M1": "994"}
    assert EXPECTED["funds"](request, {"decision": "refused"}) == {"decision": "refused"}
    assert EXPECTED["settlement"](envelope(balance_paid()), {}) == {"order": "SETTLED"}
    assert EXPECTED["notification"](envelope(failed()), {}) == {"merchant": ""}
    assert EXPECTED["points"](envelope(failed()), {}) == {}
    assert EXPECTED["bank_notification"](envelope(bank_executed()), {}) == {"bank": ""}
    assert business_no(suspense()) == "T-B1"


def test_an_amount_of_another_currency_is_no_amount_of_a_balance() -> None:
    paid = envelope(settled(amount_fen=1_000, fee_fen=6, currency="USD"))
    assert judge(EXPECTED["funds"](paid, {}), Observed(known=True, present={"T-M1": "994"})) == [
        (Kind.WRONG_EFFECT, "T-M1", "the event calls for 994 USD, but there is 994")
    ]


def test_a_voucher_taken_back_is_replaced_or_was_resolved() -> None:
    paid, money = envelope(settled(amount_fen=1_000, fee_fen=6)), envelope(suspense())
    assert EXPECTED["accounting"](paid, {"settlement": "corrected CNY 1000"}) == {"settlement": "corrected CNY 1000"}
    assert EXPECTED["accounting"](paid, {"settlement": "reversed"}) == {"settlement": "corrected CNY 1000"}
    assert EXPECTED["accounting"](money, {"suspense": "reversed"}) == {"suspense": "reversed"}


def test_an_event_and_its_row_differ_where_they_say_otherwise() -> None:
    event = settled(amount_fen=1_000)
    row = {name: getattr(event, name) for name in event.__struct_fields__} | {"status": "SETTLED"}
    assert not contradiction(event, row)
    assert contradiction(event, {**row, "amount_fen": 1}) == "amount_fen: the event says 1000, the row 1"
    assert contradiction(event, {**row, "status": "FAILED"}) == "status: the event says SETTLED, the row FAILED"
    assert not contradiction(
        settled(method="balance", bank_transaction_no=event.payment_no),
        {**row, "method": "balance", "bank_transaction_no": None, "amount_fen": 10_001},
    )
    assert not contradiction(
        deposited(), {"deposit_no": "T-D1", "payer_no": "T-U1", "amount_fen": 10_000, "currency": "CNY"}
    )


def test_every_kind_says_what_mends_it() -> None:
    for kind in Kind:
        finding = Finding(kind=kind, service="funds", consumer="funds", event_id=UUID(int=7), business_no="P")
        assert fix_of(finding)


@pytest.mark.parametrize(
    ("consumer", "effect", "is_fixed"),
    [
        ("funds", "T-M1", True), ("funds", "decision", False), ("points", "T-U1", True), ("accounting", "settlement", True),
        ("settlement", "order", False), ("notification", "merchant", False),
    ],
)  # fmt: skip
def test_a_wrong_effect_is_fixed_by_a_command_where_its_consumer_says_how(
    consumer: str, effect: str, is_fixed: bool
) -> None:
    for kind in (Kind.WRONG_EFFECT, Kind.STRAY_EFFECT):
        finding = Finding(kind=kind, service="any", consumer=consumer, business_no="P", effect=effect)
        command = fix_of(finding, EFFECTS[consumer])
        assert command == ("payrelay reconcile --fix --execute" if is_fixed else "by hand: payrelay timeline P")


def test_a_span_of_time_is_read() -> None:
    assert (span_of("30s"), span_of("2h")) == (timedelta(seconds=30), timedelta(hours=2))
    for text in ("", "10", "m", "-1m", "1w", "999999d", "9999999999999999999999s"):
        with pytest.raises(typer.BadParameter):
            span_of(text)


def test_records_come_in_the_order_of_ids_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """With runs of 100, 1,050 records make ten files and a rest; some events have two records."""
    ids = [UUID(int=number) for number in range(1_000)] + [UUID(int=number) for number in range(50)]
    random.Random(1).shuffle(ids)
    messages = [
        SimpleNamespace(
            topic=lambda: "b",
            partition=lambda: 2,
            offset=lambda at=at: at,
            headers=lambda identity=identity: [(ID, str(identity).encode())],
        )
        for at, identity in enumerate(ids)
    ]
    monkeypatch.setattr(published, "RUN", 100)
    monkeypatch.setattr(published, "BUFFERED", 7)
    monkeypatch.setattr(published, "bounds", lambda *_: {("b", 2): (0, len(messages))})
    monkeypatch.setattr(published, "read", lambda *_: iter(messages))
    with Published(["a", "b"]) as published_messages:
        published_messages.look(Settings(), since=None, wanted={UUID(int=3)})
        assert list(published_messages.in_order()) == (given := list(published_messages.in_order()))
    assert [identity for identity, _ in given] == [UUID(int=number) for number in range(1_000)]
    assert {len(spots) for identity, spots in given if identity.int < 50} == {2}
    assert all(ids[offset] == identity for identity, spots in given for _, _, offset in spots)
    assert sorted(published_messages.spots[UUID(int=3)]) == sorted(given[3][1])
