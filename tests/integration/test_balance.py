"""Balance payments on real PostgreSQL: confirmed once, paid in order and never below the floor, answered, finished, booked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import msgspec
import pytest
import requests
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from consumers.delivery.processor import DuplicateFact
from consumers.funds.effects import payer_account
from consumers.funds.funds import deposit, move_funds
from consumers.settlement.settlement import finish_balance_payments
from ops.ledger.reads import check
from outbox.clock import utc_now
from outbox.errors import Refused
from outbox.settings import Settings
from producers.payments.balance import confirm_payment
from producers.payments.orders import (
    Limits,
    PaymentRequest,
    expire_payments,
    open_account,
    open_payment,
    register_merchant,
)
from producers.payments.settlement import ACCEPTED, receive_notification
from schemas.bank import BankNotification, PaymentLink, link_address, read_link
from schemas.codec import Envelope
from schemas.signature import signed_headers
from tests.factories import balance_paid, balance_requested, settled
from tests.notifier import SECRET
from tests.pipeline import engine_of, fresh_id
from tests.waiting import eventually

# Far ahead: the stack's own payments service must not find these orders expired.
NOW = datetime(2126, 11, 23, 12, 0, tzinfo=UTC)


class House:
    """A merchant and a payer of the test's own. What their services record, the stack's own workers carry on."""

    def __init__(self, settings: Settings, prefix: str) -> None:
        self.settings, self.prefix = settings, prefix
        self.merchant, self.payer = f"{prefix}M", f"{prefix}U"
        limits = Limits(single_fen=10_000, daily_fen=50_000, monthly_fen=50_000)
        with self.engine("payments").begin() as connection:
            register_merchant(connection, self.merchant, api_key=self.merchant, secret=SECRET, fee_rate_bp=100)
            open_account(connection, self.payer, bank_account_no=f"{prefix}A", limits=limits)

    def engine(self, service: str) -> Any:
        return engine_of(self.settings, service)

    def act(self, service: str, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        with self.engine(service).begin() as connection:
            return function(connection, *given, **named)

    def deposit(self, amount_fen: int, number: int = 1) -> None:
        for _ in range(2):
            self.act(
                "funds", deposit, f"{self.prefix}D{number}", payer_no=self.payer, amount_fen=amount_fen,
                currency="CNY", at=NOW,
            )  # fmt: skip

    def open(self, number: int, amount_fen: int, *, ttl_s: int = 900) -> str:
        request = PaymentRequest(
            payer_no=self.payer, amount_fen=amount_fen, order_no=f"{self.prefix}O{number}", method="balance"
        )
        opened = self.act(
            "payments", open_payment, self.merchant, request,
            now=NOW, zone=ZoneInfo("Asia/Shanghai"), ttl=timedelta(seconds=ttl_s),
        )  # fmt: skip
        return str(opened.payment_no)

    def confirm(self, payment_no: str, *, now: datetime = NOW) -> str:
        return str(self.act("payments", confirm_payment, payment_no, now=now))

    def paying(self, number: int, amount_fen: int) -> Envelope:
        """Return the request event of a payment that is PAYING; only the test has it."""
        payment_no = self.open(number, amount_fen)
        with self.engine("payments").begin() as connection:
            connection.execute(text("UPDATE payment SET status = 'PAYING' WHERE payment_no = :no"), {"no": payment_no})
        event = balance_requested(
            payment_no=payment_no, order_no=f"{self.prefix}O{number}", merchant_no=self.merchant, payer_no=self.payer,
            amount_fen=amount_fen, fee_fen=amount_fen // 100, requested_at=NOW,
        )  # fmt: skip
        return Envelope(id=fresh_id(), version=1, correlation=event.order_no, event=event)

    def rows(self, service: str, statement: str, **given: Any) -> Sequence[Any]:
        with self.engine(service).connect() as connection:
            values: Sequence[Any] = (
                connection.execute(text(statement), {"merchant": self.merchant, **given}).scalars().all()
            )
            return values

    def status(self, payment_no: str) -> str:
        return str(self.rows("payments", "SELECT status FROM payment WHERE payment_no = :no", no=payment_no)[0])

    def balance(self, account_no: str) -> int:
        balances = self.rows("funds", "SELECT balance_fen FROM account WHERE account_no = :no", no=account_no)
        return int(balances[0]) if balances else 0

    def owed(self, account: str) -> int:
        [credit_less_debit] = self.rows(
            "accounting",
            "SELECT coalesce(sum(credit_fen - debit_fen), 0)::bigint FROM balance WHERE account = :no",
            no=account,
        )
        return int(credit_less_debit)


@pytest.fixture
def house(settings: Settings, prefix: str) -> House:
    return House(settings, prefix)


def again(envelope: Envelope) -> Envelope:
    """Return a second event for the same fact."""
    return Envelope(id=fresh_id(), version=envelope.version, correlation=envelope.correlation, event=envelope.event)


def test_a_balance_payment_goes_all_the_way_and_the_payer_pays_once(house: House) -> None:
    """Through the real connector, topics and workers."""
    house.deposit(5_000)
    paid, refused = house.open(1, 3_000), house.open(2, 2_001)
    for _ in range(2):
        assert house.confirm(paid) in ("PAYING", "SETTLED")
    eventually(lambda: house.status(paid) == "SETTLED", what="settled")
    assert house.confirm(paid) == "SETTLED"
    house.confirm(refused)
    eventually(lambda: house.status(refused) == "FAILED", what="refused")
    assert (house.balance(payer_account(house.payer)), house.balance(house.merchant)) == (2_000, 2_970)
    eventually(lambda: house.owed(f"merchant_payable:{house.merchant}") == 2_970, what="vouchers of the payment")
    eventually(lambda: house.owed(f"payer_balance:{house.payer}") == 2_000, what="vouchers of the deposit")
    used = house.rows("payments", "SELECT used_fen FROM limit_use WHERE payer_no = :no", no=house.payer)
    assert used == [3_000], "the refused one uses no limit"
    types = house.rows("payments", "SELECT type FROM outbox WHERE key = :no ORDER BY version", no=paid)
    assert types == ["payment.balance_requested.v1", "payment.settled.v1"]
    differences = check(house.engine("ops"), before=utc_now())
    assert [
        difference
        for difference in differences
        if difference.subject.startswith(house.prefix) or difference.subject == paid
    ] == []


def test_a_payer_pays_in_order_what_the_balance_allows_and_each_request_once(house: House) -> None:
    house.deposit(1_000)
    requests = [house.paying(number, amount_fen) for number, amount_fen in enumerate((600, 500, 400), start=1)]
    house.act("funds", move_funds, requests)
    assert (house.balance(payer_account(house.payer)), house.balance(house.merchant)) == (0, 990)
    for request in requests:
        with pytest.raises(DuplicateFact):
            house.act("funds", move_funds, [again(request)])
    numbers = [request.event.key for request in requests]
    eventually(
        lambda: [house.status(number) for number in numbers] == ["SETTLED", "FAILED", "SETTLED"], what="all answered"
    )


def test_batches_at_once_leave_no_payer_below_the_floor(house: House) -> None:
    house.deposit(1_000)
    batches = [[house.paying(4 * batch + number, 70) for number in range(4)] for batch in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda batch: house.act("funds", move_funds, batch), batches))
    assert house.balance(payer_account(house.payer)) == 1_000 - 14 * 70
    assert house.balance(house.merchant) == 14 * 70
    numbers = [request.event.key for batch in batches for request in batch]
    eventually(
        lambda: sorted(house.status(number) for number in numbers) == ["FAILED"] * 18 + ["SETTLED"] * 14,
        what="all answered",
    )


def test_the_table_itself_keeps_the_floor(house: House) -> None:
    house.deposit(100)
    with pytest.raises(IntegrityError, match="account_floor_check"), house.engine("funds").begin() as connection:
        connection.execute(
            text("UPDATE account SET balance_fen = -1 WHERE account_no = :no"), {"no": payer_account(house.payer)}
        )


def test_a_deposit_counts_once_and_its_number_is_no_others(house: House) -> None:
    house.deposit(100)
    assert house.balance(payer_account(house.payer)) == 100
    with pytest.raises(Refused, match="made before"):
        house.deposit(101)
    house.deposit(11, number=2)
    assert house.balance(payer_account(house.payer)) == 111


def test_an_answer_finishes_a_payment_once_and_only_one_that_waits(house: House) -> None:
    request, waiting = house.paying(1, 500), house.open(2, 500)
    answer = balance_paid(payment_no=request.event.key, amount_fen=500, fee_fen=5, paid_at=NOW)
    event = Envelope(id=fresh_id(), version=1, correlation="c", event=answer)
    house.act("payments", finish_balance_payments, [event])
    assert house.status(request.event.key) == "SETTLED"
    with pytest.raises(DuplicateFact):
        house.act("payments", finish_balance_payments, [again(event)])
    strange = balance_paid(payment_no=waiting, amount_fen=500, paid_at=NOW)
    # Money has moved for it: it must not look like a repeat that can be skipped.
    with pytest.raises(ValueError, match="CREATED"):
        house.act(
            "payments", finish_balance_payments, [Envelope(id=fresh_id(), version=1, correlation="c", event=strange)]
        )
    assert house.status(waiting) == "CREATED"


def test_funds_moves_no_money_of_another_currency(house: House) -> None:
    """A payment from the balance is refused, which frees its limit; money that the bank has taken waits for an operator."""
    house.deposit(1_000)
    request = house.paying(1, 500)
    foreign = Envelope(
        id=request.id,
        version=1,
        correlation=request.correlation,
        event=msgspec.structs.replace(request.event, currency="USD"),
    )
    house.act("funds", move_funds, [foreign])
    with pytest.raises(DuplicateFact):
        house.act("funds", move_funds, [again(foreign)])
    assert (house.balance(payer_account(house.payer)), house.balance(house.merchant)) == (1_000, 0)
    eventually(lambda: house.status(request.event.key) == "FAILED", what="refused")
    paid = settled(prefix=house.prefix, merchant_no=house.merchant, currency="USD")
    for _ in range(2):
        with pytest.raises(ValueError, match="was settled in 'USD', and balances are kept in CNY"):
            house.act("funds", move_funds, [Envelope(id=fresh_id(), version=1, correlation=paid.order_no, event=paid)])
    assert house.balance(house.merchant) == 0


@pytest.mark.parametrize("wrong", [{"currency": "USD"}, {"amount_fen": 499}])
def test_an_answer_of_other_money_finishes_nothing(house: House, wrong: dict[str, Any]) -> None:
    request = house.paying(1, 500)
    answer = balance_paid(payment_no=request.event.key, **{"amount_fen": 500, "fee_fen": 5, "paid_at": NOW, **wrong})
    for _ in range(2):
        with pytest.raises(ValueError, match="is 500 CNY, and funds has paid"):
            house.act(
                "payments", finish_balance_payments, [Envelope(id=fresh_id(), version=1, correlation="c", event=answer)]
            )
    assert house.status(request.event.key) == "PAYING"


def test_what_is_confirmed_does_not_expire_and_what_has_expired_is_not_confirmed(house: House) -> None:
    late, paying = house.open(1, 500, ttl_s=60), house.paying(2, 500)
    after = NOW + timedelta(hours=1)
    with pytest.raises(Refused, match="in time"):
        house.confirm(late, now=after)
    house.act("payments", expire_payments, now=after)
    assert (house.status(late), house.status(paying.event.key)) == ("EXPIRED", "PAYING")
    with pytest.raises(Refused, match="in time"):
        house.confirm(late)


def test_confirmation_and_expiry_at_once_leave_one_of_them(house: House) -> None:
    """Whichever has the row first decides: the payment expires without a request, or is requested and does not expire."""
    numbers = [house.open(number, 10, ttl_s=60) for number in range(20)]

    def confirmed(payment_no: str) -> bool:
        try:
            house.confirm(payment_no, now=NOW + timedelta(seconds=59))
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        expiry = pool.submit(house.act, "payments", expire_payments, now=NOW + timedelta(seconds=61))
        results = list(pool.map(confirmed, numbers))
        expiry.result()
    for payment_no, was_confirmed in zip(numbers, results, strict=True):
        types = house.rows("payments", "SELECT type FROM outbox WHERE key = :no", no=payment_no)
        assert ("payment.balance_requested.v1" in types) == was_confirmed
        assert (house.status(payment_no) == "EXPIRED") == (not was_confirmed)


def test_bank_money_for_a_balance_payment_goes_to_suspense_and_its_failure_changes_nothing(house: House) -> None:
    payment_no = house.open(1, 500)
    for number, status in enumerate(("FAILED", "SUCCESS")):
        notification = BankNotification(
            transaction_no=f"{house.prefix}B{number}", payment_no=payment_no, amount_fen=500, currency="CNY",
            status=status, reason="no" if status == "FAILED" else None,  # type: ignore[arg-type]
        )  # fmt: skip
        answer = house.act(
            "payments", receive_notification, webhook_id=notification.transaction_no, signed_at=NOW,
            body=msgspec.json.encode(notification), now=NOW,
        )  # fmt: skip
        assert answer == ACCEPTED
    assert house.status(payment_no) == "CREATED"
    reasons = house.rows("payments", "SELECT reason FROM suspense WHERE payment_no = :no", no=payment_no)
    assert reasons == ["the order is paid by balance"]


def test_only_the_payer_confirms(house: House) -> None:
    """The link alone, which the merchant is given, moves nothing."""
    payers, others = ("whsec_" + letter * 32 for letter in "ab")
    limits = Limits(single_fen=10_000, daily_fen=50_000, monthly_fen=50_000)
    house.act("payments", open_account, house.payer, bank_account_no="A", limits=limits, secret=payers)
    first, second = house.open(1, 500), house.open(2, 500)
    settings = house.settings
    link = PaymentLink(
        payment_no=first, account_no="A", amount_fen=500, currency="CNY", expires_at=int(NOW.timestamp())
    )
    address = link_address(settings.payments_url, settings.bank_link_secret.get_secret_value(), link, method="balance")

    def confirm(headers: dict[str, str]) -> int:
        return requests.post(address, headers=headers, timeout=10).status_code

    def signed(secret: str, payment_no: str, *, at: datetime) -> dict[str, str]:
        return signed_headers(secret, message_id=payment_no, at=at, body=b"")

    now = utc_now()
    for headers in (
        {},
        signed(others, first, at=now),
        signed(payers, second, at=now),
        signed(payers, first, at=now - timedelta(minutes=6)),
    ):
        assert confirm(headers) == 401
    assert house.status(first) == "CREATED"
    assert confirm(signed(payers, first, at=now)) == 200
    assert house.status(first) != "CREATED"
    house.act("payments", open_account, house.payer, bank_account_no="A", limits=limits)
    assert confirm(signed(payers, first, at=now)) == 401, "without a secret nobody confirms"


def test_a_deposit_of_another_currency_is_refused(house: House) -> None:
    with pytest.raises(Refused, match="CNY"):
        house.act("funds", deposit, "D", payer_no=house.payer, amount_fen=100, currency="USD", at=NOW)
    assert house.balance(payer_account(house.payer)) == 0


@pytest.mark.parametrize("wrong", [{"deposit_no": "D" * 65}, {"amount_fen": 10**15 + 1}])
def test_what_no_consumer_could_read_is_not_told_and_moves_nothing(house: House, wrong: dict[str, Any]) -> None:
    request = {"deposit_no": f"{house.prefix}D", "payer_no": house.payer, "amount_fen": 100} | wrong
    with pytest.raises(Refused, match="body"):
        house.act("funds", deposit, request.pop("deposit_no"), **request, currency="CNY", at=NOW)
    assert house.balance(payer_account(house.payer)) == 0
    for number in ("", "N" * 65):
        with pytest.raises(Refused, match="number"):
            house.act("payments", register_merchant, number, api_key="k", secret=SECRET, fee_rate_bp=0)


def test_a_link_of_the_bank_confirms_nothing_here_and_ours_pays_nothing_there() -> None:
    secret = "whsec_" + "a2tra2tra2tra2tra2tra2tra2tra2tr"
    link = PaymentLink(payment_no="P1", account_no="A1", amount_fen=1, currency="CNY", expires_at=1)
    for method, other in (("bank_card", "balance"), ("balance", "bank_card")):
        query = parse_qs(urlsplit(link_address("http://x", secret, link, method=method)).query)  # type: ignore[arg-type]
        text_, signature = query["link"][0], query["signature"][0]
        assert read_link(secret, text_, signature, method=method) == link  # type: ignore[arg-type]
        assert read_link(secret, text_, signature, method=other) is None  # type: ignore[arg-type]
