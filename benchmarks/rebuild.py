"""A ledger made again from its topics, beside the live worker that made it: the same records, the same handler, the same database."""

from __future__ import annotations

import os
from statistics import median
from typing import Any

from sqlalchemy import text

from benchmarks.delivery import filled, loop_rate
from benchmarks.machine import result, target
from consumers.accounting.agent import PROCESSOR
from ops.pipeline.health import reader_engine
from ops.rebuild.rebuild import Rebuilt, rebuild
from ops.stack.control import down, up
from ops.stack.state import StackFolder
from outbox.migrate import owner_engine
from outbox.settings import Settings

ROUNDS = 3
EVENTS = 200_000
TABLES = ("voucher", "entry", "balance", "inbox", "progress")


def run() -> dict[str, Any]:
    """Let a live worker post the events and rebuild what it has posted, three times in turn, on a stack of the benchmark's own."""
    folder = StackFolder(name=f"bench-{os.getpid()}")
    live: list[float] = []
    rebuilt: list[Rebuilt] = []
    try:
        up(folder, infrastructure=True, with_parent=True)
        settings = folder.settings()
        prefix = filled(settings, EVENTS)
        for _ in range(ROUNDS):
            _empty(settings)
            live.append(loop_rate(folder, "batch", "accounting", prefix, EVENTS))
            rebuilt.append(_rebuilt(settings, prefix))
    finally:
        down(folder, wipe=True)
    rates = [result.records / result.feed_s for result in rebuilt]
    return result(
        "rebuild",
        [
            target("rebuild_ratio_to_live", median(rates) / median(live), at_least=0.8),
            target("rebuild_events_per_second", median(rates)),
            target("live_events_per_second", median(live)),
            target("compare_s", median(result.compare_s for result in rebuilt)),
            target("events", EVENTS),
        ],
        holds=all(
            result.records == result.difference.compared == EVENTS and not result.difference.counts
            for result in rebuilt
        ),
        runs={"live": [round(rate) for rate in live], "rebuild": [round(rate) for rate in rates]},
    )


def _rebuilt(settings: Settings, prefix: str) -> Rebuilt:
    """Return the outcome of a rebuild of the consumer that the live worker ran under."""
    with reader_engine(settings).connect() as connection:
        consumer = connection.execute(text("SELECT DISTINCT consumer FROM accounting.progress")).scalar_one()
    own = settings.model_copy(update={"topic_prefix": prefix, "group_prefix": consumer.removesuffix(PROCESSOR.name)})
    return rebuild(own, consumer, anew=True)


def _empty(settings: Settings) -> None:
    """The live ledger holds nothing: a payment is posted once, and the next round posts the same ones."""
    with owner_engine(settings).begin() as owner:
        owner.execute(text("SET LOCAL session_replication_role = replica"))
        owner.execute(text(f"TRUNCATE {', '.join(f'accounting.{table}' for table in TABLES)}"))
