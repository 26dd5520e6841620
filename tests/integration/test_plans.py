"""What services and processors do goes by indexes, whatever the planner knows of the tables: new, grown and never looked at, large.

In a database of the test's own, made by the migrations. Scans are PostgreSQL's own count of them, so that those of foreign
keys and triggers are in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import msgspec
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, make_url, text

from consumers.delivery.loop import Delivered, Delivery
from consumers.delivery.messages import Slice
from consumers.delivery.retry import retry_key, settle_lot, skip
from consumers.funds.funds import deposit
from consumers.processors import PROCESSORS
from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.inbox import Log, begin_log, note_mirrored, positions
from outbox.migrate import _upgrade, owner_engine
from outbox.parking import Act, Action
from outbox.partitions import make_days
from outbox.settings import SERVICES, Settings
from producers.bank.transactions import execute_transaction
from producers.bank.transactions import open_account as open_bank_account
from producers.payments.api import _MERCHANT, _PAYER
from producers.payments.balance import confirm_payment
from producers.payments.orders import (
    Limits,
    PaymentRequest,
    expire_payments,
    find_payment,
    open_account,
    open_payment,
    register_merchant,
)
from producers.payments.settlement import receive_notification
from schemas.bank import BankNotification, PaymentLink
from schemas.events import Event
from tests.factories import balance_paid, balance_requested, bank_executed, deposited, failed, settled, suspense
from tests.integration.test_delivery import record_of
from tests.notifier import SECRET
from tests.pipeline import engine_of

NOW = datetime(2126, 11, 23, 12, 0, tzinfo=UTC)
ZONE = ZoneInfo("Asia/Shanghai")
ROWS = 4_000
"""Rows of each table once it has grown."""
FETCHED_MAX = 1_000
"""Rows of a table that a round may fetch by its indexes: it has some fifty of each kind. A whole index would be more."""


@pytest.fixture(scope="module")
def new_system(stack: Any) -> Iterator[Settings]:
    """A database in which nothing has happened yet."""
    given: Settings = stack.settings
    name = f"plans_{uuid4().hex[:8]}"

    def within(dsn: SecretStr) -> SecretStr:
        url = make_url(dsn.get_secret_value()).set(database=name)
        return SecretStr(url.render_as_string(hide_password=False))

    owner = owner_engine(given).connect().execution_options(isolation_level="AUTOCOMMIT")
    with closing(owner):
        owner.execute(text(f"CREATE DATABASE {name}"))
        made = given.model_copy(
            update={
                "database_url": within(given.database_url),
                "dsn": {role: within(dsn) for role, dsn in given.dsn.items()},
            }
        )
        with owner_engine(made).connect() as connection:
            _upgrade(connection)
        make_days(owner_engine(made), SERVICES, today=utc_now().date(), days_ahead=1)
        yield made
        owner.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


class House:
    """Every service with one session, in which it does all that it does while payments are paid."""

    def __init__(self, settings: Settings, mode: str) -> None:
        self.name, self.round = mode.replace("_", "")[-8:], 0
        self.engines: dict[str, Engine] = {
            service: engine_for(
                settings.dsn_of(service), name="plans", pool_size=1, parameters={"plan_cache_mode": mode}
            )
            for service in SERVICES
        }
        self.logs = {
            name: Log(cluster_id="c", topic=f"{self.name}{name}", topic_id="i", partition=0) for name in PROCESSORS
        }
        self.deliveries = {
            name: Delivery(processor, self.engines[processor.service], consumer=self.name + name, clock=utc_now)
            for name, processor in PROCESSORS.items()
        }
        self.offsets = dict.fromkeys(PROCESSORS, 0)
        limits = Limits(single_fen=10**9, daily_fen=10**12, monthly_fen=10**12)
        with self.engines["payments"].begin() as connection:
            register_merchant(connection, f"{self.name}M", api_key=f"{self.name}M", secret=SECRET, fee_rate_bp=60)
            open_account(connection, f"{self.name}U", bank_account_no=f"{self.name}A", limits=limits)
        with self.engines["bank"].begin() as connection:
            open_bank_account(connection, f"{self.name}A", balance_fen=10**12, currency="CNY")
        for name, log in self.logs.items():
            with self.deliveries[name]._engine.begin() as connection:
                begin_log(connection, self.name + name, log, next_offset=0)

    def act(self, service: str, function: Any, *given: Any, **named: Any) -> Any:
        with self.engines[service].begin() as connection:
            return function(connection, *given, **named)

    def go_round(self) -> None:
        """Payments are opened, paid in each way, refused, expired; every processor has had its events twice."""
        self.round += 1
        cards = [self._open(number) for number in range(4)]
        balance_payments = self._balance_payments()
        for number, payment_no in enumerate(cards[:3]):
            self._tell(payment_no, status="FAILED" if number == 2 else "SUCCESS")
            self._tell(payment_no, status="FAILED" if number == 2 else "SUCCESS")
        self._tell(f"{self.name}unknown{self.round}", status="SUCCESS")
        self.act("payments", expire_payments, now=NOW + timedelta(days=1))
        with self.engines["payments"].begin() as connection:
            assert find_payment(connection, f"{self.name}M", cards[3])["status"] == "EXPIRED"  # type: ignore[index]
            connection.execute(_MERCHANT, {"key": f"{self.name}M"}).one()
            connection.execute(_PAYER, {"payment_no": cards[0]}).one()
        self._bank(cards[0])
        self._process(balance_payments)

    def _open(self, number: int, method: Any = "bank_card") -> str:
        request = PaymentRequest(
            payer_no=f"{self.name}U",
            amount_fen=500,
            order_no=f"{self.name}O{self.round}-{number}-{method}",
            method=method,
        )
        for _ in range(2):
            opened = self.act(
                "payments", open_payment, f"{self.name}M", request, now=NOW, zone=ZONE, ttl=timedelta(hours=1)
            )
        return str(opened.payment_no)

    def _balance_payments(self) -> list[str]:
        numbers = [self._open(number, "balance") for number in (10, 11)]
        for payment_no in numbers:
            self.act("payments", confirm_payment, payment_no, now=NOW)
        self.act(
            "funds", deposit, f"{self.name}D{self.round}", payer_no=f"{self.name}U", amount_fen=10_000, currency="CNY",
            at=NOW,
        )  # fmt: skip
        return numbers

    def _tell(self, payment_no: str, *, status: Any) -> None:
        notification = BankNotification(
            transaction_no=f"B{payment_no}", payment_no=payment_no, amount_fen=500, currency="CNY", status=status,
            reason="no" if status == "FAILED" else None,
        )  # fmt: skip
        self.act(
            "payments", receive_notification, webhook_id=f"w{payment_no}", signed_at=NOW, now=NOW,
            body=msgspec.json.encode(notification),
        )  # fmt: skip

    def _bank(self, payment_no: str) -> None:
        link = PaymentLink(
            payment_no=payment_no, account_no=f"{self.name}A", amount_fen=500, currency="CNY", expires_at=10**10
        )
        for _ in range(2):
            self.act("bank", execute_transaction, link, now=NOW)

    def _process(self, balance_payments: list[str]) -> None:
        prefix = f"{self.name}{self.round}-"
        numbers = range(1, 13)
        ledger: list[Event] = [settled(prefix=prefix, number=number) for number in numbers]
        booked: list[Event] = [
            suspense(payment_no=f"{prefix}S", bank_transaction_no=f"{prefix}S"),
            deposited(deposit_no=f"{prefix}D"),
        ]
        requests: list[Event] = [
            balance_requested(payment_no=f"{prefix}R{number}", payer_no=f"{self.name}U", amount_fen=100)
            for number in numbers
        ]
        answers: list[Event] = [balance_paid(payment_no=payment_no, amount_fen=500) for payment_no in balance_payments]
        self._deliver("accounting", [*ledger, *booked])
        self._deliver("funds", [*ledger, *requests])
        self._deliver("points", ledger)
        self._deliver("notification", [*ledger, failed(payment_no=f"{prefix}F")])
        self._deliver("settlement", answers)
        executed = [
            bank_executed(transaction_no=f"{prefix}T{number}", payment_no=f"{prefix}T{number}") for number in numbers
        ]
        self._deliver("bank_notification", executed)  # type: ignore[arg-type]

    def _deliver(self, name: str, events: list[Event]) -> None:
        """The events, all but the last twice; and one that cannot be read, parked with a later one of its key, retried and skipped."""
        delivery, log, begin = self.deliveries[name], self.logs[name], self.offsets[name]
        poison, behind = record_of(0, events[0], value=b"{}"), record_of(0, events[0])
        first = [record_of(0, event) for event in events]
        records = [*first[:-1], *map(copy, first[:-1]), first[-1], poison, behind]
        for number, record in enumerate(records):
            record.offset = begin + number
        end = self.offsets[name] = begin + len(records)
        halves = [records[: len(events) - 1], records[len(events) - 1 :]]
        for half in halves:
            slice_ = Slice(log=log, start=half[0].offset, end=half[-1].offset + 1, messages=half)
            [outcome] = delivery.deliver([slice_]).values()
            assert isinstance(outcome, Delivered), outcome
        engine, consumer = delivery._engine, delivery.consumer
        retry_key(engine, delivery, events[0].key.encode(), Act(action=Action.RETRY, actor="test"))
        with engine.begin() as connection:
            parked = (
                connection.execute(text("SELECT id FROM parked WHERE consumer = :c"), {"c": consumer}).scalars().all()
            )
        assert len(parked) == 2
        for number in parked:
            skip(engine, consumer, number, Act(action=Action.SKIP, actor="test", reason="test"))
        settle_lot(engine, consumer)
        with engine.begin() as connection:
            assert positions(connection, consumer, [log])[log][0] == end
            note_mirrored(connection, consumer, {log: end})


_SCANS = text("""
    SELECT schemaname || '.' || regexp_replace(relname, '_\\d{8}$', '') AS name, sum(seq_scan)::bigint AS scans,
           sum(coalesce(idx_tup_fetch, 0))::bigint AS fetched
    FROM pg_stat_user_tables WHERE schemaname = ANY(:services) GROUP BY 1""")


class Counted:
    """PostgreSQL's count of what a round scans and fetches, by table."""

    def __init__(self, settings: Settings, house: House) -> None:
        self.owner, self.house = engine_of(settings, "owner"), house

    def _read(self) -> dict[str, tuple[int, int]]:
        for engine in self.house.engines.values():
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_stat_force_next_flush()"))
        with self.owner.connect() as connection:
            rows = connection.execute(_SCANS, {"services": list(SERVICES)})
            return {row.name: (row.scans, row.fetched) for row in rows}

    def rounds(self, count: int) -> dict[str, str]:
        """Return the tables that were scanned, or fetched from more than a round can need."""
        before = self._read()
        for _ in range(count):
            self.house.go_round()
        after = self._read()
        costly = {}
        for name, (scans, fetched) in after.items():
            scanned, read = scans - before[name][0], (fetched - before[name][1]) // count
            if scanned or read > FETCHED_MAX:
                costly[name] = f"{scanned} scans in {count} rounds, {read} rows fetched in each"
        return costly


