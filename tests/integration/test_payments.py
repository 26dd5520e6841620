"""Scenes 2 to 4 inside the services: limits under concurrency, repeats, expiry, suspense."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
import requests
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from consumers.notification.bodies import bank_body_of
from outbox.errors import Refused
from outbox.settings import Settings
from producers.bank.transactions import execute_transaction
from producers.bank.transactions import open_account as open_bank_account
from producers.payments.fees import FeeRule
from producers.payments.orders import (
    LimitExceeded,
    Limits,
    NoAccount,
    OrderConflict,
    PaymentRequest,
    expire_payments,
    open_account,
    open_payment,
    register_merchant,
    set_channel_cost,
)
from producers.payments.settlement import ACCEPTED, REFUSED, Answer, receive_notification
from schemas.bank import BankNotification, PaymentLink, link_address
from schemas.events import BankTransactionExecuted, PaymentSettled
from tests.notifier import SECRET
from tests.pipeline import ROOT, engine_of
from tests.waiting import eventually

# Far ahead: the stack's own payments service must not find these orders expired.
NOW = datetime(2126, 11, 23, 12, 0, tzinfo=UTC)
ZONE = ZoneInfo("Asia/Shanghai")


class Shop:
    """A merchant and a payer of the test's own."""

    def __init__(self, engine: Engine, prefix: str) -> None:
        self.engine, self.prefix = engine, prefix
        with engine.begin() as connection:
            register_merchant(connection, f"{prefix}M", api_key=f"{prefix}M", secret=SECRET, fee_rate_bp=60)
            limits = Limits(single_fen=1_000, daily_fen=2_000, monthly_fen=2_500)
            open_account(connection, f"{prefix}U", bank_account_no=f"{prefix}A", limits=limits)

    def open(self, order: str, amount_fen: int = 500, *, now: datetime = NOW, ttl_s: int = 900, payer: str = "") -> Any:
        request = PaymentRequest(
            payer_no=payer or f"{self.prefix}U", amount_fen=amount_fen, order_no=f"{self.prefix}{order}"
        )
        with self.engine.begin() as connection:
            return open_payment(
                connection, f"{self.prefix}M", request, now=now, zone=ZONE, ttl=timedelta(seconds=ttl_s)
            )

    def tell(
        self,
        payment_no: str,
        *,
        status: str = "SUCCESS",
        amount_fen: int = 500,
        no: str = "",
        webhook: str = "",
        now: datetime = NOW,
        at: datetime | None = None,
    ) -> Answer:
        notification = BankNotification(
            transaction_no=no or f"B{payment_no}", payment_no=payment_no, amount_fen=amount_fen, currency="CNY",
            status=status, reason="no" if status == "FAILED" else None,  # type: ignore[arg-type]
        )  # fmt: skip
        with self.engine.begin() as connection:
            return receive_notification(
                connection,
                webhook_id=webhook or f"w{payment_no}",
                signed_at=at or now,
                body=msgspec.json.encode(notification),
                now=now,
            )

    def value(self, statement: str, **parameters: Any) -> Any:
        with self.engine.connect() as connection:
            return connection.execute(text(statement), {"like": f"{self.prefix}%", **parameters}).scalar()

    def status(self, payment_no: str) -> Any:
        return self.value("SELECT status FROM payment WHERE payment_no = :no", no=payment_no)

    def events(self, payment_no: str) -> list[str]:
        with self.engine.connect() as connection:
            rows = connection.execute(
                text("SELECT type FROM outbox WHERE key = :no ORDER BY version"), {"no": payment_no}
            )
            return list(rows.scalars())


@pytest.fixture
def shop(settings: Settings, prefix: str) -> Shop:
    return Shop(engine_of(settings, "payments"), prefix)


