"""A service's own facts beside the outbox rows that tell of them. Each statement reads one service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, text

from ops.reconcile.effects import BUSINESS_NO, COMMITTED, business_no
from ops.reconcile.findings import Finding, Kind
from outbox.clock import first_id_at
from outbox.partitions import days_of
from schemas.events import (
    BalancePaymentRequested,
    BankTransactionExecuted,
    Event,
    FundsDeposited,
    PaymentFailed,
    PaymentSettled,
    SuspenseRecorded,
)

TRANSACTION_MAX = timedelta(minutes=15)
"""Longer than a service's transaction may be open: its event is no older than this when it commits."""


def _fact(
    fact: str, table: str, number: str, condition: str, moment: str, *, key: str = "", order_no: str = "''"
) -> str:
    return f"""
        SELECT {number} AS business_no, {key or number} AS key, {order_no} AS order_no, {fact} AS fact FROM {table}
        WHERE {condition} AND {moment} >= CAST(:kept AS timestamptz) AND {COMMITTED}
          AND (CAST(:numbers AS text[]) IS NULL OR {number} = ANY(:numbers))"""  # noqa: S608 - names of ours


# The type without its version. A row that was written again later has its own moment still.
_FACTS = {
    "payments": (
        _fact(
            "'payment.settled'",
            "payments.payment",
            "payment_no",
            "status = 'SETTLED'",
            "finished_at",
            order_no="order_no",
        ),
        _fact(
            "'payment.failed'",
            "payments.payment",
            "payment_no",
            "status = 'FAILED'",
            "finished_at",
            order_no="order_no",
        ),
        _fact(
            "'payment.balance_requested'",
            "payments.payment",
            "payment_no",
            "method = 'balance' AND status IN ('PAYING', 'SETTLED', 'FAILED')",
            "created_at",
            order_no="order_no",
        ),
        _fact(
            "'payment.suspense_recorded'",
            "payments.suspense",
            "bank_transaction_no",
            "true",
            "recorded_at",
            key="payment_no",
        ),
    ),
    "funds": (
        _fact("'funds.deposited'", "funds.deposit", "deposit_no", "true", "deposited_at"),
        _fact(
            "CASE WHEN paid THEN 'funds.balance_paid' ELSE 'funds.balance_refused' END",
            "funds.balance_payment",
            "payment_no",
            "true",
            "coalesce(pg_xact_commit_timestamp(xmin), '-infinity')",
        ),
    ),
    "bank": (_fact("'bank.transaction_executed'", "bank.transaction", "transaction_no", "true", "created_at"),),
}

_UNRECORDED = """
    SELECT fact.* FROM ({facts}) AS fact
    WHERE NOT EXISTS (
      SELECT FROM (SELECT {business_no} AS business_no, regexp_replace(type, '[.]v[0-9]+$', '') AS fact
                   FROM {service}.outbox WHERE id >= :low) AS told
      WHERE told.business_no = fact.business_no AND told.fact = fact.fact)
    ORDER BY fact.business_no COLLATE "C", fact.fact LIMIT :limit"""


def kept_from(connection: Connection, service: str) -> datetime:
    """Return the beginning of the oldest day that a service's outbox holds. What was committed before may have had its row."""
    day = days_of(connection, service, "outbox")[0]
    moment: datetime = connection.execute(
        text("SELECT CAST(:day AS timestamp) AT TIME ZONE 'UTC'"), {"day": day}
    ).scalar_one()
    return moment


def unrecorded(
    connection: Connection, service: str, *, since: datetime | None, before: datetime, limit: int
) -> list[Finding]:
    """Return the facts committed in that time that no row of the outbox tells of; without a beginning, of the days that it keeps.

    First beside the rows of the same time; what is not among them, beside all. Facts and rows of one snapshot.
    """
    if service not in _FACTS:
        return []
    kept = kept_from(connection, service)
    begin = max(since or kept, kept)
    about = {"kept": kept + TRANSACTION_MAX, "since": begin, "before": before, "limit": limit, "numbers": None}
    low = begin - TRANSACTION_MAX
    rows = _without_row(connection, service, about, low)
    if rows and low > kept:
        rows = _without_row(connection, service, {**about, "numbers": [row.business_no for row in rows]}, kept)
    return [_finding(service, row) for row in rows]


def still_unrecorded(connection: Connection, service: str, numbers: Sequence[str]) -> list[Finding]:
    """Return which facts of these business numbers no row of the kept outbox tells of."""
    about = {"kept": "-infinity", "since": "-infinity", "before": "infinity", "numbers": list(numbers)}
    kept = kept_from(connection, service)
    rows = _without_row(connection, service, {**about, "limit": len(_FACTS[service]) * len(numbers)}, kept)
    return [_finding(service, row) for row in rows]