_COLUMNS = text("""
    SELECT c.relname AS table, array_agg(quote_ident(a.attname) ORDER BY a.attnum) AS names,
           array_agg(CASE WHEN a.attname IN ('kind', 'queue') OR NOT EXISTS (
                            SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND a.attnum = ANY(i.indkey))
                          THEN quote_ident(a.attname)
                          WHEN t.typname = 'text' THEN quote_ident(a.attname) || ' || ''-'' || number'
                          WHEN t.typname = 'uuid' THEN 'uuidv7()'
                          WHEN t.typname = 'int8' THEN quote_ident(a.attname) || ' + 1000000 + number'
                          ELSE quote_ident(a.attname) END ORDER BY a.attnum) AS made
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
    WHERE c.relnamespace = CAST(:service AS regnamespace) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND a.attnum > 0 AND NOT a.attisdropped AND c.relname NOT IN ('chart_of_accounts', 'channel', 'notify_queue')
    GROUP BY c.relname""")


def grow(settings: Settings) -> None:
    """Every table that has a row has thousands like it, and nobody has analysed it."""
    with engine_of(settings, "owner").begin() as owner:
        owner.execute(text("SET LOCAL session_replication_role = replica"))
        for service in SERVICES:
            for row in owner.execute(_COLUMNS, {"service": service}).all():
                owner.exec_driver_sql(f"""
                    INSERT INTO {service}."{row.table}" ({", ".join(row.names)}) OVERRIDING SYSTEM VALUE
                    SELECT {", ".join(row.made)} FROM (SELECT * FROM {service}."{row.table}" LIMIT 1) AS sample,
                         generate_series(1, {ROWS}) AS number ON CONFLICT DO NOTHING""")


