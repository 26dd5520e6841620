"""The ledger as an auditor reads it: statements, trial balances at a time, and what does not agree with what.

Amounts are fen. An account's balance is on its normal side: debit for what is ours, credit for what we owe or have earned.
Time is when the fact happened (`occurred_at`), which a replay does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, text

from schemas.accounts import CHART, general_account
from schemas.money import CNY

CHUNK = 5_000
NAMED_MAX = 1_000
"""Differences of one kind that are named; more are counted."""

Left = TypeVar("Left")
Right = TypeVar("Right")


@dataclass(frozen=True, kw_only=True)
class Line:
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
class Difference:
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
) -> list[Line]:
    """Return an account's opening balance, its entries from `begin` up to, not including, `end`, and its closing balance."""
    parameters = {"account": account, "currency": currency, "begin": begin, "end": end}
    before = connection.execute(_BEFORE, parameters).one()
    balance = balance_of(account, before.debit_fen, before.credit_fen)
    lines = [_carried("opening", balance)]
    for row in connection.execute(_BETWEEN, parameters):
        balance += balance_of(account, row.debit_fen, row.credit_fen)
        lines.append(Line(**row._mapping, balance_fen=balance))
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


def _carried(kind: str, balance_fen: int) -> Line:
    return Line(
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
    found = trial_balance(connection)
    rows = []
    for code, general in CHART.items():
        own = [one for one in found if general_account(one.account) is general]
        rows += [
            Account(
                code=code,
                name=general.name,
                normal_side=general.normal_side,
                currency=currency,
                accounts=sum(one.currency == currency for one in own),
                balance_fen=sum(one.balance_fen for one in own if one.currency == currency),
            )
            for currency in sorted({one.currency for one in own} or {CNY})
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


def check(engine: Engine, *, before: datetime) -> list[Difference]:
    """Return what does not agree: debits with credits, balances with entries, vouchers with settled payments, suspense and
    deposits, and balance payments of funds with those of payments.

    What was committed after `before` may still be on its way to the other side, and is left out. A voucher that was reversed
    is none: what stands for its fact is the correction in its place, for the same amount; money in suspense is resolved when
    its voucher is reversed. Reads only, each service by itself.
    """
    with engine.connect() as connection:
        inside = [
            Difference(kind="ledger", subject="accounting", found=problem) for problem in ledger_problems(connection)
        ]
        resolved = _resolved(connection)
        foreign = _credited_of_another_currency(connection)
        paying = [
            Difference(kind="balance", subject=row.payment_no, found="is PAYING, and has had no answer from funds")
            for row in connection.execute(_PAYING, {"before": before, "limit": NAMED_MAX})
        ]
    compared = [
        *(
            difference
            for facts in (_SETTLEMENTS, _SUSPENSE, _DEPOSITS)
            for difference in _differences(
                engine, facts, _VOUCHERS.format(kind=facts.kind), _by_voucher(facts.entries, before)
            )
            if facts is not _SUSPENSE or difference.subject not in resolved
        ),
        *_differences(engine, _SETTLED_BALANCES, _MOVED, _by_amount(before)),
    ]
    return [*inside, *compared, *foreign, *paying]


def _credited_of_another_currency(connection: Connection) -> list[Difference]:
    rows = connection.execute(_FOREIGN, {"currency": CNY, "limit": NAMED_MAX})
    currencies = {row.payment_no: row.currency for row in rows}
    return [
        Difference(
            kind="balance",
            subject=row.payment_no,
            found=f"is in {currencies[row.payment_no]!r}, and funds has credited {row.amount_fen} {CNY!r}",
        )
        for row in connection.execute(_CREDITED, {"payments": list(currencies)})
    ]


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """Facts of a service, in the order of their numbers, and what they should have led to."""

    kind: str
    rows: str
    entries: Callable[[Any], dict[str, int]] = field(default=lambda _: {})
    """Debits less credits of each account, as the fact calls for them."""


def _nonzero(lines: dict[str, int]) -> dict[str, int]:
    return {account: fen for account, fen in lines.items() if fen}


# When a row was committed, not when its fact happened, says how long the other side has had.
_SETTLEMENTS = _Facts(
    kind="settlement",
    rows="""SELECT payment_no AS business_no, amount_fen, currency, merchant_no, payer_no, method, fee_fen,
                    coalesce(cost_fen, 0) AS cost_fen, coalesce(pg_xact_commit_timestamp(xmin), finished_at) AS committed_at
             FROM payments.payment WHERE status = 'SETTLED' ORDER BY payment_no COLLATE "C" """,
    entries=lambda row: _nonzero(
        {
            "bank_clearing" if row.method == "bank_card" else f"payer_balance:{row.payer_no}": row.amount_fen
            - row.cost_fen,
            "channel_cost": row.cost_fen,
            f"merchant_payable:{row.merchant_no}": row.fee_fen - row.amount_fen,
            "fee_income": -row.fee_fen,
        }
    ),
)

_SUSPENSE = _Facts(
    kind="suspense",
    rows="""SELECT bank_transaction_no AS business_no, amount_fen, currency, coalesce(pg_xact_commit_timestamp(xmin), recorded_at) AS committed_at
             FROM payments.suspense ORDER BY bank_transaction_no COLLATE "C" """,
    entries=lambda row: {"bank_clearing": row.amount_fen, "suspense": -row.amount_fen},
)

_DEPOSITS = _Facts(
    kind="deposit",
    rows="""SELECT deposit_no AS business_no, payer_no, amount_fen, currency, coalesce(pg_xact_commit_timestamp(xmin), deposited_at) AS committed_at
             FROM funds.deposit ORDER BY deposit_no COLLATE "C" """,
    entries=lambda row: {"bank_clearing": row.amount_fen, f"payer_balance:{row.payer_no}": -row.amount_fen},
)

_SETTLED_BALANCES = _Facts(
    kind="balance",
    rows="""SELECT payment_no AS business_no, amount_fen, currency,
                   coalesce(pg_xact_commit_timestamp(xmin), finished_at) AS committed_at
             FROM payments.payment WHERE status = 'SETTLED' AND method = 'balance' ORDER BY payment_no COLLATE "C" """,
)

# Funds keeps one currency: what it has moved for a payment of another one is wrong, whatever the amount.
_FOREIGN = text("""
    SELECT payment_no, currency FROM payments.payment
    WHERE status = 'SETTLED' AND method <> 'balance' AND currency <> :currency ORDER BY payment_no LIMIT :limit""")

_CREDITED = text("""
    SELECT payment_no, CAST(sum(amount_fen) AS bigint) AS amount_fen FROM funds.entry
    WHERE payment_no = ANY (CAST(:payments AS text[])) GROUP BY payment_no HAVING sum(amount_fen) <> 0""")

_MOVED = """
    SELECT payment_no AS business_no,
           amount_fen - (SELECT coalesce(sum(amount_fen), 0)::bigint FROM funds.entry AS correction
                         WHERE (correction.payment_no, correction.account_no, correction.kind)
                             = (entry.payment_no, entry.account_no, 'correction')) AS amount_fen,
           (SELECT pg_xact_commit_timestamp(balance_payment.xmin) FROM funds.balance_payment
            WHERE balance_payment.payment_no = entry.payment_no) AS committed_at
    FROM funds.entry WHERE kind = 'debit' ORDER BY payment_no COLLATE "C" """

_PAYING = text("""
    SELECT payment_no FROM payments.payment
    WHERE status = 'PAYING' AND coalesce(pg_xact_commit_timestamp(xmin), '-infinity') < :before
    ORDER BY payment_no LIMIT :limit""")

# A fact's voucher, or the last of the corrections in its place; there is at most one that was not reversed.
_VOUCHERS = """
    SELECT business_no, kind, currency, coalesce(pg_xact_commit_timestamp(xmin), occurred_at) AS committed_at,
           (SELECT coalesce(sum(amount_fen), 0)::bigint FROM accounting.entry
            WHERE entry.voucher_no = voucher.voucher_no AND side = 'D') AS amount_fen,
           (SELECT json_object_agg(account, fen) FROM (
              SELECT account, sum(CASE side WHEN 'D' THEN amount_fen ELSE -amount_fen END)::bigint AS fen
              FROM accounting.entry WHERE entry.voucher_no = voucher.voucher_no GROUP BY account) AS line) AS entries
    FROM accounting.voucher
    WHERE NOT EXISTS (SELECT FROM accounting.voucher AS reversal WHERE reversal.reverses = voucher.voucher_no)
      AND (kind = '{kind}' OR (kind = 'correction' AND EXISTS (
             SELECT FROM accounting.voucher AS first
             WHERE first.business_no = voucher.business_no AND first.kind = '{kind}' AND first.event_id IS NOT NULL)))
    ORDER BY business_no COLLATE "C" """

Problem = Callable[[Any, Any], str | None]


def _by_voucher(entries: Callable[[Any], dict[str, int]], before: datetime) -> Problem:
    """Return what tells whether a fact and the voucher that stands for it agree. A correction need not agree account by account."""

    def problem(fact: Any, voucher: Any) -> str | None:
        told, posted = (fact.amount_fen, fact.currency), (voucher.amount_fen, voucher.currency)
        if told != posted:
            return f"is {told[0]} {told[1]}, its voucher {posted[0]} {posted[1]}"
        if voucher.kind != "correction" and voucher.entries != (wanted := entries(fact)):
            return f"calls for the entries {wanted}, its voucher has {voucher.entries}"
        return None

    return _unless_on_its_way(
        problem, before, missing="has no voucher that stands", extra="has a voucher, and did not happen"
    )


def _by_amount(before: datetime) -> Problem:
    def problem(payment: Any, entry: Any) -> str | None:
        same = (payment.amount_fen, payment.currency) == (entry.amount_fen, CNY)
        asked = f"{payment.amount_fen} {payment.currency!r}"
        return None if same else f"is {asked}, and funds has debited {entry.amount_fen} {CNY!r}"

    return _unless_on_its_way(
        problem,
        before,
        missing="is SETTLED, and funds has debited nobody",
        extra="was debited by funds, and is not SETTLED",
    )


def _unless_on_its_way(problem: Problem, before: datetime, *, missing: str, extra: str) -> Problem:
    def told(left: Any, right: Any) -> str | None:
        if left is not None and right is not None:
            return problem(left, right)
        found = _either(left, right)
        if found.committed_at is not None and found.committed_at >= before:
            return None
        return missing if right is None else extra

    return told


def _differences(engine: Engine, facts: _Facts, other: str, problem: Problem) -> list[Difference]:
    found: list[Difference] = []
    count = 0
    with engine.connect() as here, engine.connect() as there:
        lefts, rights = _stream(here, facts.rows), _stream(there, other)
        for left, right in paired(lefts, rights, lambda row: row.business_no, lambda row: row.business_no):
            told = problem(left, right)
            if told is None:
                continue
            count += 1
            if count <= NAMED_MAX:
                found.append(Difference(kind=facts.kind, subject=_either(left, right).business_no, found=told))
    if count > NAMED_MAX:
        found.append(Difference(kind=facts.kind, subject="", found=f"and {count - NAMED_MAX} more"))
    return found


def _resolved(connection: Connection) -> dict[str, str]:
    """Return the reason for which each suspense voucher was taken back, where nothing stands in its place."""
    rows = connection.execute(
        text("""SELECT business_no, (SELECT reason FROM accounting.voucher AS reversal
                                     WHERE reversal.reverses = voucher.voucher_no) AS reason
                FROM accounting.voucher
                WHERE kind = 'suspense'
                  AND EXISTS (SELECT FROM accounting.voucher AS reversal WHERE reversal.reverses = voucher.voucher_no)
                  AND NOT EXISTS (SELECT FROM accounting.voucher AS instead WHERE instead.corrects = voucher.voucher_no)""")
    )
    return {row.business_no: row.reason or "" for row in rows}


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


def ledger_problems(connection: Connection) -> list[str]:
    """Return what is wrong inside the ledger: vouchers out of balance, balances that are not their entries' sums, no currency."""
    unbalanced = connection.execute(
        text("""SELECT voucher_no, business_no, count(*) OVER () AS total FROM accounting.voucher LEFT JOIN accounting.entry USING (voucher_no)
                GROUP BY voucher_no HAVING coalesce(sum(CASE side WHEN 'D' THEN amount_fen ELSE -amount_fen END), 1) <> 0
                ORDER BY voucher_no LIMIT 20""")
    ).all()
    problems = [f"voucher {row.voucher_no} of {row.business_no} is out of balance" for row in unbalanced]
    problems += _more(unbalanced, "vouchers")
    off = connection.execute(
        text("""SELECT account, currency, coalesce(kept.debit, 0) AS kept_debit, coalesce(kept.credit, 0) AS kept_credit,
                       coalesce(entered.debit, 0) AS debit, coalesce(entered.credit, 0) AS credit, count(*) OVER () AS total
                FROM (SELECT account, currency, sum(debit_fen) AS debit, sum(credit_fen) AS credit
                      FROM accounting.balance GROUP BY account, currency) AS kept
                FULL JOIN (SELECT account, currency, sum(amount_fen) FILTER (WHERE side = 'D') AS debit,
                                  sum(amount_fen) FILTER (WHERE side = 'C') AS credit
                           FROM accounting.entry JOIN accounting.voucher USING (voucher_no)
                           GROUP BY account, currency) AS entered USING (account, currency)
                WHERE (coalesce(kept.debit, 0), coalesce(kept.credit, 0))
                      IS DISTINCT FROM (coalesce(entered.debit, 0), coalesce(entered.credit, 0))
                ORDER BY account LIMIT 20""")
    ).all()
    problems += [
        f"ledger balance of {row.account} in {row.currency!r} is {row.kept_debit} debit, {row.kept_credit} credit; "
        f"its entries are {row.debit}, {row.credit}"
        for row in off
    ]
    problems += _more(off, "balances")
    strange = connection.execute(
        text("""SELECT account, currency, count(*) OVER () AS total FROM accounting.balance WHERE currency !~ '^[A-Z]{3}$'
                GROUP BY account, currency HAVING sum(debit_fen) <> sum(credit_fen) ORDER BY account, currency LIMIT 20""")
    ).all()
    problems += [f"ledger balance of {row.account} is in {row.currency!r}, which is no currency" for row in strange]
    return problems + _more(strange, "such balances")


def _more(named: Sequence[Any], what: str) -> list[str]:
    more = named[0].total - len(named) if named else 0
    return [f"and {more} more {what}"] if more else []