def test_the_same_order_and_body_gets_the_first_answer_and_another_body_a_conflict(shop: Shop) -> None:
    first = shop.open("O1")
    assert shop.open("O1", now=NOW + timedelta(hours=1)) == first
    with pytest.raises(OrderConflict):
        shop.open("O1", 501)
    assert shop.value("SELECT used_fen FROM limit_use WHERE payer_no LIKE :like") == 500


def test_limits_single_daily_monthly_in_the_stated_zone(shop: Shop) -> None:
    with pytest.raises(LimitExceeded, match="single"):
        shop.open("O0", 1_001)
    for order in ("O1", "O2"):
        shop.open(order, 1_000)
    with pytest.raises(LimitExceeded, match="daily"):
        shop.open("O3", 1)
    # 16:00 UTC is midnight in Shanghai: another day, the same month.
    tomorrow = datetime(2126, 11, 23, 16, 0, tzinfo=UTC)
    with pytest.raises(LimitExceeded, match="daily"):
        shop.open("O4", 1, now=tomorrow - timedelta(seconds=1))
    shop.open("O5", 500, now=tomorrow)
    with pytest.raises(LimitExceeded, match="monthly"):
        shop.open("O6", 1, now=tomorrow)
    shop.open("O7", 1_000, now=datetime(2126, 11, 30, 16, 0, tzinfo=UTC))
    with pytest.raises(NoAccount):
        shop.open("O8", payer="nobody")


def test_limits_hold_under_concurrency(shop: Shop) -> None:
    def attempt(number: int) -> bool:
        try:
            shop.open(f"C{number}", 300)
        except LimitExceeded:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        opened = sum(pool.map(attempt, range(24)))
    assert opened == 6  # 6 x 300 within 2000
    assert shop.value("SELECT used_fen FROM limit_use WHERE payer_no LIKE :like") == 1_800


def test_expiry_frees_the_limit_and_money_that_comes_late_goes_to_suspense(shop: Shop) -> None:
    late = shop.open("O1", 500, ttl_s=1)
    with shop.engine.begin() as connection:
        expire_payments(connection, now=NOW + timedelta(seconds=2))
    assert shop.status(late.payment_no) == "EXPIRED"
    assert shop.value("SELECT used_fen FROM limit_use WHERE payer_no LIKE :like") == 0
    assert shop.tell(late.payment_no, now=NOW + timedelta(seconds=3)) == ACCEPTED
    assert shop.events(late.payment_no) == ["payment.suspense_recorded.v1"]


class Late:
    """An order of 500 whose time is over, EXPIRED by the loop, and the day's limit used up by others since."""

    def __init__(self, shop: Shop) -> None:
        self.shop, self.payment_no = shop, shop.open("O1", 500, ttl_s=60).payment_no
        self.arrives = NOW + timedelta(hours=1)
        with shop.engine.begin() as connection:
            expire_payments(connection, now=NOW + timedelta(seconds=61))
        assert shop.status(self.payment_no) == "EXPIRED"
        for order in ("O2", "O3"):
            shop.open(order, 1_000)

    def tell(self, executed_at: datetime | None, *, webhook: str = "", status: str = "SUCCESS", no: str = "") -> Answer:
        body: dict[str, Any] = {
            "transaction_no": no or f"B{self.payment_no}", "payment_no": self.payment_no, "amount_fen": 500,
            "currency": "CNY", "status": status,
        }  # fmt: skip
        if executed_at is not None:
            body["executed_at"] = executed_at.isoformat()
        with self.shop.engine.begin() as connection:
            return receive_notification(
                connection, webhook_id=webhook or f"w{self.payment_no}", signed_at=self.arrives,
                body=msgspec.json.encode(body), now=self.arrives,
            )  # fmt: skip

    def used(self) -> Any:
        return self.shop.value("SELECT used_fen FROM limit_use WHERE payer_no LIKE :like")


