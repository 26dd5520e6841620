"""The ledger on real PostgreSQL, over vouchers of the test's own merchant: what it refuses, corrects and reports."""

from __future__ import annotations

import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from consumers.accounting.entries import Entry
from consumers.accounting.ledger import correct_voucher, find_voucher, post, reverse_voucher
from consumers.delivery.processor import DuplicateFact
from ops.cli.main import app
from ops.ledger.integrity import ledger_problems
from ops.ledger.reads import Balance, LedgerDifference, accounts, check, statement, trial_balance
from outbox.clock import utc_now
from outbox.errors import Refused
from outbox.settings import Settings
from schemas.accounts import CHART, merchant_payable
from schemas.codec import Envelope
from tests.factories import settled, suspense
from tests.pipeline import engine_of, environment, fresh_id

DAY = timedelta(days=1)
# Long ago, so that a balance at a time holds nothing of other tests.
BEGIN = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many differences other tests have left in these ledgers, this test's are named."""
    monkeypatch.setattr("ops.ledger.reads.NAMED_MAX", 1_000_000)


@pytest.fixture
def account(settings: Settings, prefix: str) -> str:
    """Return the account of a merchant who was paid 100, 200 and 300 yuan on three days, less a fee of 1 yuan each."""
    events = [
        Envelope(
            id=fresh_id(),
            version=1,
            correlation="c",
            event=settled(
                prefix=prefix,
                number=number,
                merchant_no=f"{prefix}M",
                amount_fen=10_000 * number,
                fee_fen=100,
                settled_at=BEGIN + number * DAY,
            ),
        )
        for number in (1, 2, 3)
    ]
    with engine_of(settings, "accounting").begin() as connection:
        post(connection, events)
    return f"merchant_payable:{prefix}M"


@pytest.fixture
def reader(settings: Settings) -> Connection:
    return engine_of(settings, "ops").connect()


def test_a_statement_carries_its_balance_from_opening_to_closing(reader: Connection, account: str) -> None:
    whole = statement(reader, account, currency="CNY", begin=None, end=None)
    assert [line.balance_fen for line in whole] == [0, 9_900, 29_800, 59_700, 59_700]
    middle = statement(reader, account, currency="CNY", begin=BEGIN + 2 * DAY, end=BEGIN + 3 * DAY)
    assert [(line.kind, line.credit_fen, line.balance_fen) for line in middle] == [
        ("opening", 0, 9_900),
        ("settlement", 19_900, 29_800),
        ("closing", 0, 29_800),
    ]
    assert [line.balance_fen for line in statement(reader, account, currency="USD", begin=None, end=None)] == [0, 0]
    reader.close()


def test_a_trial_balance_now_and_at_a_time(reader: Connection, account: str) -> None:
    def of(balances: list[Balance]) -> list[tuple[int, int, int]]:
        return [
            (balance.debit_fen, balance.credit_fen, balance.balance_fen)
            for balance in balances
            if balance.account == account
        ]

    assert of(trial_balance(reader)) == [(0, 59_700, 59_700)]
    assert of(trial_balance(reader, at=BEGIN + 3 * DAY)) == [(0, 29_800, 29_800)]
    for balances in (trial_balance(reader), trial_balance(reader, at=BEGIN + 3 * DAY)):
        assert sum(balance.debit_fen - balance.credit_fen for balance in balances) == 0
    assert of(trial_balance(reader, at=BEGIN)) == []
    assert ledger_problems(reader) == []
    reader.close()


