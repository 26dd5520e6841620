"""Pipeline-wide metrics: lag, outbox, slot, heartbeat, parking lot, ledger. Reads only, as `ops`.

Collected when scraped, in time: a source that takes too long or fails is left out and says so in `exporter_source_up`,
while the others are served. What was read a moment ago is served again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from threading import Lock
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy import Connection, text

from ops.delivery.parked import ParkedFilter, counts
from ops.ledger.reads import imbalances
from ops.pipeline.backlog import backlog
from ops.pipeline.checks import days_ahead
from ops.pipeline.health import beat_of, reader_engine, slot_of
from ops.pipeline.positions import consumer_positions, lag_ages
from outbox.clock import utc_now
from outbox.environment import Environment
from outbox.errors import Misused
from outbox.metrics import serve_metrics
from outbox.publication import PUBLISHED_TABLES, published_tables
from outbox.settings import SERVICES, Settings
from outbox.status import Condition

SCRAPE_S = 5.0
"""How long a scrape waits for its sources; Prometheus gives up after 10."""
FRESH_S = 2.0
"""For so long what was read is served again."""
STATEMENT_MS = 10_000
"""After this long PostgreSQL ends a statement of ours."""

HEARTBEAT = "connector_heartbeat_age_seconds"
SLOT_ACTIVE = "outbox_slot_active"
PUBLISHED = "outbox_publication_whole"
SLOT_RETAINED = "outbox_slot_retained_bytes"
PENDING = "outbox_pending"
OLDEST = "outbox_oldest_age_seconds"
PARKED = "parked_events"
IMBALANCE = "ledger_imbalance"
DAYS_AHEAD = "partition_days_ahead"
LAG = "kafka_consumergroup_lag"
LAG_SECONDS = "kafka_consumergroup_group_lag_seconds"
SOURCE_UP = "exporter_source_up"
SOURCE_SECONDS = "exporter_source_seconds"

DESCRIBED: dict[str, tuple[str, tuple[str, ...]]] = {
    HEARTBEAT: ("Age of the connector's last heartbeat; none before the first.", ()),
    PUBLISHED: ("Whether every outbox is in the publication; one that is not is never published, though all else looks well.", ()),
    SLOT_ACTIVE: ("Whether the connector reads the replication slot; also 0 if the slot is lost.", ()),
    SLOT_RETAINED: ("WAL that the replication slot keeps from being removed.", ()),
    PENDING: ("Rows of the outbox not confirmed as published, counted up to 100000.", ("service",)),
    OLDEST: ("Age of the oldest outbox row not confirmed as published; 0 if there is none.", ("service",)),
    PARKED: ("Events in the parking lot.", ("consumer", "cause")),
    IMBALANCE: ("Debits less credits of the ledger's balances, in the currency's minor unit; any value but 0 is wrong.", ("currency",)),
    DAYS_AHEAD: ("Days after today for which every outbox and inbox can take rows.", ()),
    LAG: ("Messages between the consumer's progress and the end of the log.", ("consumergroup", "topic", "partition")),
    LAG_SECONDS: ("Age of the oldest message that waits for the consumer; 0 if none does.", ("group", "topic", "partition")),
    SOURCE_UP: ("Whether the last scrape could read this source in time; without it, its metrics are missing.", ("source",)),
    SOURCE_SECONDS: ("How long the last reading of this source took.", ("source",)),
}  # fmt: skip

log = logging.getLogger(__name__)

Sample = tuple[str, tuple[str, ...], float]
"""A metric's name, its labels' values, and its value."""


def database_samples(connection: Connection, settings: Settings) -> Iterator[Sample]:
    """Give what PostgreSQL knows. Each statement is bounded: none reads kept events or entries."""
    now = utc_now()
    slot = slot_of(connection, settings.slot)
    yield PUBLISHED, (), float(published_tables(connection) == PUBLISHED_TABLES)
    yield SLOT_ACTIVE, (), float(slot.active and slot.wal_status != "lost")
    yield SLOT_RETAINED, (), float(slot.retained_bytes)
    if (beat_at := beat_of(connection)) is not None:
        yield HEARTBEAT, (), max(0.0, (now - beat_at).total_seconds())
    yield DAYS_AHEAD, (), float(days_ahead(connection, now.date()))
    kept = timedelta(days=settings.outbox_days + 1)
    for service in SERVICES:
        unpublished = backlog(connection, service, confirmed_lsn=slot.confirmed_lsn, kept=kept)
        yield PENDING, (service,), float(unpublished.pending)
        yield OLDEST, (service,), unpublished.oldest_age_s
    parked: Counter[tuple[str, str]] = Counter()
    for row in counts(connection, ParkedFilter()):
        parked[row.consumer, row.cause] += row.events
    for labels, events in parked.items():
        yield PARKED, labels, float(events)
    for currency, fen in imbalances(connection).items():
        yield IMBALANCE, (currency,), float(fen)


def lag_samples(settings: Settings) -> Iterator[Sample]:
    """Give how far each consumer is behind in each log."""
    positions = consumer_positions(settings)
    ages = lag_ages(settings, positions, utc_now())
    for position in positions:
        labels = (position.consumer, position.place[0], str(position.place[1]))
        yield LAG, labels, float(position.behind)
        yield LAG_SECONDS, labels, max(0.0, ages.get(position, 0.0))


@dataclass
class Source:
    """Something to be read from, and what it last gave."""

    name: str
    read: Callable[[], list[Sample]]
    reading: Future[list[Sample]] | None = None
    began: float = 0.0
    took_s: float = 0.0

    def timed(self) -> list[Sample]:
        """Return the samples; it is known how long they took."""
        began = time.monotonic()
        try:
            return self.read()
        finally:
            self.took_s = time.monotonic() - began


class Exporter:
    """Gives what the sources know, within the time of a scrape. One reading of a source at a time; safe between threads."""

    def __init__(self, sources: Sequence[Source], *, scrape_s: float = SCRAPE_S) -> None:
        self._sources = sources
        self._scrape_s = scrape_s
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(len(sources), thread_name_prefix="source")

    def describe(self) -> list[Metric]:
        """Return the metrics without samples: registering reads nothing."""
        return [GaugeMetricFamily(name, help_text, labels=labels) for name, (help_text, labels) in DESCRIBED.items()]

    def collect(self) -> list[Metric]:
        """Return the samples of what answers in time."""
        with self._lock:
            for source in self._sources:
                idle = source.reading is None or source.reading.done()
                if idle and time.monotonic() - source.began > FRESH_S:
                    source.began = time.monotonic()
                    source.reading = self._threads.submit(source.timed)
            readings = {source.name: (source, source.reading) for source in self._sources if source.reading}
        wait([reading for _, reading in readings.values()], self._scrape_s)
        families = {
            name: GaugeMetricFamily(name, help_text, labels=labels) for name, (help_text, labels) in DESCRIBED.items()
        }
        for source, reading in readings.values():
            samples = _outcome(source.name, reading)
            families[SOURCE_UP].add_metric((source.name,), float(samples is not None))
            families[SOURCE_SECONDS].add_metric((source.name,), source.took_s)
            for name, labels, value in samples or ():
                families[name].add_metric(labels, value)
        return list(families.values())


def _outcome(name: str, reading: Future[list[Sample]]) -> list[Sample] | None:
    if not reading.done():
        log.warning("source %s does not answer in time, so its metrics are left out", name)
        return None
    try:
        return reading.result()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one source, the others are served
        log.warning(
            "source %s cannot be read, so its metrics are left out: %s",
            name,
            str(getattr(error, "orig", error)).partition("\n")[0],
        )
        return None


def sources_of(settings: Settings) -> list[Source]:
    """Return what there is to read from."""
    # A row read keeps no snapshot open, and a server that was away leaves no dead connection behind.
    engine = reader_engine(settings).execution_options(isolation_level="AUTOCOMMIT")

    def database() -> list[Sample]:
        with engine.connect() as connection:
            connection.execute(text(f"SET statement_timeout = {STATEMENT_MS}"))
            return list(database_samples(connection, settings))

    return [Source("database", database), Source("lag", lambda: list(lag_samples(settings)))]


def run(settings: Settings) -> None:
    """Serve the metrics until SIGTERM or Ctrl-C. Raises Refused where no address is named for them."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    if not settings.metrics_port:
        raise Misused(
            "PAYRELAY_METRICS_PORT is not set, and serving it is all that the exporter does: set it to a port"
        )
    ending = threading.Event()

    def end(*_: Any) -> None:
        ending.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end)
    REGISTRY.register(Exporter(sources_of(settings)))
    serve_metrics(settings)
    Condition(Environment().payrelay_condition_file, "exporter").ready()
    ending.wait()
    os._exit(0)  # nothing is to be saved, and a reading that hangs must not hold up the end