def test_money_taken_in_time_settles_an_order_that_has_expired_beyond_the_limit(shop: Shop) -> None:
    late = Late(shop)
    assert late.used() == 2_000
    assert late.tell(NOW + timedelta(seconds=59)) == ACCEPTED
    assert (shop.status(late.payment_no), late.used()) == ("SETTLED", 2_500)
    for webhook in ("", f"again{late.payment_no}"):
        assert late.tell(NOW + timedelta(seconds=59), webhook=webhook) == ACCEPTED
    assert (
        late.tell(NOW + timedelta(seconds=58), webhook=f"other{late.payment_no}", no=f"C{late.payment_no}") == ACCEPTED
    )
    assert (shop.status(late.payment_no), late.used()) == ("SETTLED", 2_500)
    assert shop.events(late.payment_no) == ["payment.settled.v1", "payment.suspense_recorded.v1"]


@pytest.mark.parametrize("executed_s", [None, 60, 3_606, -1, 3_600 - 7 * 86_400 - 1])
def test_money_taken_too_late_or_at_a_time_that_cannot_be_goes_to_suspense(shop: Shop, executed_s: int | None) -> None:
    late = Late(shop)
    assert late.tell(None if executed_s is None else NOW + timedelta(seconds=executed_s)) == ACCEPTED
    assert (shop.status(late.payment_no), late.used()) == ("EXPIRED", 2_000)
    assert shop.events(late.payment_no) == ["payment.suspense_recorded.v1"]


def test_a_failure_told_of_late_leaves_an_expired_order_alone(shop: Shop) -> None:
    late = Late(shop)
    for webhook in ("", f"again{late.payment_no}"):
        assert late.tell(NOW, webhook=webhook, status="FAILED") == ACCEPTED
    assert (shop.status(late.payment_no), late.used(), shop.events(late.payment_no)) == ("EXPIRED", 2_000, [])


def test_a_bank_transaction_is_booked_once_whatever_the_bank_says_of_it_later(shop: Shop) -> None:
    first, second = shop.open("O1", 500), shop.open("O2", 600)
    transaction = f"{shop.prefix}B"
    assert shop.tell(first.payment_no, amount_fen=499, no=transaction) == ACCEPTED  # to suspense
    again = shop.tell(first.payment_no, amount_fen=499, no=transaction, webhook=f"{shop.prefix}w1")
    other_amount = shop.tell(first.payment_no, no=transaction, webhook=f"{shop.prefix}w2")
    other_payment = shop.tell(second.payment_no, amount_fen=600, no=transaction)
    assert (again, other_amount, other_payment) == (ACCEPTED, REFUSED, REFUSED)
    assert shop.events(first.payment_no) == ["payment.suspense_recorded.v1"]
    assert (shop.status(first.payment_no), shop.status(second.payment_no)) == ("CREATED", "CREATED")
    settled = f"{shop.prefix}C"
    assert shop.tell(first.payment_no, no=settled, webhook=f"{shop.prefix}w3") == ACCEPTED
    assert shop.tell(second.payment_no, amount_fen=600, no=settled, webhook=f"{shop.prefix}w4") == REFUSED


def test_a_settlement_is_decided_once_and_repeats_change_nothing(shop: Shop) -> None:
    opened = shop.open("O1")
    for webhook in ("w1", "w1", "w2"):
        assert shop.tell(opened.payment_no, webhook=shop.prefix + webhook) == ACCEPTED
    assert shop.events(opened.payment_no) == ["payment.settled.v1"]
    assert (
        shop.value("SELECT (fee_fen, points)::text FROM payment WHERE payment_no = :no", no=opened.payment_no)
        == "(3,5)"
    )


