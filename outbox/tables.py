"""The kernel's tables. Every service schema has the same seven, found through the role's search_path.

outbox        what the service tells others; insert-only, one partition a UTC day by the id's own time
inbox         which events a consumer has applied, and where they lay; same days. Partition and offset -1: handed over from the
              outbox (payrelay replay redeliver --from-outbox), wherever the event may lie on the topic
progress      how far a consumer has come in each log: the truth, of which Kafka's committed offset is the mirror
topic_begun   when a consumer has begun a topic of this name for the first time, and its horizon then; passed_at: it has read past it
inbox_behind  which events older than that it has applied, until it has read past its horizon; emptied then
parked        events a consumer could not apply, and the later events of their keys, in order
parked_audit  who retried or skipped which of them, why, and what came of it; insert-only
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Integer, LargeBinary, MetaData, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

outbox = Table(
    "outbox",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("topic", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("correlation", Text, nullable=False),
    Column("causation", Text),
    Column("traceparent", Text),
    Column("payload", Text, nullable=False),
    Column("lsn", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("specversion", Text, nullable=False),
)

inbox = Table(
    "inbox",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("event_id", Uuid, primary_key=True),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("applied_at", DateTime(timezone=True), nullable=False),
)

progress = Table(
    "progress",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("cluster_id", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("topic_id", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
    Column("mirrored_offset", BigInteger),
    Column("has_parked", Boolean, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)

topic_begun = Table(
    "topic_begun",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("horizon", Uuid, nullable=False),
    Column("begun_at", DateTime(timezone=True), nullable=False),
    Column("passed_at", DateTime(timezone=True)),
)

inbox_behind = Table(
    "inbox_behind",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("event_id", Uuid, primary_key=True),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("applied_at", DateTime(timezone=True), nullable=False),
)

parked = Table(
    "parked",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("consumer", Text, nullable=False),
    Column("event_id", Uuid),
    Column("topic", Text, nullable=False),
    Column("topic_id", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("key", LargeBinary),
    Column("type", Text),
    Column("version", BigInteger),
    Column("headers", JSONB, nullable=False),
    Column("value", LargeBinary),
    Column("cause", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("parked_at", DateTime(timezone=True), nullable=False),
)

parked_audit = Table(
    "parked_audit",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("action", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("event", JSONB, nullable=False),
    Column("acted_at", DateTime(timezone=True), nullable=False),
)

PARTITIONED = (outbox.name, inbox.name)