class Book:
    """Accounting's side of one test: its own vouchers."""

    def __init__(self, settings: Settings, prefix: str) -> None:
        self.engine: Engine = engine_of(settings, "accounting")
        self.owner: Engine = engine_of(settings, "owner")
        self.reader: Engine = engine_of(settings, "ops")
        self.prefix = prefix
        self.payable = merchant_payable(f"{prefix}M")

    def posted(self, number: int = 1) -> int:
        """Return the number of a settlement's voucher of 10,000 fen, fee 100."""
        event = settled(
            prefix=self.prefix, number=number, merchant_no=f"{self.prefix}M", amount_fen=10_000, fee_fen=100
        )
        with self.engine.begin() as connection:
            post(connection, [Envelope(id=fresh_id(), version=1, correlation="c", event=event)])
            return int(
                connection.execute(
                    text("SELECT voucher_no FROM voucher WHERE business_no = :no"), {"no": event.payment_no}
                ).scalar_one()
            )

    def reverse(self, voucher_no: int) -> int:
        with self.engine.begin() as connection:
            return reverse_voucher(connection, voucher_no, reason="wrong fee", actor="anna", at=utc_now())

    def correct(self, voucher_no: int, *, fee_fen: int, amount_fen: int = 10_000) -> int:
        entries = [
            Entry(account="bank_clearing", side="D", amount_fen=amount_fen),
            Entry(account=self.payable, side="C", amount_fen=amount_fen - fee_fen),
            Entry(account="fee_income", side="C", amount_fen=fee_fen),
        ]
        with self.engine.begin() as connection:
            return correct_voucher(connection, voucher_no, entries, reason="right fee", actor="anna", at=utc_now())

    def raw(self, *statements: str, **given: Any) -> None:
        """Run statements in one transaction, as somebody would who goes past our functions."""
        with self.engine.begin() as connection:
            for sql in statements:
                connection.execute(text(sql), given)

    def owed(self) -> int:
        with self.reader.connect() as connection:
            assert ledger_problems(connection) == []
            return next(balance.balance_fen for balance in trial_balance(connection) if balance.account == self.payable)

    def differences(self) -> list[LedgerDifference]:
        differences = check(self.reader, before=utc_now())
        return [difference for difference in differences if difference.subject.startswith(self.prefix)]


@pytest.fixture
def book(settings: Settings, prefix: str) -> Book:
    return Book(settings, prefix)


VOUCHER = """INSERT INTO voucher (voucher_no, business_no, kind, event_id, currency, occurred_at, lines)
             OVERRIDING SYSTEM VALUE
             VALUES (:no, :business, 'settlement', gen_random_uuid(), 'CNY', now(), :lines)"""
DEBIT = "INSERT INTO entry VALUES (:no, 1, 'bank_clearing', 'D', 100)"
CREDIT = "INSERT INTO entry VALUES (:no, 2, 'fee_income', 'C', 100)"
SHORT = "INSERT INTO entry VALUES (:no, 2, 'fee_income', 'C', 99)"
THIRD = "INSERT INTO entry VALUES (:no, 3, 'fee_income', 'C', 1)"
NEGATIVE = "INSERT INTO entry VALUES (:no, 2, 'fee_income', 'C', -100)"
STRANGE = "INSERT INTO entry VALUES (:no, 2, 'petty_cash', 'C', 100)"
AT_ONCE = "SET CONSTRAINTS ALL IMMEDIATE"


@pytest.mark.parametrize(
    ("statements", "error"),
    [
        ((VOUCHER,), "not balanced, or not whole"),
        ((VOUCHER, DEBIT), "not balanced, or not whole"),
        ((VOUCHER, DEBIT, SHORT), "not balanced, or not whole"),
        ((VOUCHER, DEBIT, CREDIT, THIRD), "has no room"),
        ((VOUCHER, DEBIT, CREDIT, AT_ONCE, THIRD), "has no room"),
        ((VOUCHER, DEBIT, STRANGE), "not in the chart of accounts"),
        ((VOUCHER, DEBIT, NEGATIVE), "entry_amount_fen_check"),
        ((DEBIT, CREDIT), "it is not there"),
    ],
    ids=[
        "no entries",
        "one side",
        "unequal",
        "a line more",
        "a line after the check",
        "no account",
        "negative",
        "none",
    ],
)
def test_the_database_takes_only_whole_and_balanced_vouchers(
    book: Book, statements: tuple[str, ...], error: str
) -> None:
    with pytest.raises(DBAPIError, match=error):
        book.raw(*statements, no=-1, business=book.prefix, lines=2)


def test_the_database_takes_entries_in_any_order_and_none_later(book: Book) -> None:
    with book.engine.connect() as connection:  # rolled back: the balances know nothing of it
        for statement in (VOUCHER, CREDIT, DEBIT, AT_ONCE):
            connection.execute(text(statement), {"no": -1, "business": book.prefix, "lines": 2})
    number = book.posted()
    with pytest.raises(DBAPIError, match="has no room"):
        book.raw("INSERT INTO entry VALUES (:no, 4, 'fee_income', 'C', 1)", no=number)
    with pytest.raises(DBAPIError, match="duplicate key"):
        book.raw("INSERT INTO entry VALUES (:no, 3, 'fee_income', 'C', 1)", no=number)


