"""The ledger under its worst load: set by set beside row by row, one to three workers, and payments settled at a steady 200 a second."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from statistics import median
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine, create_engine, text

from benchmarks.demo import warm_stack
from benchmarks.machine import result, target
from consumers.accounting.agent import PROCESSOR
from consumers.accounting.entries import voucher_of
from consumers.accounting.ledger import post
from consumers.delivery.loop import Delivered, Delivery
from consumers.delivery.messages import Slice
from consumers.runtime.worker import SWITCH_S
from ops.demo.latency import latencies_ms, percentile
from ops.ledger.integrity import ledger_problems
from outbox.clock import first_id_at, utc_now
from outbox.database import driver_url, engine_for
from outbox.inbox import Log, begin_log
from outbox.settings import READER, Settings
from producers.payments.orders import (
    Limits,
    OpenedPayment,
    PaymentRequest,
    open_account,
    open_payment,
    register_merchant,
)
from producers.payments.settlement import locked_order, settle_payment
from schemas.bank import BankNotification
from schemas.codec import Envelope, encode
from schemas.events import PaymentSettled

ROUNDS = 5
BATCH = 500
SET_EVENTS = 10_000
ROW_EVENTS = 500
WORKER_EVENTS = 24_000
PARTITIONS = 6
MERCHANTS_MANY = 10_000
RATE = 200.0
PAYMENTS = 6_000
ACHIEVED_MIN = 0.98
THREADS = 8
SETTLED_S = 60.0
SECRET = "whsec_" + "YmVuY2htYXJr" * 4

_VOUCHER = text("""
    INSERT INTO voucher (business_no, kind, event_id, currency, occurred_at, lines)
    VALUES (:business_no, :kind, :id, :currency, :occurred_at, :lines) RETURNING voucher_no""")

_ENTRY = text("""
    INSERT INTO entry (voucher_no, line, account, side, amount_fen) VALUES (:voucher, :line, :account, :side, :amount)""")

_BALANCE = text("""
    INSERT INTO balance (account, currency, stripe, debit_fen, credit_fen) VALUES (:account, :currency, 0, :debit, :credit)
    ON CONFLICT (account, currency, stripe) DO UPDATE
    SET debit_fen = balance.debit_fen + excluded.debit_fen, credit_fen = balance.credit_fen + excluded.credit_fen""")


@dataclass(slots=True)
class Fetched:
    """A record as the Kafka client would hand it over."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


def run() -> dict[str, Any]:
    """Measure on a whole stack of the benchmark's own, whose own workers are idle until the last part."""
    with warm_stack() as folder:
        settings = folder.settings()
        rates = _sets_and_rows(settings)
        workers = _workers(settings)
        latency = _settled_at_rate(settings)
        with create_engine(driver_url(settings.dsn_of(READER))).connect() as connection:
            holds = not ledger_problems(connection)
    medians = {name: median(values) for name, values in rates.items()}
    figures = [
        target("set_to_row_by_row", medians["set"] / medians["row"], at_least=15),
        target("set_to_row_by_row_500_in_a_transaction", medians["set"] / medians["loop"]),
        *(target(f"{name}_events_per_second", value) for name, value in medians.items()),
    ]
    for merchants in ("one", "many"):
        alone = workers[merchants, 1]
        for count in (1, 2, 3):
            rate = workers[merchants, count]
            figures.append(target(f"{count}_workers_{merchants}_merchants_events_per_second", rate))
            if count > 1:
                figures.append(target(f"{count}_workers_to_one_{merchants}_merchants", rate / alone, at_least=1))
    figures += [
        target("deadlocks", workers["deadlocks", 0], at_most=0),
        target("commit_to_ledger_p50_ms", latency["p50"], at_most=50),
        target("commit_to_ledger_p99_ms", latency["p99"], at_most=200),
        target("rate_achieved", latency["rate"], at_least=RATE * ACHIEVED_MIN),
    ]
    return result(
        "ledger",
        figures,
        valid=latency["rate"] >= RATE * ACHIEVED_MIN,
        holds=holds,
        runs={name: [round(value) for value in values] for name, values in rates.items()},
    )


# ---- set by set, row by row ------------------------------------------------------------------------------------


def _sets_and_rows(settings: Settings) -> dict[str, list[float]]:
    """Return events a second of one hot merchant: set by set, and row by row with an event, or 500, in a transaction.

    All three are the whole delivery: progress, inbox, voucher, entries, balances. Row by row, an event a transaction, is what a
    consumer does that commits each event with its effects; with 500 in a transaction only the handler's statements differ.
    """
    engine = engine_for(settings.dsn_of(PROCESSOR.service), name="bench")
    rates: dict[str, list[float]] = {"set": [], "row": [], "loop": []}
    for _ in range(ROUNDS):
        rates["set"].append(_rate(engine, SET_EVENTS, batch=BATCH, handle=post))
        rates["row"].append(_rate(engine, ROW_EVENTS, batch=1, handle=_row_by_row))
        rates["loop"].append(_rate(engine, ROW_EVENTS, batch=BATCH, handle=_row_by_row))
    engine.dispose()
    return rates