def test_fee_and_cost_are_decided_by_rule_and_travel_in_the_event(shop: Shop) -> None:
    opened = shop.open("O1", 1_000)
    notification = BankNotification(
        transaction_no=f"{shop.prefix}B",
        payment_no=opened.payment_no,
        amount_fen=1_000,
        currency="CNY",
        status="SUCCESS",
    )
    with shop.engine.connect() as connection:  # rolled back: the channel's cost is everybody's
        register_merchant(
            connection, f"{shop.prefix}M", api_key=f"{shop.prefix}M", secret=SECRET,
            fee_rate_bp=60, fee_fixed_fen=1, fee_min_fen=8, fee_cap_fen=900,
        )  # fmt: skip
        set_channel_cost(connection, "bank_card", FeeRule(rate_bp=25))
        body = msgspec.json.encode(notification)
        receive_notification(connection, webhook_id=shop.prefix, signed_at=NOW, body=body, now=NOW)
        payload = connection.execute(text("SELECT payload FROM outbox WHERE key = :no"), {"no": opened.payment_no})
        event = msgspec.json.decode(payload.scalar_one(), type=PaymentSettled)
        row = connection.execute(text("SELECT * FROM payment WHERE payment_no = :no"), {"no": opened.payment_no}).one()
    assert (event.fee_fen, event.fee_rule) == (8, "rate 60 bp + 1, min 8, max 900")
    assert (event.cost_fen, event.cost_rule) == (2, "rate 25 bp")  # 2.5: half goes to the even fen
    assert (row.fee_fen, row.cost_fen) == (8, 2)


@pytest.mark.parametrize(
    "parts", [{"fee_min_fen": 9, "fee_cap_fen": 8}, {"fee_fixed_fen": -1}, {"fee_cap_fen": 10**12}]
)
def test_the_table_takes_no_rule_that_contradicts_itself(shop: Shop, parts: dict[str, int]) -> None:
    with pytest.raises(IntegrityError), shop.engine.begin() as connection:
        register_merchant(
            connection, f"{shop.prefix}X", api_key=f"{shop.prefix}X", secret=SECRET, fee_rate_bp=0, **parts
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": "hello"},
        {"secret": ""},
        {"secret": "whsec_a2tr"},
        {"secret": "a2tr" * 8},
        {"api_key": ""},
        {"api_key": "k\n"},
        {"api_key": " k"},
    ],
)
def test_a_merchant_has_a_key_and_a_secret_that_requests_can_be_signed_with(shop: Any, wrong: dict[str, str]) -> None:
    given: Any = {"api_key": f"{shop.prefix}W", "secret": SECRET, "fee_rate_bp": 0} | wrong
    with pytest.raises(Refused, match=r"secret|key"), shop.engine.begin() as connection:
        register_merchant(connection, f"{shop.prefix}W", **given)


def test_a_payer_has_a_secret_that_can_be_signed_with_or_none(shop: Any) -> None:
    limits = Limits(single_fen=1, daily_fen=1, monthly_fen=1)
    with pytest.raises(Refused, match="secret"), shop.engine.begin() as connection:
        open_account(connection, f"{shop.prefix}W", bank_account_no=f"{shop.prefix}W", limits=limits, secret="hello")


def test_the_same_id_with_another_body_and_an_unseen_id_out_of_time_are_refused_and_stored_answers_are_not(
    shop: Shop,
) -> None:
    opened = shop.open("O1")
    old = NOW - timedelta(minutes=6)
    assert shop.tell(opened.payment_no, at=old) == REFUSED
    assert shop.status(opened.payment_no) == "CREATED"
    assert shop.tell(opened.payment_no) == ACCEPTED
    assert shop.tell(opened.payment_no, at=old) == ACCEPTED, "the stored answer, at any time"
    assert shop.tell(opened.payment_no, amount_fen=499) == REFUSED


