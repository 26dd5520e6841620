"""A service's own facts beside the outbox rows that tell of them. Each statement reads one service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, text

from consumers.effects import BUSINESS_NO, COMMITTED, business_no
from consumers.processors import EFFECTS
from ops.reconcile.findings import Finding, Kind
from outbox.clock import first_id_at
from outbox.facts import FactTable
from outbox.partitions import days_of
from producers.facts import FACTS as PRODUCED
from schemas.events import Event

TRANSACTION_MAX = timedelta(minutes=15)
"""Longer than a service's transaction may be open: its event is no older than this when it commits."""


def tables_of(service: str) -> list[FactTable]:
    """Return the tables in which a service's facts are, as its own modules state them."""
    return [table for table in fact_tables() if table.service == service]


def fact_tables() -> list[FactTable]:
    """Return every table of facts."""
    return [*PRODUCED, *(table for effects in EFFECTS.values() for table in effects.facts)]


def _facts_of(service: str) -> list[str]:
    """Return a statement for each kind of fact. A row that was written again later still has its own moment."""
    return [
        f"""
        SELECT {table.number} AS business_no, {table.key or table.number} AS key, {table.order_no} AS order_no, {fact.type} AS fact
        FROM {table.table}
        WHERE {fact.condition} AND {fact.happened_at} >= CAST(:kept AS timestamptz) AND {COMMITTED}
          AND (CAST(:numbers AS text[]) IS NULL OR {table.number} = ANY(:numbers))"""  # noqa: S608 - names of ours
        for table in tables_of(service)
        for fact in table.facts
    ]


_UNRECORDED = """
    SELECT fact.* FROM ({facts}) AS fact
    WHERE NOT EXISTS (
      SELECT FROM (SELECT {business_no} AS business_no, regexp_replace(type, '[.]v[0-9]+$', '') AS fact
                   FROM {service}.outbox WHERE id >= :low) AS announced
      WHERE announced.business_no = fact.business_no AND announced.fact = fact.fact)
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
    """Return the facts committed in that time that no outbox row records; without a beginning, of the days that it keeps.

    First beside the rows of the same time; what is not among them, beside all. Facts and rows of one snapshot.
    """
    if not tables_of(service):
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
    """Return which facts of these business numbers no kept outbox row records."""
    about = {"kept": "-infinity", "since": "-infinity", "before": "infinity", "numbers": list(numbers)}
    if not (facts := _facts_of(service)):
        return []
    kept = kept_from(connection, service)
    rows = _without_row(connection, service, {**about, "limit": len(facts) * len(numbers)}, kept)
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
        found="no outbox row records it",
    )


def _without_row(connection: Connection, service: str, about: Mapping[str, Any], low: datetime) -> Sequence[Any]:
    statement = _UNRECORDED.format(
        facts=" UNION ALL ".join(_facts_of(service)), business_no=BUSINESS_NO, service=service
    )
    return connection.execute(text(statement), {**about, "low": first_id_at(low)}).all()


def contradictions(connection: Connection, events: Sequence[Event]) -> dict[Event, str]:
    """Return how the facts' own rows say otherwise than events of one service do."""
    problems: dict[Event, str] = {}
    for table in fact_tables():
        announced = [event for event in events if isinstance(event, table.events)]
        if not announced:
            continue
        rows = connection.execute(
            text(f"SELECT {', '.join(table.columns)} FROM {table.table} WHERE {table.number} = ANY(:numbers)"),  # noqa: S608
            {"numbers": list({business_no(event) for event in announced})},
        )
        facts: dict[str, Any] = {row._mapping[table.number]: row for row in rows}
        for event in announced:
            fact = facts.get(business_no(event))
            if fact is None:
                problems[event] = f"there is no such row in {table.table}"
            elif problem := contradiction(event, fact._mapping):
                problems[event] = problem
    return problems


@cache
def _table_of(event: type[Event]) -> FactTable:
    return next(table for table in fact_tables() if event in table.events)


@cache
def _compared(event: type[Event]) -> list[str]:
    return _table_of(event).compared(event)


def contradiction(event: Event, fact: Mapping[str, Any]) -> str:
    """Return where an event and its fact's row differ; empty where they agree. Pure.

    >>> from schemas.events import FundsDeposited
    >>> event = FundsDeposited(deposit_no="D", payer_no="U", amount_fen=5, currency="CNY", deposited_at=datetime(2026, 1, 1))
    >>> contradiction(event, {"deposit_no": "D", "payer_no": "U", "amount_fen": 6, "currency": "CNY"})
    'amount_fen: the event says 5, the row 6'
    """
    table = _table_of(type(event))
    if (allowed := table.statuses.get(type(event))) and fact["status"] not in allowed:
        return f"status: the event says {allowed[0]}, the row {fact['status']}"
    for name in _compared(type(event)):
        said, has = getattr(event, name), fact[name]
        if has is None and name in table.stand_ins:
            has = fact[table.stand_ins[name]]
        if said != has:
            return f"{name}: the event says {said}, the row {has}"
    return ""
