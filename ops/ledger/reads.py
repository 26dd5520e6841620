"""The ledger as an auditor reads it: statements, trial balances at a time, and what does not agree with what.

Amounts are fen. An account's balance is on its normal side: debit for what is ours, credit for what we owe or have earned.
Time is when the fact happened (`occurred_at`), which a replay does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, text

from consumers.accounting.effects import RESOLVED
from consumers.effects import Agreement
from consumers.processors import EFFECTS
from ops.ledger.integrity import ledger_problems
from schemas.accounts import CHART, general_account
from schemas.money import CNY

CHUNK = 5_000
NAMED_MAX = 1_000
"""Differences of one kind that are named; more are counted."""

Left = TypeVar("Left")
Right = TypeVar("Right")


@dataclass(frozen=True, kw_only=True)
class StatementLine:
    """A line of a statement; the first and the last one carry a balance only."""

    occurred_at: datetime | None
    voucher_no: int | None
    kind: str
    business_no: str
    debit_fen: int
    credit_fen: int
    balance_fen: int


@dataclass(frozen=True, kw_only=True)
class Balance:
    """An account in a trial balance."""

    account: str
    currency: str
    debit_fen: int
    credit_fen: int
    balance_fen: int


@dataclass(frozen=True, kw_only=True)
class Account:
    """A row of the chart of accounts, with what its accounts add up to in a currency."""

    code: str
    name: str
    normal_side: str
    currency: str
    accounts: int
    balance_fen: int


@dataclass(frozen=True, kw_only=True)
class SuspenseItem:
    """Money that the bank has taken and no order could: it waits for an operator, unless it is resolved."""

    bank_transaction_no: str
    payment_no: str
    amount_fen: int
    currency: str
    reason: str
    recorded_at: datetime
    age_s: int
    resolved: str
    """Why its voucher was taken back; empty while it waits."""


@dataclass(frozen=True, kw_only=True)
class LedgerDifference:
    """Two things that should agree, and do not."""

    kind: str
    subject: str
    found: str


def balance_of(account: str, debit_fen: int, credit_fen: int) -> int:
    """Return an account's balance on its normal side.

    >>> balance_of("bank_clearing", 100, 30), balance_of("merchant_payable:M1", 30, 100)
    (70, 70)
    """
    return debit_fen - credit_fen if general_account(account).normal_side == "D" else credit_fen - debit_fen


def statement(
    connection: Connection, account: str, *, currency: str, begin: datetime | None, end: datetime | None
) -> list[StatementLine]:
    """Return an account's opening balance, its entries from `begin` up to, not including, `end`, and its closing balance."""
    parameters = {"account": account, "currency": currency, "begin": begin, "end": end}
    before = connection.execute(_BEFORE, parameters).one()
    balance = balance_of(account, before.debit_fen, before.credit_fen)
    lines = [_carried("opening", balance)]
    for row in connection.execute(_BETWEEN, parameters):
        balance += balance_of(account, row.debit_fen, row.credit_fen)
        lines.append(StatementLine(**row._mapping, balance_fen=balance))
    return [*lines, _carried("closing", balance)]


_BEFORE = text("""
    SELECT coalesce(sum(amount_fen) FILTER (WHERE side = 'D'), 0)::bigint AS debit_fen,
           coalesce(sum(amount_fen) FILTER (WHERE side = 'C'), 0)::bigint AS credit_fen
    FROM accounting.entry JOIN accounting.voucher USING (voucher_no)
    WHERE account = :account AND currency = :currency AND occurred_at < CAST(:begin AS timestamptz)""")

_BETWEEN = text("""
    SELECT occurred_at, voucher_no, kind, business_no,
           CASE side WHEN 'D' THEN amount_fen ELSE 0 END AS debit_fen,
           CASE side WHEN 'C' THEN amount_fen ELSE 0 END AS credit_fen
    FROM accounting.entry JOIN accounting.voucher USING (voucher_no)
    WHERE account = :account AND currency = :currency
      AND (CAST(:begin AS timestamptz) IS NULL OR occurred_at >= :begin)
      AND (CAST(:end AS timestamptz) IS NULL OR occurred_at < :end)
    ORDER BY occurred_at, voucher_no, line""")


def _carried(kind: str, balance_fen: int) -> StatementLine:
    return StatementLine(
        occurred_at=None, voucher_no=None, kind=kind, business_no="", debit_fen=0, credit_fen=0, balance_fen=balance_fen
    )