MODES = ("auto", "force_generic_plan", "force_custom_plan")


def test_nothing_that_services_do_scans_a_table_whatever_the_planner_knows_of_it(new_system: Settings) -> None:
    """Sessions stay: what they have planned on empty tables they use on large ones. An eleventh round is a generic plan's turn."""
    houses = {mode: House(new_system, mode) for mode in MODES}
    counts = {mode: Counted(new_system, house) for mode, house in houses.items()}
    costly: dict[str, dict[str, str]] = {}
    for mode, counted in counts.items():
        costly[f"new, {mode}"] = counted.rounds(11 if mode == "auto" else 2)
    grow(new_system)
    for mode, counted in counts.items():
        costly[f"grown, {mode}"] = counted.rounds(2)
    with engine_of(new_system, "owner").connect().execution_options(isolation_level="AUTOCOMMIT") as owner:
        owner.execute(text("ANALYZE"))
    for mode, counted in counts.items():
        costly[f"analysed, {mode}"] = counted.rounds(2)
    with engine_of(new_system, "owner").connect() as owner:
        assert owner.execute(text("SELECT count(*) FROM accounting.voucher")).scalar_one() > ROWS
        assert owner.execute(text("SELECT count(*) FROM payments.payment")).scalar_one() > ROWS
    for house in houses.values():
        for engine in house.engines.values():
            engine.dispose()
    assert {state: tables for state, tables in costly.items() if tables} == {}