@pytest.mark.parametrize("table", ["voucher", "entry"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET voucher_no = DEFAULT WHERE false", "DELETE FROM {} WHERE false", "TRUNCATE {}"]
)
def test_nobody_changes_what_was_posted(book: Book, table: str, statement: str) -> None:
    with pytest.raises(DBAPIError, match="permission denied"):
        book.raw(statement.format(table))
    with pytest.raises(DBAPIError, match=r"refused(.|\n)*payrelay ledger reverse"), book.owner.begin() as connection:
        connection.execute(text(statement.format(f"accounting.{table}") + (" CASCADE" if "TRUNC" in statement else "")))


def test_the_chart_of_the_database_is_the_codes(book: Book) -> None:
    with book.reader.connect() as connection:
        rows = connection.execute(text("SELECT * FROM accounting.chart_of_accounts"))
        assert {row.code: dict(row._mapping) for row in rows} == {
            code: asdict(chart_account) for code, chart_account in CHART.items()
        }
        assert {chart_account.code for chart_account in accounts(connection)} == set(CHART)


def test_a_reversal_takes_a_voucher_back_once_and_a_correction_stands_in_its_place(book: Book) -> None:
    first = book.posted()
    reversal = book.reverse(first)
    assert book.owed() == 0
    mirror = find_voucher(book.engine.connect(), reversal)
    assert (mirror.kind, mirror.reverses, mirror.reason, mirror.actor) == ("reversal", first, "wrong fee", "anna")
    for refused, error in ((first, "reversed before"), (reversal, "is a reversal"), (2**40, "no voucher")):
        with pytest.raises(Refused, match=error):
            book.reverse(refused)
    second = book.correct(first, fee_fen=60)
    assert book.owed() == 9_940
    with pytest.raises(Refused, match="corrected before"):
        book.correct(first, fee_fen=60)
    with pytest.raises(Refused, match="stands"):
        book.correct(second, fee_fen=70)
    book.reverse(second)
    book.correct(second, fee_fen=70)
    assert book.owed() == 9_930
    with pytest.raises(DuplicateFact):  # the event path does not post it again
        book.posted()


def test_a_number_that_is_taken_is_no_second_voucher_of_the_fact(settings: Settings, prefix: str) -> None:
    first, other = (
        Envelope(id=fresh_id(), version=1, correlation="c", event=settled(prefix=prefix, number=n)) for n in (1, 2)
    )
    taken = text("""
        INSERT INTO voucher (voucher_no, business_no, kind, event_id, currency, occurred_at, lines)
        OVERRIDING SYSTEM VALUE
        SELECT voucher_no + number, business_no || number, kind, gen_random_uuid(), currency, occurred_at, lines
        FROM voucher CROSS JOIN generate_series(1, 20) AS number WHERE event_id = :event_id""")
    with engine_of(settings, "accounting").connect() as connection:  # as after a restore whose sequence is behind
        post(connection, [first])
        connection.execute(taken, {"event_id": first.id})
        with pytest.raises(DBAPIError, match="voucher_pkey"):
            post(connection, [other])
        connection.rollback()


def test_two_who_reverse_one_voucher_at_once_reverse_it_once(book: Book) -> None:
    number = book.posted()

    def attempt(_: int) -> bool:
        try:
            book.reverse(number)
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(attempt, range(12))) == 1
    assert book.owed() == 0


REVERSAL = """INSERT INTO voucher (business_no, kind, currency, occurred_at, lines, reverses, reason, actor)
              SELECT business_no, 'reversal', currency, now(), :lines, voucher_no, 'r', 'a' FROM voucher WHERE voucher_no = :no"""
LAST = "(SELECT max(voucher_no) FROM voucher WHERE reverses = :no)"


def test_the_database_takes_no_reversal_that_does_not_mirror(book: Book) -> None:
    number = book.posted()
    swapped = f"""INSERT INTO entry SELECT {LAST}, line, CASE account WHEN 'fee_income' THEN 'suspense' ELSE account END,
                  CASE side WHEN 'D' THEN 'C' ELSE 'D' END, amount_fen FROM entry WHERE voucher_no = :no"""
    with pytest.raises(DBAPIError, match="does not mirror"):
        book.raw(REVERSAL, swapped, no=number, lines=3)
    reversal = book.reverse(number)
    with pytest.raises(DBAPIError, match="cannot be a reversal"):
        book.raw(REVERSAL, swapped, no=reversal, lines=3)
    assert book.owed() == 0


