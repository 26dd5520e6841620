"""A lost slot is repaired while a million published rows are kept, and how long payments recorded meanwhile wait."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, create_engine, text

from benchmarks.machine import result, target
from connect.client import ConnectClient
from ops.kafka.reader import bounds, wait_published
from ops.pipeline.repair import Repair, plan_repair, repair_slot
from ops.stack.control import down, up
from ops.stack.state import StackFolder
from outbox.clock import utc_now
from outbox.database import driver_url
from outbox.migrate import owner_engine
from outbox.partitions import make_days
from outbox.record import Outgoing, record
from outbox.settings import SERVICES, Settings
from schemas.codec import encode
from schemas.events import PaymentFailed
from schemas.topics import PAYMENT_ORDER

ROWS = 1_000_000
AT_ONCE = 50_000
PUBLISHED_S = 1_800.0
FLOWING_S = 60.0
LIVE_S = 0.25

# Recorded an hour ago, as far as their ids tell: long before the margin that a repair looks back.
_KEPT = text("""
    INSERT INTO outbox (id, topic, key, version, type, correlation, payload)
    SELECT uuidv7(interval '-1 hour'), :topic, 'kept-' || number, 1, :type, 'kept-' || number, :payload
    FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS number""")


def run() -> dict[str, Any]:
    """Publish 1,000,000 rows, lose the slot, and repair it while events are recorded; report how long each of them waited."""
    folder = StackFolder(name=f"bench-{os.getpid()}")
    try:
        up(folder, infrastructure=True, with_parent=True)
        settings = folder.settings()
        engine = create_engine(driver_url(settings.dsn_of("payments")))
        publish_s = _publish_kept(settings, engine)
        _lose_slot(settings)
        recorded = {_record_one(engine): time.time()}
        begun = utc_now()
        with ThreadPoolExecutor(1) as pool:
            repairing = pool.submit(_repair, settings)
            while not repairing.done():  # payments go on
                recorded[_record_one(engine)] = time.time()
                time.sleep(LIVE_S)
            plan, planned_s, repaired_s = repairing.result()
        published = wait_published(settings, [PAYMENT_ORDER.name], recorded, since=begun, within_s=PUBLISHED_S)
        waited = [published[identity] - at for identity, at in recorded.items()]
        engine.dispose()
    finally:
        down(folder, wipe=True)
    return result(
        "repair",
        [
            target("kept_rows", ROWS),
            target("published_before_s", publish_s),
            target("emitted_again_rows", plan.rows),
            target("plan_s", planned_s),
            target("longest_wait_of_a_live_event_s", max(waited), at_most=FLOWING_S),
            target("whole_repair_s", repaired_s),
        ],
        live_events=len(recorded),
        missing=len(plan.missing),
    )


def _publish_kept(settings: Settings, engine: Engine) -> float:
    owner, yesterday = owner_engine(settings), utc_now().date() - timedelta(days=1)
    make_days(owner, SERVICES, today=yesterday)
    begun = time.monotonic()
    common = {"topic": PAYMENT_ORDER.name, "type": PaymentFailed.type, "payload": encode(_event(0))}
    for first in range(0, ROWS, AT_ONCE):
        with engine.begin() as connection:
            connection.execute(_KEPT, {**common, "first": first, "last": first + AT_ONCE - 1})
    while sum(high - low for low, high in bounds(settings, [PAYMENT_ORDER.name]).values()) < ROWS:
        if time.monotonic() - begun > PUBLISHED_S:
            raise TimeoutError(f"{ROWS} rows are not published after {PUBLISHED_S:.0f} s")
        time.sleep(0.5)
    return time.monotonic() - begun


def _lose_slot(settings: Settings) -> None:
    client = ConnectClient(settings.connect_url)
    client.stop(settings.connector)
    client.wait_stopped(settings.connector)
    with owner_engine(settings).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT pg_drop_replication_slot(:slot)"), {"slot": settings.slot})


def _record_one(engine: Engine) -> UUID:
    event = _event(1)
    with engine.begin() as connection:
        [identity] = record(connection, [Outgoing(event=event, version=1, correlation=event.order_no)])
    return identity


def _repair(settings: Settings) -> tuple[Repair, float, float]:
    """Return the plan, and the seconds until it was made and carried out."""
    begun = time.monotonic()
    plan = plan_repair(settings, now=utc_now())
    planned_s = time.monotonic() - begun
    repair_slot(settings, plan, say=lambda _: None)
    return plan, planned_s, time.monotonic() - begun


def _event(number: int) -> PaymentFailed:
    return PaymentFailed(
        payment_no=f"repair-{number}",
        order_no=f"repair-{number}",
        merchant_no="repair-M",
        payer_no="repair-U",
        amount_fen=10_000,
        currency="CNY",
        reason="insufficient balance",
        failed_at=utc_now(),
    )
