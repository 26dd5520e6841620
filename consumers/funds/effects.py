"""What events should have caused at funds: what was moved on each account, and whether a balance payment was paid. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consumers.effects import Agreement, Effects, PaymentRows, Rebuild, Values
from outbox.facts import Fact, FactTable
from schemas.codec import Envelope
from schemas.events import BalancePaymentRequested, Event, FundsDeposited, PaymentSettled
from schemas.money import CNY

DECISION, PAID = "decision", "paid"


def payer_account(payer_no: str) -> str:
    """Return the account that holds a payer's balance. No merchant's number begins like it."""
    return f"payer:{payer_no}"


def expected(envelope: Envelope, present: Mapping[str, str]) -> Values:
    """Return what an event should have moved on which account. Whether a balance payment is paid, funds has decided by the balance."""
    match envelope.event:
        case PaymentSettled(method="bank_card") as event:
            return _amounts({event.merchant_no: event.amount_fen - event.fee_fen}, event.currency)
        case BalancePaymentRequested() as event:
            decision = present.get(DECISION, PAID)
            moves = {
                payer_account(event.payer_no): -event.amount_fen,
                event.merchant_no: event.amount_fen - event.fee_fen,
            }
            return {DECISION: decision} | (_amounts(moves, event.currency) if decision == PAID else {})
        case _:
            return {}


def _amounts(moves: Mapping[str, int], currency: str) -> Values:
    """Return amounts as funds keeps them, in its one currency. Of another currency, no amount of its is right."""
    unit = "" if currency == CNY else f" {currency}"
    return {account: f"{amount}{unit}" for account, amount in moves.items()}


def is_repeatable(event: Event) -> bool:
    """Return whether an event leads to the same rows at any time. A balance payment is decided by the balance of the moment."""
    return not isinstance(event, BalancePaymentRequested)


_ROWS = """
    SELECT payment_no AS business_no, account_no AS effect,
           CAST(sum(CASE kind WHEN 'debit' THEN -amount_fen ELSE amount_fen END) AS text) AS value,
           NULL AS status
    FROM funds.entry WHERE {where} GROUP BY payment_no, account_no
    UNION ALL
    SELECT payment_no, 'decision', CASE WHEN paid THEN 'paid' ELSE 'refused' END, NULL
    FROM funds.balance_payment WHERE {where}"""

_CHANGED = """
    SELECT payment_no AS business_no, account_no AS effect, event_id
    FROM funds.entry WHERE kind <> 'deposit' AND {committed}"""

_MOVED = """
    SELECT account_no AS account, CAST(sum(CASE kind WHEN 'debit' THEN -amount_fen ELSE amount_fen END) AS bigint) AS amount
    FROM {schema}.entry"""

# A credit of a balance payment was decided with its debit; its entry carries the request's event. What `reconcile --fix` has
# corrected stands beside the correction: together they are what the event calls for, or nothing.
_REBUILD = Rebuild(
    kind="entry",
    tables=("account", "entry", "balance_payment", "deposit"),
    rows="""
        SELECT payment_no || ' ' || account_no AS subject, (array_agg(event_id ORDER BY kind = 'correction'))[1] AS event_id,
               CAST(NULL AS bigint) AS number, CAST(sum(amount_fen) AS text) AS content, '' AS about
        FROM {schema}.entry
        WHERE kind IN ('credit', 'correction') AND NOT EXISTS (SELECT FROM {schema}.balance_payment AS decided
                                                               WHERE decided.payment_no = entry.payment_no)
        GROUP BY payment_no, account_no HAVING sum(amount_fen) <> 0 OR NOT bool_or(kind = 'correction')
        ORDER BY payment_no || ' ' || account_no COLLATE "C" """,
    balances="""
        SELECT account_no AS account, balance_fen AS amount FROM {schema}.account ORDER BY account_no COLLATE "C" """,
    entries=f"{_MOVED} GROUP BY 1",
    effects=f"{_MOVED} WHERE event_id = ANY(CAST(:ids AS uuid[])) GROUP BY 1",
    decided=f"""{_MOVED}
        WHERE kind NOT IN ('credit', 'correction') OR EXISTS (SELECT FROM {{schema}}.balance_payment AS decided
                                          WHERE decided.payment_no = entry.payment_no)
        GROUP BY 1""",
    aside="deposits and balance payments, which funds decides itself by the balance of the moment",
    repeats=is_repeatable,
)

# Funds moves a balance payment before payments has ended it.
_ENTRIES = PaymentRows(
    where="funds.entry",
    rows="""
        SELECT account_no || ' ' || kind AS id, NULL AS cause, event_id, kind AS what, account_no || ' ' || amount_fen || ' fen' AS detail,
               coalesce(pg_xact_commit_timestamp(xmin), created_at) AS committed_at
        FROM funds.entry WHERE payment_no = :payment_no ORDER BY kind DESC""",
    follows_end=False,
)

_DECISIONS = PaymentRows(
    where="funds.balance_payment",
    rows="""
        SELECT payment_no AS id, NULL AS cause, event_id, CASE WHEN paid THEN 'paid' ELSE 'refused' END AS what, '' AS detail,
               pg_xact_commit_timestamp(xmin) AS committed_at
        FROM funds.balance_payment WHERE payment_no = :payment_no""",
    shown=False,
    follows_end=False,
)


def _debit_difference(payment: Any, debit: Any) -> str | None:
    if (payment.amount_fen, payment.currency) == (debit.amount_fen, CNY):
        return None
    return f"is {payment.amount_fen} {payment.currency!r}, and funds has debited {debit.amount_fen} {CNY!r}"


_BALANCE_PAYMENTS = Agreement(
    kind="balance",
    facts="""
        SELECT payment_no AS business_no, amount_fen, currency, coalesce(pg_xact_commit_timestamp(xmin), finished_at) AS committed_at
        FROM payments.payment WHERE status = 'SETTLED' AND method = 'balance' ORDER BY payment_no COLLATE "C" """,
    rows="""
        SELECT payment_no AS business_no,
               amount_fen - (SELECT coalesce(sum(amount_fen), 0)::bigint FROM funds.entry AS correction
                             WHERE (correction.payment_no, correction.account_no, correction.kind)
                                 = (entry.payment_no, entry.account_no, 'correction')) AS amount_fen,
               (SELECT pg_xact_commit_timestamp(balance_payment.xmin) FROM funds.balance_payment
                WHERE balance_payment.payment_no = entry.payment_no) AS committed_at
        FROM funds.entry WHERE kind = 'debit' ORDER BY payment_no COLLATE "C" """,
    difference=_debit_difference,
    missing="is SETTLED, and funds has debited nobody",
    extra="was debited by funds, and is not SETTLED",
)

FACTS = (
    FactTable(
        table="funds.deposit",
        number="deposit_no",
        facts=(Fact(type="'funds.deposited'", happened_at="deposited_at"),),
        events=(FundsDeposited,),
        columns=("deposit_no", "payer_no", "amount_fen", "currency"),
        not_compared={FundsDeposited: ("deposited_at",)},
    ),
    FactTable(
        table="funds.balance_payment",
        number="payment_no",
        facts=(
            Fact(
                type="CASE WHEN paid THEN 'funds.balance_paid' ELSE 'funds.balance_refused' END",
                happened_at="coalesce(pg_xact_commit_timestamp(xmin), '-infinity')",
            ),
        ),
    ),
)

EFFECTS = Effects(
    expected=expected,
    rows=_ROWS,
    changed=_CHANGED,
    rebuild=_REBUILD,
    correctable=True,
    payment_rows=(_ENTRIES, _DECISIONS),
    agreements=(_BALANCE_PAYMENTS,),
    facts=FACTS,
)