def test_check_names_a_fact_whose_voucher_was_reversed_until_a_correction_of_its_amount_stands(book: Book) -> None:
    """The test posts the fact's row itself: a payment that is SETTLED, and nothing else of it."""
    number = book.posted()
    business_no = find_voucher(book.engine.connect(), number).business_no
    assert [difference.found for difference in book.differences()] == ["has a voucher, and did not happen"]
    with book.owner.begin() as connection:
        for sql in SETTLED_PAYMENT:
            connection.execute(text(sql), {"no": business_no, "merchant": f"{book.prefix}M"})
    assert book.differences() == []
    with book.owner.begin() as connection:
        connection.execute(text("UPDATE payments.payment SET fee_fen = 60 WHERE payment_no = :no"), {"no": business_no})
    [named] = book.differences()
    assert named.found.startswith("calls for the entries {'bank_clearing': 10000,"), (
        "the total agrees, the fee does not"
    )
    with book.owner.begin() as connection:
        connection.execute(
            text("UPDATE payments.payment SET fee_fen = 100 WHERE payment_no = :no"), {"no": business_no}
        )
    book.reverse(number)
    [named] = book.differences()
    assert (named.subject, named.found) == (business_no, "has no voucher that stands")
    wrong = book.correct(number, fee_fen=60, amount_fen=9_000)
    assert [difference.found for difference in book.differences()] == ["is 10000 CNY, its voucher 9000 CNY"]
    book.reverse(wrong)
    book.correct(wrong, fee_fen=60)
    assert book.differences() == []


def test_check_leaves_out_what_was_committed_a_moment_ago(book: Book) -> None:
    """Its fact happened long before, and its other side may still be on its way."""
    number = book.posted()
    business_no = find_voucher(book.engine.connect(), number).business_no
    settled_differences = check(book.reader, before=utc_now() - timedelta(seconds=60))
    assert business_no not in {difference.subject for difference in settled_differences}
    assert [difference.subject for difference in book.differences()] == [business_no]


def test_money_in_suspense_is_resolved_by_a_reversal(book: Book, payrelay: Any) -> None:
    transaction_no = f"{book.prefix}B"
    event = suspense(payment_no=f"{book.prefix}P", bank_transaction_no=transaction_no, amount_fen=500)
    with book.engine.begin() as connection:
        post(connection, [Envelope(id=fresh_id(), version=1, correlation="c", event=event)])
        number = connection.execute(
            text("SELECT voucher_no FROM voucher WHERE business_no = :no"), {"no": transaction_no}
        ).scalar_one()
    with book.owner.begin() as connection:
        connection.execute(
            text("INSERT INTO payments.suspense VALUES (:no, :payment, 500, 'CNY', 'no such order', now())"),
            {"no": transaction_no, "payment": event.payment_no},
        )

    def listed(*options: str) -> list[str]:
        items = json.loads(payrelay("suspense", "--payment", event.payment_no, *options, "-o", "json")[1])
        return [item["resolved"] for item in items]

    assert (listed(), book.differences()) == ([""], [])
    book.reverse(number)
    assert (listed(), listed("--all"), book.differences()) == ([], ["wrong fee"], [])


def test_check_names_balance_payments_that_only_one_side_knows(book: Book) -> None:
    moved, paying = f"{book.prefix}P1", f"{book.prefix}P2"
    with book.owner.begin() as connection:
        for sql in SETTLED_PAYMENT:
            connection.execute(text(sql), {"no": paying, "merchant": f"{book.prefix}M"})
        connection.execute(
            text("""UPDATE payments.payment SET status = 'PAYING', method = 'balance', fee_fen = NULL, points = NULL,
                           bank_transaction_no = NULL, finished_at = NULL WHERE payment_no = :no"""),
            {"no": paying},
        )
        for sql in MOVED_BALANCE:
            connection.execute(text(sql), {"no": moved, "account": f"payer:{book.prefix}U"})
    assert {difference.subject: difference.found for difference in book.differences()} == {
        moved: "was debited by funds, and is not SETTLED",
        paying: "is PAYING, and has had no answer from funds",
    }
    with book.owner.begin() as connection:
        connection.execute(text("DELETE FROM payments.payment WHERE payment_no = :no"), {"no": paying})
        connection.execute(text("DELETE FROM funds.entry WHERE payment_no = :no"), {"no": moved})
    assert book.differences() == []