def _row_by_row(connection: Connection, events: Sequence[Envelope]) -> None:
    """Post as a consumer does that takes an event at a time: a statement for each row."""
    for event in events:
        voucher = voucher_of(event)
        assert voucher is not None
        about = {
            "business_no": voucher.business_no,
            "kind": voucher.kind,
            "id": voucher.event_id,
            "currency": voucher.currency,
            "occurred_at": voucher.occurred_at,
            "lines": len(voucher.entries),
        }
        number = connection.execute(_VOUCHER, about).scalar_one()
        for line, entry in enumerate(voucher.entries, start=1):
            row = {"voucher": number, "line": line, "account": entry.account, "side": entry.side}
            connection.execute(_ENTRY, {**row, "amount": entry.amount_fen})
        for entry in voucher.entries:
            debit, credit = (entry.amount_fen, 0) if entry.side == "D" else (0, entry.amount_fen)
            moved = {"account": entry.account, "currency": voucher.currency, "debit": debit, "credit": credit}
            connection.execute(_BALANCE, moved)


def _rate(engine: Engine, count: int, *, batch: int, handle: Callable[..., None]) -> float:
    stretch = _Stretch(engine, merchants=1, partitions=1)
    slices = list(stretch.slices(0, count, batch))
    processor = replace(PROCESSOR, handle=handle)
    delivery = Delivery(processor, engine, consumer=stretch.name, clock=utc_now)
    begun = time.perf_counter()
    _deliver(delivery, slices)
    return count / (time.perf_counter() - begun)


def _deliver(delivery: Delivery, slices: Sequence[Slice]) -> None:
    for part in slices:
        [outcome] = delivery.deliver([part]).values()
        if not isinstance(outcome, Delivered) or outcome.parked:
            raise AssertionError(outcome)


