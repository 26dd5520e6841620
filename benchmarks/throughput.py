"""Payments a second through the real services and all four processors, and where the processors' time goes, stage by stage."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic
from sqlalchemy import create_engine, text

from benchmarks.demo import drive, warm_stack
from benchmarks.machine import result, target
from ops.kafka.reader import event_times
from ops.kafka.topics import admin_client
from ops.stack.state import StackFolder
from outbox.clock import first_id_at, utc_now
from outbox.database import driver_url
from outbox.record import Outgoing, record
from outbox.settings import READER, Settings
from schemas.codec import encode
from schemas.events import PaymentSettled
from schemas.topics import PAYMENT_ORDER

ORDERS = 2_000
EVENTS = 20_000
BATCH = 500


def run() -> dict[str, Any]:
    """Drive 2,000 payments as fast as they go; then record 20,000 settled payments at once and time each stage's end."""
    with warm_stack() as folder:
        proof, figures = drive(folder, orders=ORDERS, rate=None)
        stages = _backlog(folder)
    return result(
        "throughput",
        [target("payments_per_second", figures["events_per_second"])]
        + [target(f"{name}_events_per_second", value) for name, value in stages.items()],
        holds=proof.holds,
    )


def _backlog(folder: StackFolder) -> dict[str, float]:
    """Return events a second of each stage, from the first commit to the stage's last event."""
    settings, begun = folder.settings(), utc_now()
    engine = create_engine(driver_url(settings.dsn_of("payments")))
    start = time.time()
    for first in range(0, EVENTS, BATCH):
        with engine.begin() as connection:
            record(connection, [_outgoing(begun.isoformat(), number) for number in range(first, first + BATCH)])
    recorded = time.time()
    reader = create_engine(driver_url(settings.dsn_of(READER)))
    ends = dict.fromkeys(("funds", "points", "accounting", "notification"), 0.0)
    while not all(ends.values()):
        with reader.connect() as connection:
            for service in [name for name, end in ends.items() if not end]:
                applied = connection.execute(
                    text(f"SELECT count(*) FROM {service}.inbox WHERE event_id >= :since"),  # noqa: S608
                    {"since": first_id_at(begun)},
                ).scalar_one()
                if applied >= EVENTS:
                    ends[service] = time.time()
        if time.time() - start > 180:
            raise TimeoutError(f"not all events are in after 180 s: {ends}")
        time.sleep(0.1)
    published = max(at for _, at in event_times(settings, [PAYMENT_ORDER.name], since=begun))
    engine.dispose()
    reader.dispose()
    return {
        "database": EVENTS / (recorded - start),
        "debezium": EVENTS / (published - start),
        "broker": _broker_alone(settings),
        **{name: EVENTS / (end - start) for name, end in ends.items()},
    }


def _broker_alone(settings: Settings) -> float:
    """Return events a second that the broker takes of a plain producer, acknowledged by all, on a topic of the test's own."""
    admin, name = admin_client(settings), f"bench-{uuid4().hex}"
    admin.create_topics([NewTopic(name, PAYMENT_ORDER.partitions, 1)])[name].result(20)
    body = encode(_outgoing("broker", 0).event).encode()
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap, "acks": "all"})
    begun = time.monotonic()
    for number in range(EVENTS):
        producer.produce(name, key=str(number).encode(), value=body)
        producer.poll(0)
    producer.flush(60)
    seconds = time.monotonic() - begun
    admin.delete_topics([name])[name].result(20)
    return EVENTS / seconds


def _outgoing(run: str, number: int) -> Outgoing:
    event = PaymentSettled(
        payment_no=f"bench-{run}-{number}",
        order_no=f"bench-{number}",
        merchant_no=f"bench-M{number % 8}",
        payer_no=f"bench-U{number % 40}",
        amount_fen=10_000,
        currency="CNY",
        fee_fen=60,
        fee_rule="rate 60 bp",
        points=100,
        bank_transaction_no=f"bench-{run}-{number}",
        settled_at=utc_now(),
    )
    return Outgoing(event=event, version=1, correlation=event.order_no)