@pytest.mark.parametrize("method", ["balance", "bank_card"])
@pytest.mark.parametrize("currency", ["CNY\n", "USD"])
def test_check_names_money_that_funds_has_moved_in_another_currency(book: Book, method: str, currency: str) -> None:
    """The ledger agrees with the order; funds, which keeps one currency, has moved the same amount of that."""
    number = f"{book.prefix}P"
    event = settled(
        payment_no=number, merchant_no=f"{book.prefix}M", payer_no=f"{book.prefix}M", amount_fen=10_000, fee_fen=100,
        currency=currency, method=method,
    )  # fmt: skip
    with book.engine.begin() as connection:
        post(connection, [Envelope(id=fresh_id(), version=1, correlation="c", event=event)])
        voucher_no = connection.execute(
            text("SELECT voucher_no FROM voucher WHERE business_no = :no"), {"no": number}
        ).scalar_one()
    amounts = {"debit": 10_000, "credit": 9_900} if method == "balance" else {"credit": 9_900}
    given = {"no": number, "merchant": f"{book.prefix}M", "currency": currency, "method": method}
    with book.owner.begin() as connection:
        for sql in (*SETTLED_PAYMENT, "INSERT INTO funds.account (account_no) VALUES (:merchant)"):
            connection.execute(text(sql), given)
        connection.execute(
            text("""UPDATE payments.payment SET currency = :currency, method = CAST(:method AS text),
                           bank_transaction_no = CASE :method WHEN 'bank_card' THEN payment_no END WHERE payment_no = :no"""),
            given,
        )
        for kind, amount_fen in amounts.items():
            connection.execute(text(MOVED), {**given, "kind": kind, "amount_fen": amount_fen})
    assert [difference.found for difference in book.differences()] == [
        f"is 10000 {currency!r}, and funds has debited 10000 'CNY'"
        if method == "balance"
        else f"is in {currency!r}, and funds has credited 9900 'CNY'"
    ]
    book.reverse(voucher_no)
    with book.owner.begin() as connection:
        connection.execute(text("DELETE FROM payments.payment WHERE payment_no = :no"), given)
        connection.execute(text("DELETE FROM funds.entry WHERE payment_no = :no"), given)
    assert book.differences() == []


def test_the_ledger_names_a_currency_that_is_none_until_nothing_is_left_in_it(book: Book) -> None:
    event = suspense(bank_transaction_no=f"{book.prefix}B", currency="CNY\n")
    with book.engine.connect() as connection:  # rolled back: other tests want a ledger without problems
        post(connection, [Envelope(id=fresh_id(), version=1, correlation="c", event=event)])
        assert ledger_problems(connection) == [
            f"ledger balance of {account} is in 'CNY\\n', which is no currency"
            for account in ("bank_clearing", "suspense")
        ]
        voucher_no = connection.execute(
            text("SELECT voucher_no FROM voucher WHERE business_no = :no"), {"no": event.bank_transaction_no}
        ).scalar_one()
        reverse_voucher(connection, voucher_no, reason="paid back", actor="anna", at=utc_now())
        assert ledger_problems(connection) == []


MOVED = """INSERT INTO funds.entry (payment_no, account_no, kind, amount_fen, event_id)
           VALUES (:no, :merchant, :kind, :amount_fen, gen_random_uuid())"""

MOVED_BALANCE = (
    "INSERT INTO funds.account (account_no) VALUES (:account)",
    "INSERT INTO funds.balance_payment VALUES (:no, gen_random_uuid(), true)",
    "INSERT INTO funds.entry (payment_no, account_no, kind, amount_fen, event_id) VALUES (:no, :account, 'debit', 100, gen_random_uuid())",
)

