"""The same backlog delivered with and without 1 % poison: what the other keys keep of their throughput.

The brake lets 20 new keys be parked in a minute. All of them come up at the backlog's very beginning, where the search for what
fails is timed by itself; the rest of the backlog has 1 % poison, all of keys that are parked by then. From the two follows what
the other keys keep in a minute that has 20 new poison keys and 1 % poison throughout.
"""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine, text

from benchmarks.machine import result, target
from consumers.accounting.agent import PROCESSOR
from consumers.delivery.brake import PARKED_KEYS_MAX
from consumers.delivery.loop import Delivered, Delivery
from consumers.delivery.messages import Message, Slice
from ops.stack.control import down, up
from ops.stack.state import StackFolder
from outbox.clock import first_id_at, utc_now
from outbox.database import engine_for
from outbox.inbox import Log, begin_log
from outbox.parking import Held
from schemas.codec import CORRELATION, ID, TYPE, VERSION, encode
from schemas.events import PaymentSettled

EVENTS = 60_000
PARTITIONS = 3
BATCH = 500
POISON_EVERY = 100
KEYS = PARKED_KEYS_MAX // PARTITIONS * PARTITIONS
RUNS = 5
OPENING = 2 * BATCH
"""Events of each partition by which every poison key has come up."""

RATIO = 0.95

KINDS = ("none", "rejected", "unreadable")
"""A rejected event fails in the database, in its last statement: the dearest kind. An unreadable one never gets there."""


def run() -> dict[str, Any]:
    """Deliver 60,000 events of three partitions, without poison and with 1 % of either kind, in turn, five times each."""
    folder = StackFolder(name=f"bench-{os.getpid()}")
    runs: list[dict[str, tuple[float, float]]] = []
    try:
        up(folder, infrastructure=True, with_parent=True)
        engine = engine_for(folder.settings().dsn_of(PROCESSOR.service), name="bench poison", pool_size=2)
        runs += [{kind: _deliver(engine, kind) for kind in KINDS} for _ in range(RUNS + 1)]
        engine.dispose()
    finally:
        down(folder, wipe=True)
    del runs[0]  # it warms up
    figures = [target("none_events_per_second", median(figures_of["none"][1] for figures_of in runs))]
    for kind in KINDS[1:]:
        search_s = median((measured[kind][0] - measured["none"][0]) / KEYS for measured in runs)
        steady = median(measured[kind][1] / measured["none"][1] for measured in runs)
        figures += [
            target(f"{kind}_search_ms_per_key", 1000 * search_s),
            target(f"{kind}_steady_ratio", steady, at_least=RATIO),
            target(f"{kind}_minute_ratio", 1 / (1 / steady + PARKED_KEYS_MAX * search_s / 60), at_least=RATIO),
        ]
    return result("poison", figures, events=EVENTS, runs=runs)


def _deliver(engine: Engine, kind: str) -> tuple[float, float]:
    """Return the seconds that the opening of a backlog of its own took, and the good events a second after it."""
    prefix = f"b{uuid4().hex[:8]}-"
    delivery = Delivery(PROCESSOR, engine, consumer=prefix, clock=utc_now)
    logs = [Log(cluster_id="bench", topic=prefix, topic_id=prefix, partition=number) for number in range(PARTITIONS)]
    with engine.begin() as connection:
        for log in logs:
            begin_log(connection, prefix, log, next_offset=0)
    backlog = [_records(prefix, log, kind) for log in logs]
    begun = opened = time.perf_counter()
    for first in range(0, len(backlog[0]), BATCH):
        batch = [records[first : first + BATCH] for records in backlog]
        slices = [
            Slice(log=log, start=first, end=first + len(records), messages=records)
            for log, records in zip(logs, batch, strict=True)
        ]
        while slices:  # what is braked comes again
            outcomes = delivery.deliver(slices)
            slices = [part for part in slices if not isinstance(outcomes[part.log], Delivered)]
        if first < OPENING:
            opened = time.perf_counter()
    ended = time.perf_counter()
    offsets = [record.offset for records in backlog for record in records]
    good = [offset for offset in offsets if kind == "none" or not _is_poison(offset)]
    with engine.connect() as connection:
        parked = connection.execute(text("SELECT count(*) FROM parked WHERE consumer = :c"), {"c": prefix}).scalar_one()
        posted = connection.execute(
            text("SELECT count(*) FROM voucher WHERE business_no LIKE :like"), {"like": f"{prefix}%"}
        ).scalar_one()
    if (parked, posted) != (len(offsets) - len(good), len(good)):
        raise AssertionError(f"{parked} parked, {posted} posted of {len(good)}")
    return opened - begun, sum(offset >= OPENING for offset in good) / (ended - opened)


def _records(prefix: str, log: Log, kind: str) -> list[Message]:
    """Return a partition's backlog; its poison comes on a few keys of its own, evenly."""
    records: list[Message] = []
    for number in range(EVENTS // PARTITIONS):
        name = f"{prefix}{log.partition}-{number}"
        event = PaymentSettled(
            payment_no=name, order_no=name, merchant_no=f"{prefix}M{number % 100}", payer_no=f"{prefix}U{number % 1000}",
            amount_fen=10_000, currency="CNY", fee_fen=60, fee_rule="rate 60 bp", points=100, bank_transaction_no=name,
            settled_at=utc_now())  # fmt: skip
        value = b""
        if kind != "none" and _is_poison(number):
            name = f"{prefix}{log.partition}-poison-{number // POISON_EVERY % (KEYS // PARTITIONS)}"
            event = _rejected(event, name)
            value = b"{}" if kind == "unreadable" else b""
        value = value or encode(event).encode()
        records.append(
            Held(
                id=0,
                event_id=None,
                log=log,
                offset=number,
                key=event.key.encode(),
                headers=_headers(event),
                value=value,
            )
        )
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
