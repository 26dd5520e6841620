"""A processor under test on the real stack: topic, group and worker processes of its own, and what became of its events."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from ops.kafka.topics import apply_topics
from ops.ledger.integrity import ledger_problems
from ops.stack.parts import tied
from outbox.clock import first_id_at, utc_now
from outbox.database import driver_url
from outbox.settings import Settings
from schemas.codec import encode
from schemas.events import PaymentSettled
from schemas.topics import PAYMENT_ORDER
from tests.factories import settled
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[1]


def fresh_id() -> UUID:
    """Return a UUIDv7 of now, as the database would make it."""
    return UUID(int=first_id_at(utc_now()).int | 7 << 76 | 2 << 62 | uuid4().int & (1 << 62) - 1)


def engine_of(settings: Settings, role: str) -> Engine:
    dsn = settings.database_url.get_secret_value() if role == "owner" else settings.dsn_of(role)
    return create_engine(driver_url(dsn), poolclass=NullPool)


def environment(settings: Settings) -> dict[str, str]:
    """Return settings as an external stack's environment."""
    names = ("kafka_bootstrap", "connect_url", "topic_prefix", "group_prefix", "max_poll_interval_s", "metadata_max_age_s",
             "session_timeout_s", "batch_max", "payments_url", "bank_url", "payments_port", "bank_port", "notification_port",
             "order_ttl_s", "metrics_port")  # fmt: skip
    given = {f"PAYRELAY_{name.upper()}": str(getattr(settings, name)) for name in names}
    secret = {f"PAYRELAY_DSN__{role.upper()}": dsn.get_secret_value() for role, dsn in settings.dsn.items()}
    for name in ("bank_notify_secret", "bank_link_secret", "database_url", "connector_dsn"):
        secret[f"PAYRELAY_{name.upper()}"] = getattr(settings, name).get_secret_value()
    secret["PAYRELAY_CONNECTOR_PASSWORD_REF"] = settings.connector_password_ref
    secret["PAYRELAY_ALLOW_PRIVATE_RECEIVERS"] = "true"
    return given | secret


@dataclass
class Worker:
    """A worker process."""

    process: subprocess.Popen[bytes]
    condition_file: Path
    log: Path

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, within_s: float = 20.0) -> int:
        """Return the exit code after SIGTERM."""
        self.process.terminate()
        return self.process.wait(within_s)

    def condition(self) -> str:
        return self.condition_file.read_text() if self.condition_file.exists() else ""