class _Stretch:
    """A consumer with logs and payments of its own."""

    def __init__(self, engine: Engine, *, merchants: int, partitions: int, name: str = "") -> None:
        self.name = name or f"bench{uuid4().hex[:8]}"
        self._merchants = merchants
        self._first = first_id_at(utc_now()).int | 7 << 76 | 2 << 62 | uuid4().int & (1 << 40) - 1 << 20
        self.logs = [
            Log(cluster_id="bench", topic=self.name, topic_id=self.name, partition=number)
            for number in range(partitions)
        ]
        with engine.begin() as connection:
            for log in self.logs:
                begin_log(connection, self.name, log, next_offset=0)

    def slices(self, partition: int, count: int, batch: int) -> Iterator[Slice]:
        """Give a partition's records, so many in all, in slices."""
        for start in range(0, count, batch):
            end = min(start + batch, count)
            records = [self._record(partition, offset) for offset in range(start, end)]
            yield Slice(log=self.logs[partition], start=start, end=end, messages=records)

    def _record(self, partition: int, offset: int) -> Fetched:
        number = partition * (WORKER_EVENTS // PARTITIONS) + offset
        event = PaymentSettled(
            payment_no=f"{self.name}-{number}",
            order_no=f"{self.name}-{number}",
            merchant_no=f"{self.name}-M{number % self._merchants}",
            payer_no=f"{self.name}-U",
            amount_fen=10_000,
            currency="CNY",
            fee_fen=60,
            fee_rule="rate 60 bp",
            points=100,
            bank_transaction_no=f"{self.name}-{number}",
            settled_at=utc_now(),
        )
        headers = {
            "ce_id": str(UUID(int=self._first + number)),
            "ce_type": event.type,
            "aggregate_version": "1",
            "correlation": event.order_no,
        }
        return Fetched(
            offset, event.key.encode(), encode(event).encode(), [(k, v.encode()) for k, v in headers.items()]
        )


# ---- workers beside each other ---------------------------------------------------------------------------------


def _workers(settings: Settings) -> dict[tuple[str, int], float]:
    """Return events a second of one to three processes that share the partitions of one topic; and the deadlocks they had."""
    rates: dict[tuple[str, int], list[float]] = {}
    before = _deadlocks(settings)
    for _ in range(ROUNDS):
        for merchants, number in (("one", 1), ("many", MERCHANTS_MANY)):
            for count in (1, 2, 3):
                rates.setdefault((merchants, count), []).append(_together(settings, count, number))
    return {key: median(values) for key, values in rates.items()} | {("deadlocks", 0): _deadlocks(settings) - before}


def _together(settings: Settings, count: int, merchants: int) -> float:
    context = multiprocessing.get_context("spawn")
    name = f"bench{uuid4().hex[:8]}"
    start, end = context.Barrier(count + 1), context.Barrier(count + 1)
    shares = [list(range(PARTITIONS))[worker::count] for worker in range(count)]
    dsn = settings.dsn_of(PROCESSOR.service)
    processes = [
        context.Process(target=_work, args=(dsn, name, share, merchants, start, end), daemon=True) for share in shares
    ]
    for process in processes:
        process.start()
    start.wait(120)
    begun = time.perf_counter()
    end.wait(300)
    seconds = time.perf_counter() - begun
    for process in processes:
        process.join(30)
    return WORKER_EVENTS / seconds


def _work(dsn: str, name: str, partitions: Sequence[int], merchants: int, start: Barrier, end: Barrier) -> None:
    """Deliver some partitions' events between the two barriers; a failure breaks them, and so ends the benchmark."""
    try:
        sys.setswitchinterval(SWITCH_S)
        engine = engine_for(dsn, name="bench")
        stretch = _Stretch(engine, merchants=merchants, partitions=PARTITIONS, name=name)
        each = WORKER_EVENTS // PARTITIONS
        per_partition = [list(stretch.slices(partition, each, BATCH)) for partition in partitions]
        slices = [piece for together in zip(*per_partition, strict=True) for piece in together]
        delivery = Delivery(PROCESSOR, engine, consumer=name, clock=utc_now)
        start.wait(120)
        _deliver(delivery, slices)
        end.wait(300)
    except BaseException:
        start.abort()
        end.abort()
        raise


def _deadlocks(settings: Settings) -> float:
    with create_engine(driver_url(settings.dsn_of(READER))).connect() as connection:
        statement = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        return float(connection.execute(text(statement)).scalar_one())


# ---- settled at a steady rate ----------------------------------------------------------------------------------


def _settled_at_rate(settings: Settings) -> dict[str, float]:
    """Return commit-to-ledger percentiles of payments settled at 200 a second, on the whole stack with all of its workers."""
    engine = create_engine(driver_url(settings.dsn_of("payments")), pool_size=THREADS)
    payments = _opened(engine)
    begun = utc_now()
    starts: list[float] = []

    def settle(number: int, opened: OpenedPayment) -> None:
        time.sleep(max(0.0, first + number / RATE - time.perf_counter()))
        starts.append(time.perf_counter())
        notification = BankNotification(
            transaction_no=f"B{opened.payment_no}",
            payment_no=opened.payment_no,
            amount_fen=opened.amount_fen,
            currency=opened.currency,
            status="SUCCESS",
        )
        with engine.begin() as connection:
            order = locked_order(connection, opened.payment_no)
            assert order is not None
            settle_payment(connection, order, notification, now=utc_now())

    first = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(settle, range(PAYMENTS), payments))
    measured: list[float] = []
    deadline = time.monotonic() + SETTLED_S
    while len(measured) < PAYMENTS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{PAYMENTS - len(measured)} payments are not in the ledger after {SETTLED_S:.0f} s")
        time.sleep(1)
        measured = latencies_ms(settings, since=begun)["commit_to_ledger"]
    engine.dispose()
    rate = (PAYMENTS - 1) / (max(starts) - min(starts))
    return {"p50": percentile(measured, 0.50), "p99": percentile(measured, 0.99), "rate": rate}


def _opened(engine: Engine) -> list[OpenedPayment]:
    name, now = f"bench{uuid4().hex[:8]}", utc_now()
    unlimited = Limits(single_fen=10**14, daily_fen=10**15, monthly_fen=10**15)
    with engine.begin() as connection:
        for number in range(8):
            merchant = f"{name}-M{number}"
            register_merchant(connection, merchant, api_key=merchant, secret=SECRET, fee_rate_bp=60)
        for number in range(40):
            open_account(connection, f"{name}-U{number}", bank_account_no=f"{name}-A{number}", limits=unlimited)
    opened = []
    for start in range(0, PAYMENTS, BATCH):
        with engine.begin() as connection:
            for number in range(start, min(start + BATCH, PAYMENTS)):
                request = PaymentRequest(
                    payer_no=f"{name}-U{number % 40}", amount_fen=10_000 + number, order_no=f"{name}-{number}"
                )
                merchant = f"{name}-M{number % 8}"
                opened.append(
                    open_payment(connection, merchant, request, now=now, zone=ZoneInfo("UTC"), ttl=timedelta(hours=1))
                )
    return opened
