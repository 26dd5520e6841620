"""Records as others read them: the CloudEvents SDK and FastStream, on what the real connector has published."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Generator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import alembic.command
import pytest
from alembic.config import Config
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.formats.json import JSONFormat
from cloudevents.v1.kafka import KafkaMessage as OlderMessage
from cloudevents.v1.kafka import from_binary as older_from_binary
from confluent_kafka import ConsumerGroupTopicPartitions, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from faststream.kafka import KafkaBroker
from faststream.kafka import KafkaMessage as Streamed
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from consumers.funds.funds import deposit
from ops.kafka.reader import bounds, id_of, read
from outbox.clock import utc_now
from outbox.partitions import make_days
from outbox.record import Outgoing, record
from outbox.settings import SERVICES, Settings
from schemas.codec import decode
from schemas.topics import TOPICS
from tests.factories import failed, settled, suspense
from tests.pipeline import ROOT, engine_of
from tests.waiting import eventually

NAMES = [topic.name for topic in TOPICS]
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[01]")

# As a version before the column and the headers writes its rows.
OLD_ROW = text("""
    INSERT INTO outbox (topic, key, version, type, correlation, causation, traceparent, payload)
    SELECT topic, key, version + 1, type, correlation, NULL, NULL, payload FROM outbox WHERE id = :id RETURNING id""")


class Published:
    """Events of the test's own, recorded by their services, and where the topics ended before."""

    def __init__(self, settings: Settings, prefix: str) -> None:
        self.settings = settings
        self.starts = {place: high for place, (_, high) in bounds(settings, NAMES).items()}
        paid = Outgoing(event=settled(prefix=prefix, settled_at=utc_now()), version=1, correlation=f"{prefix}O1")
        given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        refused = Outgoing(
            event=failed(payment_no=f"{prefix}P2"),
            version=1,
            correlation=f"{prefix}O2",
            causation="c",
            traceparent=given,
        )
        held = Outgoing(
            event=suspense(payment_no=f"{prefix}P3", bank_transaction_no=f"{prefix}B3"),
            version=1,
            correlation=f"{prefix}P3",
        )
        with engine_of(settings, "payments").begin() as connection:
            self.ids = record(connection, [paid, refused, held])
            self.ids += connection.execute(OLD_ROW, {"id": self.ids[1]}).scalars()
        with engine_of(settings, "funds").begin() as connection:
            deposit(connection, f"{prefix}D", payer_no=f"{prefix}U", amount_fen=100, currency="CNY", at=utc_now())
            self.ids += connection.execute(
                text("SELECT id FROM outbox WHERE key = :key"), {"key": f"{prefix}D"}
            ).scalars()

    def messages(self) -> list[Message]:
        """Return the records of these events, once all are there."""
        message_of: dict[UUID, Message] = {}

        def all_there() -> bool:
            ends = {place: high for place, (_, high) in bounds(self.settings, NAMES).items()}
            for message in read(self.settings, {place: range(self.starts[place], ends[place]) for place in ends}):
                if (identity := id_of(message)) in self.ids:
                    message_of[identity] = message
            return len(message_of) == len(self.ids)

        eventually(all_there, within_s=60, what="all published")
        return [message_of[identity] for identity in self.ids]


@pytest.fixture
def published(settings: Settings, prefix: str) -> Published:
    return Published(settings, prefix)


