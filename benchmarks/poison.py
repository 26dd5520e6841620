"""The same backlog delivered with and without 1 % poison: what the other keys keep of their throughput."""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine, text

from benchmarks.machine import result, target
from consumers.accounting.agent import PROCESSOR
from consumers.delivery import PARKED_KEYS_MAX, Delivered, Delivery, Record, Slice
from ops.stack.control import down, up
from ops.stack.state import StackFolder
from outbox.clock import first_id_at, utc_now
from outbox.database import engine_for
from outbox.inbox import Log, begin_log
from outbox.parking import Held
from schemas.codec import CORRELATION, ID, TYPE, VERSION, encode
from schemas.events import PaymentSettled

EVENTS = 20_000
PARTITIONS = 3
BATCH = 500
POISON_EVERY = 100
RUNS = 5
RATIO = 0.95

KINDS = ("none", "rejected", "unreadable")
"""A rejected event fails in the database, in its last statement: the dearest kind. An unreadable one never gets there."""


def run() -> dict[str, Any]:
    """Deliver 20,000 events of three partitions, without poison and with 1 % of either kind, in turn, five times each."""
    folder = StackFolder(name=f"bench-{os.getpid()}")
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    try:
        up(folder, infrastructure=True, with_parent=True)
        engine = engine_for(folder.settings().dsn_of(PROCESSOR.service), name="bench poison", pool_size=2)
        for number in range(RUNS + 1):
            for kind in KINDS:
                rate = _deliver(engine, kind)
                if number:  # the first turn warms up
                    rates[kind].append(rate)
        engine.dispose()
    finally:
        down(folder, wipe=True)
    medians = {kind: median(found) for kind, found in rates.items()}
    return result(
        "poison",
        [target(f"{kind}_good_events_per_second", medians[kind]) for kind in KINDS]
        + [
            target(
                f"{kind}_ratio", median(a / b for a, b in zip(rates[kind], rates["none"], strict=True)), at_least=RATIO
            )
            for kind in KINDS[1:]
        ],
        events=EVENTS,
        runs={kind: [round(rate) for rate in found] for kind, found in rates.items()},
    )


def _deliver(engine: Engine, kind: str) -> float:
    """Return the good events a second of a backlog of its own."""
    prefix = f"b{uuid4().hex[:8]}-"
    delivery = Delivery(PROCESSOR, engine, consumer=prefix, clock=utc_now)
    logs = [Log(cluster_id="bench", topic=prefix, topic_id=prefix, partition=number) for number in range(PARTITIONS)]
    with engine.begin() as connection:
        for log in logs:
            begin_log(connection, prefix, log, next_offset=0)
    backlog = [_records(prefix, log, kind) for log in logs]
    begun = time.perf_counter()
    for first in range(0, len(backlog[0]), BATCH):
        batch = [records[first : first + BATCH] for records in backlog]
        slices = [
            Slice(log=log, start=first, end=first + len(records), records=records)
            for log, records in zip(logs, batch, strict=True)
        ]
        while slices:  # what is braked comes again
            outcomes = delivery.deliver(slices)
            slices = [one for one in slices if not isinstance(outcomes[one.log], Delivered)]
    spent_s = time.perf_counter() - begun
    poison = 0 if kind == "none" else sum(_is_poison(record.offset) for records in backlog for record in records)
    good = sum(map(len, backlog)) - poison
    with engine.connect() as connection:
        parked = connection.execute(text("SELECT count(*) FROM parked WHERE consumer = :c"), {"c": prefix}).scalar_one()
        posted = connection.execute(
            text("SELECT count(*) FROM voucher WHERE business_no LIKE :like"), {"like": f"{prefix}%"}
        ).scalar_one()
    if (parked, posted) != (poison, good):
        raise AssertionError(f"{parked} parked of {poison}, {posted} posted of {good}")
    return good / spent_s


def _records(prefix: str, log: Log, kind: str) -> list[Record]:
    """Return a partition's backlog; its poison comes on a few keys of its own, evenly."""
    count, keys = EVENTS // PARTITIONS, PARKED_KEYS_MAX // PARTITIONS
    records: list[Record] = []
    for number in range(count):
        name = f"{prefix}{log.partition}-{number}"
        event = PaymentSettled(
            payment_no=name, order_no=name, merchant_no=f"{prefix}M{number % 100}", payer_no=f"{prefix}U{number % 1000}",
            amount_fen=10_000, currency="CNY", fee_fen=60, fee_rule="rate 60 bp", points=100, bank_transaction_no=name,
            settled_at=utc_now())  # fmt: skip
        value = b""
        if kind != "none" and _is_poison(number):
            name = f"{prefix}{log.partition}-poison-{number // POISON_EVERY % keys}"
            event = _rejected(event, name)
            value = b"{}" if kind == "unreadable" else b""
        value = value or encode(event).encode()
        records.append(Held(id=0, log=log, offset=number, key=event.key.encode(), headers=_headers(event), value=value))
    return records


def _is_poison(number: int) -> bool:
    return number % POISON_EVERY == POISON_EVERY // 2


def _rejected(event: PaymentSettled, key: str) -> PaymentSettled:
    """Return an event of the key whose fee is above its amount: the merchant's entry would be negative."""
    changed = {name: getattr(event, name) for name in event.__struct_fields__}
    return PaymentSettled(**changed | {"payment_no": key, "amount_fen": 100, "fee_fen": 500})


def _headers(event: PaymentSettled) -> list[tuple[str, bytes | None]]:
    random = first_id_at(utc_now()).int | 7 << 76 | 2 << 62 | uuid4().int & (1 << 62) - 1
    return [(ID, str(UUID(int=random)).encode()), (TYPE, event.type.encode()), (VERSION, b"1"), (CORRELATION, b"bench")]