@dataclass
class Pipeline:
    """One processor's stretch: its prefix, its events, its workers."""

    settings: Settings
    folder: Path
    name: str = "accounting"
    workers: list[Worker] = field(default_factory=list)
    sent: list[PaymentSettled] = field(default_factory=list)

    @property
    def topic(self) -> str:
        return self.settings.topic_prefix + PAYMENT_ORDER.name

    @property
    def consumer(self) -> str:
        return self.settings.group_prefix + self.name

    @cached_property
    def admin(self) -> Any:
        return AdminClient({"bootstrap.servers": self.settings.kafka_bootstrap, "log_level": 0})

    def make_topic(self) -> None:
        apply_topics(self.settings, execute=True)

    def delete_topic(self) -> None:
        self.admin.delete_topics([self.topic])[self.topic].result(20)
        eventually(lambda: self.topic not in self.admin.list_topics(timeout=10).topics, what="topic deleted")

    def add_partitions(self, total: int) -> None:
        self.admin.create_partitions([NewPartitions(self.topic, total)])[self.topic].result(20)

    def start(self, *, entry: Iterable[str] = ("ops.cli.main", "worker"), **overrides: Any) -> Worker:
        """Return a started worker process; it ends with this one."""
        number = len(self.workers)
        file, log = self.folder / f"condition-{number}.json", self.folder / f"worker-{number}.log"
        settings = self.settings.model_copy(update=overrides)
        command = [sys.executable, "-m", *entry, self.name]
        with log.open("ab") as out:
            process = subprocess.Popen(
                tied(command),
                env={**os.environ, **environment(settings), "PAYRELAY_CONDITION_FILE": str(file)},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        worker = Worker(process, file, log)
        self.workers.append(worker)
        return worker

    def ready(self, worker: Worker, within_s: float = 60.0) -> Worker:
        eventually(
            lambda: worker.condition() or worker.process.poll() is not None, within_s=within_s, what="worker ready"
        )
        assert worker.process.poll() is None, worker.log.read_text()[-3000:]
        return worker

    def send(self, events: Iterable[PaymentSettled], *, twice: bool = False, poison: bool = False) -> None:
        """The events are on the topic; poison ones have a body that no version of the event has."""
        producer = Producer({"bootstrap.servers": self.settings.kafka_bootstrap, "linger.ms": 5, "acks": "all"})
        for event in events:
            headers = headers_of(event)
            value = b'{"nonsense": true}' if poison else encode(event).encode()
            for _ in range(2 if twice else 1):
                producer.produce(self.topic, value=value, key=event.key.encode(), headers=headers)
            producer.poll(0)
            if not poison:
                self.sent.append(event)
        assert producer.flush(30) == 0

    def owner(self) -> Any:
        return engine_of(self.settings, "owner").begin()

    def count(self, statement: str, **parameters: Any) -> int:
        with engine_of(self.settings, "ops").connect() as connection:
            parameters = {"consumer": self.consumer, "like": f"{self.settings.topic_prefix}%", **parameters}
            return int(connection.execute(text(statement), parameters).scalar_one())

    def posted(self) -> int:
        return self.count("SELECT count(*) FROM accounting.voucher WHERE business_no LIKE :like")

    def parked(self) -> int:
        return self.count("SELECT count(*) FROM accounting.parked WHERE consumer = :consumer")

    def all_posted(self, within_s: float = 60.0) -> None:
        wanted = len({event.payment_no for event in self.sent})
        eventually(lambda: self.posted() >= wanted, within_s=within_s, what=f"{wanted} vouchers, {self.posted()} now")

    def prove(self) -> None:
        """Lost 0, doubled 0, order kept, ledger balanced: every event sent has one voucher, and its merchant's balance agrees."""
        wanted = {event.payment_no: event for event in self.sent}
        with engine_of(self.settings, "ops").connect() as connection:
            rows = connection.execute(
                text("SELECT business_no FROM accounting.voucher WHERE business_no LIKE :like"),
                {"like": f"{self.settings.topic_prefix}%"},
            ).scalars()
            posted = list(rows)
            lost, doubled = wanted.keys() - set(posted), len(posted) - len(set(posted))
            assert (lost, doubled, set(posted) - wanted.keys()) == (set(), 0, set())
            balances = dict(
                connection.execute(
                    text("SELECT account, credit_fen FROM accounting.balance WHERE account LIKE :like"),
                    {"like": f"merchant_payable:{self.settings.topic_prefix}%"},
                ).all()
            )
            expected: dict[str, int] = {}
            for event in wanted.values():
                account = f"merchant_payable:{event.merchant_no}"
                expected[account] = expected.get(account, 0) + event.amount_fen - event.fee_fen
            assert balances == expected
            assert ledger_problems(connection) == []

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.signal(signal.SIGCONT)
                worker.kill()

    def events(self, count: int) -> list[PaymentSettled]:
        """Return events of this stretch, each for a payment of its own."""
        begin = len(self.sent)
        return [settled(prefix=self.settings.topic_prefix, number=begin + number) for number in range(count)]


def headers_of(event: PaymentSettled) -> list[tuple[str, bytes]]:
    """Return the headers that the connector would give an event."""
    return [
        ("ce_id", str(fresh_id()).encode()),
        ("ce_type", event.type.encode()),
        ("aggregate_version", b"1"),
        ("correlation", event.order_no.encode()),
    ]


@contextmanager
def frozen(pid: int) -> Any:
    """The process is suspended meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class NotUtf8(str):
    """The name of a header that no UTF-8 decoder takes: what it holds is sent as Latin-1."""

    __slots__ = ()

    def encode(self, *_: object, **__: object) -> bytes:
        return super().encode("latin-1")


async def _send_batch(bootstrap: str, topic: str, partition: int, codec: int, records: list[tuple[Any, ...]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        batch = producer.create_batch()
        # aiokafka's fast builder, and every other client, refuses such a name; its Python builder asks the name to encode itself.
        batch._builder = _DefaultRecordBatchBuilderPy(2, codec, False, -1, -1, 0, 1 << 20)
        for key, value, headers in records:
            assert batch.append(timestamp=None, key=key, value=value, headers=headers) is not None
        await (await producer.send_batch(batch, topic, partition=partition))
    finally:
        await producer.stop()


def send_batch(
    settings: Settings, topic: str, partition: int, records: list[tuple[Any, ...]], *, codec: int = 0
) -> None:
    """The records (key, value, headers) are one batch on the topic; names of headers may be `NotUtf8`.

    Codecs are Kafka's: none, gzip, snappy, lz4, zstd from 0 to 4.
    """
    asyncio.run(_send_batch(settings.kafka_bootstrap, topic, partition, codec, records))