def test_every_new_record_is_a_cloudevent(published: Published) -> None:
    events = []
    for message in published.messages():
        pairs = message.headers()
        headers = dict(pairs)
        assert len(headers) == len(pairs), "no header comes twice"
        assert [name for name, value in pairs if value is None] == []
        event = from_binary(KafkaMessage(headers, message.key(), message.value()), JSONFormat())
        older = older_from_binary(OlderMessage(headers, message.key(), message.value()))
        assert older.get_attributes() == {**older.get_attributes(), "specversion": "1.0", "id": event.get_id()}
        own = decode(headers, message.value())
        assert (UUID(event.get_id()), event.get_type()) == (own.id, own.event.type)
        assert (event.get_specversion(), event.get_source()) == ("1.0", "payrelay")
        assert abs(event.get_time() - utc_now()) < timedelta(minutes=5)
        assert TRACEPARENT.fullmatch(headers["traceparent"].decode())
        events.append(headers)
    correlations = [headers["correlation"] for headers in events]
    causes = [headers["causation"] for headers in events]
    assert causes == [correlations[0], b"c", *correlations[2:]]
    assert events[1]["traceparent"] == b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_faststream_reads_every_new_record(published: Published, prefix: str) -> None:
    group = f"{prefix}faststream"
    begin(published.settings, group, [TopicPartition(*place, offset) for place, offset in published.starts.items()])
    wanted = set(published.ids)
    seen: dict[UUID, Any] = {}
    broker = KafkaBroker(published.settings.kafka_bootstrap, logger=None)
    done = asyncio.Event()

    @broker.subscriber(*NAMES, group_id=group, auto_offset_reset="earliest")
    async def take(body: dict[str, Any], message: Streamed) -> None:
        seen[UUID(message.headers["ce_id"])] = (body["currency"], message.headers["ce_specversion"])
        if wanted <= seen.keys():
            done.set()

    async def run() -> None:
        async with broker:
            await broker.start()
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), 30)

    asyncio.run(run())
    assert wanted - seen.keys() == set(), "all are read"
    assert {seen[identity] for identity in wanted} == {("CNY", "1.0")}


def begin(settings: Settings, group: str, positions: Sequence[TopicPartition]) -> None:
    """The group reads on from there."""
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap, "log_level": 0})
    [future] = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, list(positions))]).values()
    assert not [position.error for position in future.result(30).topic_partitions if position.error]


@pytest.fixture
def earlier(settings: Settings, prefix: str) -> Generator[Engine]:
    """A database of its own, as it was at migration 0013."""
    url = make_url(settings.database_url.get_secret_value().replace("postgresql://", "postgresql+psycopg://", 1))
    name = prefix.replace("-", "_") + "earlier"
    with engine_of(settings, "owner").connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        engine = create_engine(url.set(database=name), poolclass=NullPool)
        upgrade(engine, "0013")
        make_days(engine, SERVICES, today=utc_now().date())
        yield engine
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def upgrade(engine: Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "outbox" / "migrations"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)


def test_rows_from_before_are_filled_once_and_rows_of_an_older_version_as_they_come(earlier: Engine) -> None:
    """More rows than one transaction of the migration takes."""
    insert = text("""
        INSERT INTO payments.outbox (topic, key, version, type, correlation, causation, traceparent, payload)
        SELECT 'payment.order', 'P', n, 't', 'O1', CASE WHEN n % 3 = 0 THEN 'c' END, CASE WHEN n % 2 = 0 THEN 't' END, '{}'
        FROM generate_series(CAST(:first AS integer), :last) AS n""")
    rows = text("SELECT * FROM payments.outbox ORDER BY version")
    with earlier.begin() as connection:
        connection.execute(insert, {"first": 1, "last": 30_000})
    for _ in range(2):
        upgrade(earlier, "head")
    with earlier.begin() as connection:
        connection.execute(insert, {"first": 30_001, "last": 30_010})
        outbox_rows = connection.execute(rows).all()
    assert [(row.version, row.causation) for row in outbox_rows] == [
        (n, "O1" if n % 3 else "c") for n in range(1, 30_011)
    ]
    assert {row.specversion for row in outbox_rows} == {"1.0"}
    assert {row.traceparent for row in outbox_rows if not row.version % 2} == {"t"}
    made = [row.traceparent for row in outbox_rows if row.version % 2]
    assert all(TRACEPARENT.fullmatch(traceparent) for traceparent in made)
    assert (len({traceparent[:35] for traceparent in made}), len(set(made))) == (1, 15_005), "one trace, a span each"
