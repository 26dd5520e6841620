"""A ledger of a test's own to rebuild: its own database on the stack's server, its own topics, and a live side fed on command."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from confluent_kafka import Producer
from pydantic import SecretStr
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from consumers.delivery.processor import Processor
from consumers.processors import PROCESSORS
from ops.delivery.outcomes import progress_of
from ops.kafka.topics import apply_topics
from ops.rebuild.feeding import Feeder, Skipped, logs_of
from ops.rebuild.rebuild import Rebuilt, rebuild
from ops.rebuild.schemas import drop_schema, find_schemas
from outbox.clock import utc_now
from outbox.database import driver_url
from outbox.errors import Unreachable
from outbox.migrate import _upgrade_patiently, owner_engine
from outbox.partitions import make_days
from outbox.settings import Settings
from schemas.codec import Envelope, encode
from schemas.events import Event
from tests.pipeline import engine_of, fresh_id
from tests.waiting import eventually

SERVICES = ("accounting", "points", "funds")


@contextmanager
def own_database(settings: Settings) -> Generator[Settings]:
    """Give settings of a database of the test's own, as this version needs it; gone afterwards."""
    name = f"rebuild_{uuid4().hex[:8]}"

    def moved(dsn: SecretStr) -> SecretStr:
        url = make_url(dsn.get_secret_value())
        return SecretStr(url.set(database=name).render_as_string(hide_password=False))

    def administer(statement: str) -> None:
        url = driver_url(settings.database_url.get_secret_value())
        with create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as server:
            server.execute(text(statement))

    administer(f"CREATE DATABASE {name}")
    own = settings.model_copy(
        update={
            "database_url": moved(settings.database_url),
            "dsn": {role: moved(dsn) for role, dsn in settings.dsn.items()},
        }
    )
    try:
        engine = owner_engine(own)
        _upgrade_patiently(engine)
        make_days(engine, SERVICES, today=utc_now().date(), days_ahead=2)
        yield own
    finally:
        administer(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def rejecting(processor: Processor, rejected: set[str]) -> Processor:
    """Return a processor whose handler rejects these keys."""

    def handle(connection: Connection, events: Sequence[Envelope]) -> None:
        if any(envelope.event.key in rejected for envelope in events):
            connection.execute(text("SELECT 1 / 0"))
        processor.handle(connection, events)

    return replace(processor, handle=handle)


@dataclass
class Shop:
    """A stretch of history: topics, one consumer, its live rows and what rebuilds them."""

    settings: Settings
    name: str = "accounting"

    def __post_init__(self) -> None:
        self.processor = PROCESSORS[self.name]
        self.consumer = self.settings.group_prefix + self.name
        apply_topics(self.settings, execute=True)
        eventually(self._has_leaders, what="leaders of the new topics")

    def _has_leaders(self) -> bool:
        with suppress(Unreachable):
            return bool(logs_of(self.settings, self.processor))
        return False

    def send(self, events: Iterable[Event], *, ids: Sequence[UUID] = (), poison: bool = False) -> list[UUID]:
        """Return the ids of the events, which are on their topics now."""
        items = [(event, ids[number] if ids else fresh_id(), poison) for number, event in enumerate(events)]
        self.produce(items)
        return [identity for _, identity, _ in items]

    def produce(self, items: Iterable[tuple[Event, UUID, bool]], producer: Producer | None = None) -> None:
        """The events are on their topics under these ids, as the connector would put them there; poison reads as none."""
        producer = producer or Producer(
            {"bootstrap.servers": self.settings.kafka_bootstrap, "linger.ms": 2, "acks": "all"}
        )
        for event, identity, poison in items:
            producer.produce(
                self.settings.topic_prefix + event.topic.name,
                key=event.key.encode(),
                value=b'{"nonsense": true}' if poison else encode(event).encode(),
                headers=[
                    ("ce_id", str(identity).encode()),
                    ("ce_type", event.type.encode()),
                    ("aggregate_version", b"1"),
                    ("correlation", event.key.encode()),
                ],
            )
            producer.poll(0)
        assert producer.flush(30) == 0

    def live(self, processor: Processor | None = None) -> int:
        """Live has taken what is on the topics, with this handler; returns how many records."""
        feeder = Feeder(
            self.settings,
            processor or self.processor,
            self.consumer,
            self.processor.service,
            skipped=Skipped(count=0, places=()),
            progress=lambda _done, _total: None,
        )
        try:
            logs = logs_of(self.settings, self.processor)
            feeder.begin(dict.fromkeys(logs, 0))
            with feeder.engine.connect() as connection:
                begin = progress_of(connection, self.processor.service, self.consumer)
            feeder.feed(begin, {log: span.stop for log, span in logs.items()})
            return feeder.records
        finally:
            feeder.engine.dispose()

    @contextmanager
    def following(self) -> Generator[list[int]]:
        """Live takes what comes, beside the caller, until the end of what is there then; gives how many records at a time."""
        delivered: list[int] = []
        stop = threading.Event()

        def follow() -> None:
            while not stop.is_set():
                delivered.append(self.live())
            delivered.append(self.live())

        with ThreadPoolExecutor(1) as pool:
            follower = pool.submit(follow)
            try:
                yield delivered
            finally:
                stop.set()
                follower.result()

    def rebuild(self, processor: Processor | None = None, **how: Any) -> Rebuilt:
        return rebuild(self.settings, self.consumer, processor=processor or self.processor, **how)

    def owner(self) -> Any:
        return engine_of(self.settings, "owner").begin()

    @contextmanager
    def tampering(self) -> Generator[Connection]:
        """Give the owner's connection, with no trigger in the way."""
        with self.owner() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            yield connection

    def rows(self, statement: str, role: str = "ops", **parameters: Any) -> list[Any]:
        with engine_of(self.settings, role).connect() as connection:
            return list(connection.execute(text(statement), {"consumer": self.consumer, **parameters}))

    def wipe(self) -> None:
        """The live rows of all services, and everything beside them, are gone."""
        tables = {
            "accounting": ("voucher", "entry", "balance"),
            "points": ("account", "entry"),
            "payments": ("payment", "suspense"),
            "funds": ("account", "entry", "balance_payment", "deposit", "outbox"),
        }
        with self.tampering() as connection:
            for service, names in tables.items():
                for name in (*names, "inbox", "progress", "parked", "parked_audit"):
                    connection.execute(text(f"TRUNCATE {service}.{name} CASCADE"))
            for made in find_schemas(connection):
                drop_schema(connection, made.name)
