"""Commit to Kafka and commit to ledger at a steady rate through the real services."""

from __future__ import annotations

from typing import Any

from benchmarks.demo import drive, warm_stack
from benchmarks.machine import result, target

RATE = 100.0
ORDERS = 6_000
ACHIEVED_MIN = 0.98
"""A run that reaches less of its rate is invalid: it measures the driver's waiting."""


def run() -> dict[str, Any]:
    """Drive 6,000 payments at 100 a second, open-loop."""
    with warm_stack() as folder:
        proof, figures = drive(folder, orders=ORDERS, rate=RATE)
    measured = figures["latency_ms"]
    return result(
        "latency",
        [
            target("commit_to_kafka_p50_ms", measured["commit_to_kafka"]["p50"], at_most=20),
            target("commit_to_kafka_p99_ms", measured["commit_to_kafka"]["p99"]),
            target("commit_to_ledger_p50_ms", measured["commit_to_ledger"]["p50"], at_most=60),
            target("commit_to_ledger_p99_ms", measured["commit_to_ledger"]["p99"]),
            target("rate_achieved", figures["rate_achieved"], at_least=RATE * ACHIEVED_MIN),
        ],
        valid=figures["rate_achieved"] >= RATE * ACHIEVED_MIN,
        holds=proof.holds,
    )