def test_what_the_order_cannot_accept_is_in_suspense_once(shop: Shop) -> None:
    opened = shop.open("O1")
    for _ in range(2):
        shop.tell(opened.payment_no, amount_fen=499, no=f"{shop.prefix}B1", webhook=f"{shop.prefix}{_}")
    shop.tell(f"{shop.prefix}unknown", no=f"{shop.prefix}B2", webhook=f"{shop.prefix}u")
    shop.tell(opened.payment_no, webhook=f"{shop.prefix}good")
    shop.tell(opened.payment_no, no=f"{shop.prefix}B3", webhook=f"{shop.prefix}second")
    assert shop.value("SELECT count(*) FROM suspense WHERE bank_transaction_no LIKE :like") == 3
    assert shop.events(opened.payment_no) == [
        "payment.suspense_recorded.v1",
        "payment.settled.v1",
        "payment.suspense_recorded.v1",
    ]


def test_a_currency_with_a_newline_books_nothing(shop: Shop) -> None:
    opened = shop.open("O1")
    body = {"transaction_no": f"B{opened.payment_no}", "payment_no": opened.payment_no, "amount_fen": 500}
    for currency in ("CNY\n", "CNY\r"):
        encoded = msgspec.json.encode({**body, "currency": currency, "status": "SUCCESS"})
        with shop.engine.begin() as connection:
            webhook_id = f"w{opened.payment_no}"
            answer = receive_notification(connection, webhook_id=webhook_id, signed_at=NOW, body=encoded, now=NOW)
        assert answer == REFUSED
    assert shop.value("SELECT count(*) FROM suspense WHERE payment_no = :no", no=opened.payment_no) == 0
    assert shop.tell(opened.payment_no) == ACCEPTED
    assert shop.status(opened.payment_no) == "SETTLED"


def test_a_failure_frees_the_limit_and_success_after_it_goes_to_suspense(shop: Shop) -> None:
    opened = shop.open("O1")
    assert shop.tell(opened.payment_no, status="FAILED") == ACCEPTED
    assert shop.value("SELECT used_fen FROM limit_use WHERE payer_no LIKE :like") == 0
    assert shop.tell(opened.payment_no, webhook=f"{shop.prefix}2") == ACCEPTED
    assert shop.events(opened.payment_no) == ["payment.failed.v1", "payment.suspense_recorded.v1"]


def test_fifty_equal_notifications_at_once_are_one_effect(shop: Shop) -> None:
    opened = shop.open("O1")
    barrier = threading.Barrier(10)

    def send(number: int) -> Answer:
        if number < 10:
            barrier.wait(10)
        return shop.tell(opened.payment_no, webhook=f"{shop.prefix}{number % 3}")

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(send, range(50))) == {ACCEPTED}
    assert shop.events(opened.payment_no) == ["payment.settled.v1"]


def test_the_example_of_the_reference_opens_a_payment_and_shows_its_fields(settings: Settings, prefix: str) -> None:
    page = (ROOT / "docs/reference/http.md").read_text()
    [script] = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) or [""]
    secret = "whsec_" + "bWVyY2hhbnRz" * 3
    with engine_of(settings, "payments").begin() as connection:
        register_merchant(connection, f"{prefix}M", api_key=f"{prefix}K", secret=secret, fee_rate_bp=60)
        limits = Limits(single_fen=10_000, daily_fen=10_000, monthly_fen=10_000)
        open_account(connection, f"{prefix}U", bank_account_no=f"{prefix}A", limits=limits)
    given = {"PAYMENTS_URL": settings.payments_url, "MERCHANT_KEY": f"{prefix}K", "MERCHANT_SECRET": secret}
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, **given, "PAYER": f"{prefix}U", "ORDER": f"{prefix}O"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    opened, shown = map(json.loads, done.stdout.strip().split("\n"))
    assert opened.keys() == {"payment_no", "bank_address", "expires_at"}
    assert (shown["order_no"], shown["amount_fen"], shown["status"]) == (f"{prefix}O", 1999, "CREATED")
    [described] = re.findall(r"^### `GET /payments/.*?^\| field .*?\n(.*?)^###", page, re.MULTILINE | re.DOTALL)
    assert {
        name for line in described.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])
    } == shown.keys()


