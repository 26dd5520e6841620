"""Metrics of a processor's delivery. Counted per batch, never per event: a batch costs some microseconds."""

from __future__ import annotations

import time
from uuid import UUID

from prometheus_client import Counter, Histogram

from outbox.metrics import SECONDS

EVENTS = Counter(
    "events_processed",
    "Messages done with, by outcome: applied, superseded (older than what their key has), repeated (already applied) or parked.",
    ["consumer", "result"],
)
BATCH = Histogram(
    "delivery_batch_events",
    "Messages in a committed transaction of a processor.",
    ["consumer"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000),
)
TRANSACTION = Histogram(
    "delivery_transaction_seconds",
    "Duration of a processor's committed transactions, from the connection to the commit.",
    ["consumer"],
    buckets=SECONDS,
)
HANDLER = Histogram(
    "delivery_handler_seconds",
    "Duration of a processor's handler, inside its transaction; each call, also one that is rolled back.",
    ["consumer"],
    buckets=SECONDS,
)
LATENCY = Histogram(
    "delivery_latency_seconds",
    "From the recording of an event (its id's millisecond) to the commit of its effects; the first event of each transaction.",
    ["consumer"],
    buckets=SECONDS,
)


class DeliveryMetrics:
    """A consumer's own children of the metrics above, looked up once and not per batch."""

    def __init__(self, consumer: str) -> None:
        self.handler = HANDLER.labels(consumer)
        self._applied, self._superseded, self._repeated, self._parked = (
            EVENTS.labels(consumer, result) for result in ("applied", "superseded", "repeated", "parked")
        )
        self._batch = BATCH.labels(consumer)
        self._transaction = TRANSACTION.labels(consumer)
        self._latency = LATENCY.labels(consumer)

    def committed(
        self, *, records: int, applied: int, superseded: int, parked: int, began: float, first: UUID | None
    ) -> None:
        """A transaction that began then (monotonic seconds) is committed; `first` is the first event it has applied."""
        self._applied.inc(applied - superseded)
        self._superseded.inc(superseded)
        self._repeated.inc(records - applied - parked)
        self._parked.inc(parked)
        self._batch.observe(records)
        self._transaction.observe(time.monotonic() - began)
        if first is not None:
            self._latency.observe(max(0.0, time.time() - (first.int >> 80) / 1000))