def trial_balance(connection: Connection, *, at: datetime | None = None) -> list[Balance]:
    """Return every account's sums, by the kept balances; by the entries of facts before `at` where that is given."""
    if at is None:
        rows = connection.execute(
            text("""SELECT account, currency, sum(debit_fen)::bigint AS debit_fen, sum(credit_fen)::bigint AS credit_fen
                    FROM accounting.balance GROUP BY account, currency ORDER BY account, currency""")
        )
    else:
        rows = connection.execute(
            text("""SELECT account, currency,
                           coalesce(sum(amount_fen) FILTER (WHERE side = 'D'), 0)::bigint AS debit_fen,
                           coalesce(sum(amount_fen) FILTER (WHERE side = 'C'), 0)::bigint AS credit_fen
                    FROM accounting.entry JOIN accounting.voucher USING (voucher_no)
                    WHERE occurred_at < :at GROUP BY account, currency ORDER BY account, currency"""),
            {"at": at},
        )
    return [Balance(**row._mapping, balance_fen=balance_of(row.account, row.debit_fen, row.credit_fen)) for row in rows]


def accounts(connection: Connection) -> list[Account]:
    """Return the chart of accounts with the kept balances, a row for each currency that an account has."""
    balances = trial_balance(connection)
    rows = []
    for code, general in CHART.items():
        own = [balance for balance in balances if general_account(balance.account) is general]
        rows += [
            Account(
                code=code,
                name=general.name,
                normal_side=general.normal_side,
                currency=currency,
                accounts=sum(balance.currency == currency for balance in own),
                balance_fen=sum(balance.balance_fen for balance in own if balance.currency == currency),
            )
            for currency in sorted({balance.currency for balance in own} or {CNY})
        ]
    return rows


def imbalances(connection: Connection) -> dict[str, int]:
    """Return debits less credits of each currency (fen), by the kept balances; anything but 0 is wrong."""
    rows = connection.execute(
        text("SELECT currency, sum(debit_fen - credit_fen)::bigint AS fen FROM accounting.balance GROUP BY currency")
    )
    return {row.currency: row.fen for row in rows}


def suspense(
    connection: Connection, *, payment_no: str = "", reason: str = "", also_resolved: bool = False, limit: int
) -> list[SuspenseItem]:
    """Return what waits in suspense, the oldest first, at most so many; of one payment, or with a word in its reason."""
    resolved = _resolved(connection)
    rows = connection.execute(
        text("""SELECT bank_transaction_no, payment_no, amount_fen, currency, reason, recorded_at,
                       extract(epoch FROM clock_timestamp() - recorded_at)::bigint AS age_s
                FROM payments.suspense
                WHERE (:payment_no = '' OR payment_no = :payment_no) AND strpos(reason, :reason) > 0
                  AND (:also_resolved OR bank_transaction_no <> ALL (CAST(:resolved AS text[])))
                ORDER BY recorded_at, bank_transaction_no LIMIT :limit"""),
        {
            "payment_no": payment_no,
            "reason": reason,
            "also_resolved": also_resolved,
            "resolved": list(resolved),
            "limit": limit,
        },
    )
    return [SuspenseItem(**row._mapping, resolved=resolved.get(row.bank_transaction_no, "")) for row in rows]


def check(engine: Engine, *, before: datetime) -> list[LedgerDifference]:
    """Return what does not agree: debits with credits, balances with entries, and what consumers state of facts and rows: vouchers
    with settled payments, suspense and deposits, and balance payments of funds with those of payments.

    What was committed after `before` may still be on its way to the other side, and is left out. A voucher that was reversed
    is none: what stands for its fact is the correction in its place, for the same amount; money in suspense is resolved when
    its voucher is reversed. Reads only, each service by itself.
    """
    with engine.connect() as connection:
        inside = [
            LedgerDifference(kind="ledger", subject="accounting", found=problem)
            for problem in ledger_problems(connection)
        ]
        foreign = _credited_of_another_currency(connection)
        paying = [
            LedgerDifference(
                kind="balance", subject=row.payment_no, found="is PAYING, and has had no answer from funds"
            )
            for row in connection.execute(_PAYING, {"before": before, "limit": NAMED_MAX})
        ]
    compared = [
        difference for agreement in agreements() for difference in disagreements(engine, agreement, before=before)
    ]
    return [*inside, *compared, *foreign, *paying]


