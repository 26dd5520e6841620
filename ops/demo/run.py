"""The main job: payments through the real services, all effects awaited, and the proof."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any

import uvloop
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from ops.demo.driver import Driver, Sink, cast, enrol, intents
from ops.demo.journal import JournalWriter, read_journal
from ops.demo.latency import latencies_ms, percentile
from ops.demo.proof import Proof, prove
from ops.stack.state import StackFolder
from outbox.clock import utc_now
from outbox.database import driver_url
from outbox.settings import READER, Settings

STILL_S = 60.0
"""If nothing moves for this long, waiting is over and the proof says what is missing."""
POLL_S = 0.1

Watch = Callable[[str, int, int], None]
"""Called with a stage, how many of its orders are done, and how many there are."""


def run_demo(
    settings: Settings,
    folder: StackFolder,
    *,
    orders: int,
    seed: int,
    rate: float | None,
    patience_s: float = STILL_S,
    watch: Watch,
) -> tuple[Proof, dict[str, Any]]:
    """Every order is driven and its effects are in, or nothing moved for `patience_s`; returns the proof and the figures."""
    return uvloop.run(_run(settings, folder, orders=orders, seed=seed, rate=rate, patience_s=patience_s, watch=watch))


async def _run(
    settings: Settings,
    folder: StackFolder,
    *,
    orders: int,
    seed: int,
    rate: float | None,
    patience_s: float,
    watch: Watch,
) -> tuple[Proof, dict[str, Any]]:
    begun = utc_now()
    name = f"D{begun:%y%m%d%H%M%S%f}"
    run = cast(name, seed)
    wanted = intents(run, orders, seed)
    path = folder.path / "journals" / f"{name}.jsonl"
    journal = JournalWriter(path)
    journal.write(*run.merchants, *run.payers, *run.poor)
    sink = Sink(run.secrets)
    paid = 0

    def one_paid() -> None:
        nonlocal paid
        paid += 1
        watch("paid", paid, orders)

    async with sink.listening() as sink_url:
        await asyncio.to_thread(enrol, settings, run, sink_url)
        driver = Driver(settings, run, journal, one_paid)
        started = time.monotonic()
        await driver.drive(wanted, rate=rate)
        journal.close()
        await _settle_down(settings, run.name, orders, sink, watch, patience_s)
        seconds = time.monotonic() - started
    proof = await asyncio.to_thread(prove, settings, read_journal(path), delivered=len(sink.orders))
    figures = await asyncio.to_thread(_figures, settings, begun, seconds, driver.starts, proof)
    return proof, figures


async def _settle_down(settings: Settings, run: str, orders: int, sink: Sink, watch: Watch, patience_s: float) -> None:
    """Every order is final with its effects in, or nothing has moved for so long: the proof then says what is missing."""
    seen: tuple[int, ...] = ()
    moved = time.monotonic()
    engine = create_engine(driver_url(settings.dsn_of(READER)), pool_size=1)
    while time.monotonic() - moved < patience_s:
        try:
            counts = await asyncio.to_thread(_counts, engine, run)
        except DBAPIError:  # PostgreSQL is away: a fault drill, it comes back
            await asyncio.sleep(POLL_S)
            continue
        final, settled = counts[0], counts[1]
        watch("settled", final, orders)
        effects = min(counts[2:5], default=0)
        watch("effects", effects + (final - settled), orders)
        watch("notified", len(sink.orders), orders)
        # A marked record and no effect missing; the sink may hear of one before the sender has marked it.
        if final == orders and all(count >= settled for count in counts[2:5]) and counts[5] >= final:
            break
        now = (*counts, len(sink.orders))
        if now != seen:
            seen, moved = now, time.monotonic()
        await asyncio.sleep(POLL_S)
    engine.dispose()


def _counts(engine: Engine, run: str) -> tuple[int, ...]:
    statements = (
        "SELECT count(*) FROM payments.payment WHERE merchant_no LIKE :like AND status IN ('SETTLED', 'FAILED')",
        "SELECT count(*) FROM payments.payment WHERE merchant_no LIKE :like AND status = 'SETTLED'",
        "SELECT count(*) FROM funds.entry WHERE account_no LIKE :like",
        "SELECT count(*) FROM points.entry WHERE account_no LIKE :like",
        "SELECT count(*) FROM accounting.entry WHERE account LIKE 'merchant_payable:' || :like",
        "SELECT count(*) FROM notification.notify_record WHERE merchant_no LIKE :like AND status = 'SUCCESS'",
    )
    with engine.connect() as connection:
        return tuple(connection.execute(text(statement), {"like": f"{run}-%"}).scalar_one() for statement in statements)


def _figures(settings: Settings, begun: datetime, seconds: float, starts: list[float], proof: Proof) -> dict[str, Any]:
    measured = latencies_ms(settings, since=begun)
    span_s = max(starts) - min(starts) if len(starts) > 1 else 0.0
    return {
        "seconds": round(seconds, 2),
        "events_per_second": round((proof.settled + proof.failed) / seconds, 1) if seconds else 0.0,
        "rate_achieved": round((len(starts) - 1) / span_s, 1) if span_s else 0.0,
        "latency_ms": {
            name: {"p50": round(percentile(values, 0.50), 1), "p99": round(percentile(values, 0.99), 1)}
            for name, values in measured.items()
        },
    }


def as_json(proof: Proof, figures: dict[str, Any]) -> dict[str, Any]:
    """Return proof and figures as one object; `findings` last."""
    content = asdict(proof)
    findings = content.pop("findings")
    return {**content, **figures, "findings": findings}