def _finding(service: str, row: Row[Any]) -> Finding:
    return Finding(
        kind=Kind.UNRECORDED,
        service=service,
        type=row.fact,
        key=row.key,
        order_no=row.order_no,
        business_no=row.business_no,
        effect=row.fact,
        found="no outbox row tells of it",
    )


def _without_row(connection: Connection, service: str, about: Mapping[str, Any], low: datetime) -> Sequence[Any]:
    statement = _UNRECORDED.format(facts=" UNION ALL ".join(_FACTS[service]), business_no=BUSINESS_NO, service=service)
    return connection.execute(text(statement), {**about, "low": first_id_at(low)}).all()


_TOLD_OF = {
    "payments.payment": (PaymentSettled, PaymentFailed, BalancePaymentRequested),
    "payments.suspense": (SuspenseRecorded,),
    "funds.deposit": (FundsDeposited,),
    "bank.transaction": (BankTransactionExecuted,),
}

_COLUMNS = {
    "payments.payment": (
        "payment_no", "order_no", "merchant_no", "payer_no", "amount_fen", "currency", "status", "method", "fee_fen", "points",
        "cost_fen", "bank_transaction_no",
    ),
    "payments.suspense": ("bank_transaction_no", "payment_no", "amount_fen", "currency"),
    "funds.deposit": ("deposit_no", "payer_no", "amount_fen", "currency"),
    "bank.transaction": ("transaction_no", "payment_no", "amount_fen", "currency", "status"),
}  # fmt: skip

_NUMBERS = {
    "payments.payment": "payment_no",
    "payments.suspense": "bank_transaction_no",
    "funds.deposit": "deposit_no",
    "bank.transaction": "transaction_no",
}


def contradictions(connection: Connection, events: Sequence[Event]) -> dict[Event, str]:
    """Return how the facts' own rows say otherwise than events of one service do."""
    found: dict[Event, str] = {}
    for table, types in _TOLD_OF.items():
        told = [event for event in events if isinstance(event, types)]
        if not told:
            continue
        number = _NUMBERS[table]
        rows = connection.execute(
            text(f"SELECT {', '.join(_COLUMNS[table])} FROM {table} WHERE {number} = ANY(:numbers)"),  # noqa: S608
            {"numbers": list({business_no(event) for event in told})},
        )
        facts: dict[str, Any] = {row[0]: row for row in rows}
        for event in told:
            fact = facts.get(business_no(event))
            if fact is None:
                found[event] = f"there is no such row in {table}"
            elif problem := contradiction(event, fact._mapping):
                found[event] = problem
    return found


_STATUS = {
    PaymentSettled: ("SETTLED",),
    PaymentFailed: ("FAILED",),
    BalancePaymentRequested: ("PAYING", "SETTLED", "FAILED"),
}

_NOT_COMPARED = (
    "fee_rule",
    "cost_rule",
    "reason",
    "settled_at",
    "failed_at",
    "requested_at",
    "recorded_at",
    "deposited_at",
    "executed_at",
)
"""What an event says beside what its row holds, or in another precision."""


@cache
def _compared(event: type[Event]) -> list[str]:
    """Return what an event and its row both say. A request's fee and points stand in the row once it is paid, with the event of that."""
    left_out = {*_NOT_COMPARED, *(("fee_fen", "points") if event is BalancePaymentRequested else ())}
    return [name for name in event.__struct_fields__ if name not in left_out]


def contradiction(event: Event, fact: Mapping[str, Any]) -> str:
    """Return where an event and its fact's row differ; empty where they agree. Pure.

    >>> event = FundsDeposited(deposit_no="D", payer_no="U", amount_fen=5, currency="CNY", deposited_at=datetime(2026, 1, 1))
    >>> contradiction(event, {"deposit_no": "D", "payer_no": "U", "amount_fen": 6, "currency": "CNY"})
    'amount_fen: the event says 5, the row 6'
    """
    if (allowed := _STATUS.get(type(event))) and fact["status"] not in allowed:
        return f"status: the event says {allowed[0]}, the row {fact['status']}"
    for name in _compared(type(event)):
        said, has = getattr(event, name), fact[name]
        if name == "bank_transaction_no" and has is None:  # a balance payment's is its own number
            has = fact["payment_no"]
        if said != has:
            return f"{name}: the event says {said}, the row {has}"
    return ""