def test_a_payer_pays_by_browser_and_sees_what_came_of_it(settings: Settings, prefix: str) -> None:
    with engine_of(settings, "bank").begin() as connection:
        open_bank_account(connection, f"{prefix}A", balance_fen=1_000, currency="CNY")

    def address(number: int, amount_fen: int) -> str:
        link = PaymentLink(
            payment_no=f"{prefix}{number}", account_no=f"{prefix}A", amount_fen=amount_fen, currency="CNY",
            expires_at=int(NOW.timestamp()),
        )  # fmt: skip
        return link_address(settings.bank_url, settings.bank_link_secret.get_secret_value(), link)

    def pay(here: str) -> requests.Response | None:
        """503 asks to send it again: another test may have ended the bank's sessions."""
        answer = requests.post(here, headers=browser, timeout=20)
        return None if answer.status_code == 503 else answer

    browser = {"accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
    for number, amount_fen, expected in ((1, 400, "Paid"), (2, 900, "insufficient balance")):
        page = requests.get(address(number, amount_fen), headers=browser, timeout=20)
        assert (page.status_code, "<button>Pay</button>" in page.text) == (200, True)
        paid = eventually(partial(pay, address(number, amount_fen)), what="an answer by the database")
        assert (paid.status_code, expected in paid.text) == (200, True)
        again = requests.post(address(number, amount_fen), timeout=20).json()
        assert again["status"] == ("SUCCESS" if expected == "Paid" else "FAILED")
    with engine_of(settings, "bank").connect() as connection:
        balance = text("SELECT balance_fen FROM account WHERE account_no = :no")
        assert connection.execute(balance, {"no": f"{prefix}A"}).scalar() == 600


def test_the_bank_debits_once_and_never_below_zero(settings: Settings, prefix: str) -> None:
    engine = engine_of(settings, "bank")
    with engine.begin() as connection:
        open_bank_account(connection, f"{prefix}A", balance_fen=1_000, currency="CNY")

    def pay(number: int) -> str:
        link = PaymentLink(
            payment_no=f"{prefix}{number % 4}",
            account_no=f"{prefix}A",
            amount_fen=400,
            currency="CNY",
            expires_at=int(NOW.timestamp()) + 60,
        )
        with engine.begin() as connection:
            return execute_transaction(connection, link, now=NOW).status

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(pay, range(16)))
    with engine.connect() as connection:
        balance = connection.execute(
            text("SELECT balance_fen FROM account WHERE account_no = :no"), {"no": f"{prefix}A"}
        ).scalar()
        done = connection.execute(
            text("SELECT count(*) FROM transaction WHERE account_no = :no AND status = 'SUCCESS'"), {"no": f"{prefix}A"}
        ).scalar()
    assert (balance, done) == (200, 2)
    assert results.count("SUCCESS") == 8


def test_the_bank_tells_when_it_executed_a_payment_and_always_the_same(settings: Settings, prefix: str) -> None:
    link = PaymentLink(
        payment_no=f"{prefix}P",
        account_no="nobody's",
        amount_fen=1,
        currency="CNY",
        expires_at=int(NOW.timestamp()) + 60,
    )
    at = NOW + timedelta(microseconds=1)
    results = []
    for later in (timedelta(), timedelta(days=1)):
        with engine_of(settings, "bank").begin() as connection:
            results.append(msgspec.json.encode(execute_transaction(connection, link, now=at + later)))
            payload = connection.execute(
                text("SELECT payload FROM outbox WHERE correlation = :no"), {"no": link.payment_no}
            ).scalar_one()
    assert results[0] == results[1]
    body = msgspec.json.decode(bank_body_of(msgspec.json.decode(payload, type=BankTransactionExecuted)))
    assert body.get("executed_at") == "2126-11-23T12:00:00.000001Z"
    assert msgspec.json.decode(results[0]) == body