SETTLED_PAYMENT = (
    "INSERT INTO payments.merchant VALUES (:merchant, :merchant, 'whsec_', 0)",
    "INSERT INTO payments.account VALUES (:merchant, 'A', 1, 1, 1)",
    """INSERT INTO payments.payment (payment_no, merchant_no, order_no, payer_no, amount_fen, currency, request_sha256,
         status, limit_day, fee_fen, points, bank_transaction_no, created_at, expires_at, finished_at)
       VALUES (:no, :merchant, :no, :merchant, 10000, 'CNY', '', 'SETTLED', '2026-11-23', 100, 100, :no,
         '2026-11-23', '2026-11-24', '2026-11-23')""",
)


@pytest.fixture
def payrelay(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Generator[Any]:
    """The command line on this stack; gives exit code and standard output."""
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["ledger", *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    return run


@pytest.mark.parametrize("output", ["table", "json", "csv"])
def test_statement_trial_balance_and_check_in_every_format(account: str, payrelay: Any, output: str) -> None:
    def output_of(*arguments: str) -> tuple[int, str]:
        code, out = payrelay(*arguments, "-o", output)
        return code, out

    code, out = output_of("statement", account, "--from", f"{BEGIN + 2 * DAY:%Y-%m-%dT%H:%M:%S%z}")
    assert (code, "9900" in out, "59700" in out) == (0, True, True)
    code, out = output_of("trial-balance", "--at", f"{BEGIN + 3 * DAY:%Y-%m-%d %H:%M:%S.%f%z}")
    assert (code, account in out, "29800" in out) == (0, True, True)
    code, out = output_of("check", "--grace", "0")  # the test's vouchers have no payments
    assert (code, f"{account.partition(':')[2][:-1]}P" in out, "did not happen" in out) == (1, True, True)
    assert output_of("statement", "petty_cash")[0] == 2
    assert output_of("statement", "merchant_payable")[0] == 2
    if output == "json":
        lines = json.loads(payrelay("statement", account, "-o", "json")[1])
        assert [line["balance_fen"] for line in lines] == [0, 9_900, 29_800, 59_700, 59_700]
        assert datetime.fromisoformat(lines[1]["occurred_at"]) == BEGIN + DAY


def test_reverse_and_correct_show_first_and_post_with_execute(book: Book, payrelay: Any) -> None:
    number = str(book.posted())
    shown, posted = (
        ("reverse", number, "--reason", "wrong fee", "-o", "json"),
        ("--execute", "--yes", "--actor", "anna"),
    )
    code, out = payrelay(*shown)
    assert (code, [entry["side"] for entry in json.loads(out)], book.owed()) == (0, ["C", "D", "D"], 9_900)
    assert payrelay(*shown, *posted)[0] == 0
    assert book.owed() == 0
    with pytest.raises(Refused, match="reversed before"):
        payrelay(*shown)
    lines = ("--debit", "bank_clearing=10000", "--credit", f"{book.payable}=9940", "--credit", "fee_income=60")
    assert payrelay("correct", number, "--reason", "right fee", *lines, *posted)[0] == 0
    assert book.owed() == 9_940
    for wrong in ("fee_income", "fee_income=-1", "petty_cash=1", "merchant_payable=1", "fee_income:x=1"):
        assert payrelay("correct", number, "--reason", "r", "--debit", wrong, "--credit", "suspense=1")[0] == 2
    assert payrelay("reverse", number, "--reason", " ")[0] == 2


def test_suspense_is_listed_oldest_first(settings: Settings, book: Book, payrelay: Any) -> None:
    rows = [{"no": f"{book.prefix}B{n}", "payment": f"{book.prefix}P", "age": 3_600 * n} for n in (1, 2)]
    with engine_of(settings, "payments").begin() as connection:
        connection.execute(
            text("""INSERT INTO suspense VALUES (:no, :payment, 500, 'CNY', 'the order has expired',
                                                 now() - make_interval(secs => :age))"""),
            rows,
        )
    code, out = payrelay("suspense", "--payment", f"{book.prefix}P", "--reason", "expired", "-o", "json")
    items = json.loads(out)
    assert (code, [item["bank_transaction_no"] for item in items]) == (0, [rows[1]["no"], rows[0]["no"]])
    assert 7_200 <= items[0]["age_s"] < 7_300
    assert json.loads(payrelay("suspense", "--payment", f"{book.prefix}P", "--reason", "amount", "-o", "json")[1]) == []
    assert "bank_clearing" in payrelay("accounts", "-o", "csv")[1]