def agreements() -> list[Agreement]:
    """Return what consumers state of facts and of the rows that they should have led to."""
    return [agreement for effects in EFFECTS.values() for agreement in effects.agreements]


def _credited_of_another_currency(connection: Connection) -> list[LedgerDifference]:
    rows = connection.execute(_FOREIGN, {"currency": CNY, "limit": NAMED_MAX})
    currencies = {row.payment_no: row.currency for row in rows}
    return [
        LedgerDifference(
            kind="balance",
            subject=row.payment_no,
            found=f"is in {currencies[row.payment_no]!r}, and funds has credited {row.amount_fen} {CNY!r}",
        )
        for row in connection.execute(_CREDITED, {"payments": list(currencies)})
    ]


# Funds keeps one currency: what it has moved for a payment of another one is wrong, whatever the amount.
_FOREIGN = text("""
    SELECT payment_no, currency FROM payments.payment
    WHERE status = 'SETTLED' AND method <> 'balance' AND currency <> :currency ORDER BY payment_no LIMIT :limit""")

_CREDITED = text("""
    SELECT payment_no, CAST(sum(amount_fen) AS bigint) AS amount_fen FROM funds.entry
    WHERE payment_no = ANY (CAST(:payments AS text[])) GROUP BY payment_no HAVING sum(amount_fen) <> 0""")

_PAYING = text("""
    SELECT payment_no FROM payments.payment
    WHERE status = 'PAYING' AND coalesce(pg_xact_commit_timestamp(xmin), '-infinity') < :before
    ORDER BY payment_no LIMIT :limit""")


def disagreements(engine: Engine, agreement: Agreement, *, before: datetime) -> list[LedgerDifference]:
    """Return where facts and their rows do not agree: named up to a bound, and then counted."""
    differences: list[LedgerDifference] = []
    count = 0
    with engine.connect() as here, engine.connect() as there:
        resolved = set(here.execute(text(agreement.resolved)).scalars()) if agreement.resolved else set()
        facts, rows = _stream(here, agreement.facts), _stream(there, agreement.rows)
        for fact, row in paired(facts, rows, lambda fact: fact.business_no, lambda row: row.business_no):
            if (problem := _problem(agreement, fact, row, before)) is None:
                continue
            if (subject := _either(fact, row).business_no) in resolved:
                continue
            count += 1
            if count <= NAMED_MAX:
                differences.append(LedgerDifference(kind=agreement.kind, subject=subject, found=problem))
    if count > NAMED_MAX:
        differences.append(LedgerDifference(kind=agreement.kind, subject="", found=f"and {count - NAMED_MAX} more"))
    return differences


def _problem(agreement: Agreement, fact: Any, row: Any, before: datetime) -> str | None:
    """Return how a fact and its row differ; None where they agree, or where the other one may still be on its way."""
    if fact is not None and row is not None:
        return agreement.difference(fact, row)
    committed_at = _either(fact, row).committed_at
    if committed_at is not None and committed_at >= before:
        return None
    return agreement.missing if row is None else agreement.extra


def _resolved(connection: Connection) -> dict[str, str]:
    """Return the reason for which each suspense voucher was taken back, where nothing stands in its place."""
    return {row.business_no: row.reason or "" for row in connection.execute(text(RESOLVED))}


def _either(left: Any, right: Any) -> Any:
    return right if left is None else left


def _stream(connection: Connection, statement: str) -> Iterator[Any]:
    """Give a statement's rows, some thousands at a time."""
    yield from connection.execution_options(yield_per=CHUNK).execute(text(statement))


def paired(
    lefts: Iterable[Left],
    rights: Iterable[Right],
    left_key: Callable[[Left], str],
    right_key: Callable[[Right], str],
) -> Iterator[tuple[Left | None, Right | None]]:
    """Give what two sequences, each in the order of its keys, have in common, and what only one of them has.

    >>> list(paired("abd", "bce", str, str))
    [('a', None), ('b', 'b'), (None, 'c'), ('d', None), (None, 'e')]
    """
    lefts, rights = iter(lefts), iter(rights)
    left, right = next(lefts, None), next(rights, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left_key(left) < right_key(right)):
            yield left, None
            left = next(lefts, None)
        elif left is None or right_key(right) < left_key(left):
            yield None, right
            right = next(rights, None)
        else:
            yield left, right
            left, right = next(lefts, None), next(rights, None)
