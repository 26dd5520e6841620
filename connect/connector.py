"""The outbox connector's configuration: a pure function of settings.

Each value that is not Debezium's default says why. Source: Debezium 3.7 documentation, PostgreSQL connector and outbox
event router; traps measured on the versions that ops/stack/programs.lock pins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from outbox.publication import SIGNALS
from outbox.settings import CONNECTOR, SERVICES, Settings
from schemas.codec import CAUSATION, CORRELATION, ID, LSN, SPECVERSION, TRACEPARENT, TYPE, VERSION

SOURCE = "payrelay"
HEARTBEAT_SQL = (
    "WITH gone AS (DELETE FROM connect.heartbeat RETURNING beat) "
    "INSERT INTO connect.heartbeat (id, beat) SELECT 1, coalesce(max(beat), 0) + 1 FROM gone"
)
MESSAGES_LEFT_OUT = "(?s).*"
"""Any role may write messages into the log (pg_logical_emit_message). One would go to a topic that nobody makes, and all that is
recorded after it would wait behind it. Without (?s) a prefix of several lines would pass."""
SIGNAL_SETTING = "signal.data.collection"
OUTBOXES = [f"{service}.outbox" for service in SERVICES]

_STRING = "org.apache.kafka.connect.storage.StringConverter"
_HEADERS = {
    "id": ID,
    "type": TYPE,
    "created_at": "ce_time",
    "version": VERSION,
    "correlation": CORRELATION,
    "causation": CAUSATION,
    "traceparent": TRACEPARENT,
    "lsn": LSN,
    # A column: a constant header of Kafka Connect's would be taken for the number 1.
    "specversion": SPECVERSION,
}


def server_name(settings: Settings) -> str:
    """Return what Debezium calls the database. Of its own for each payrelay on a Kafka Connect: a second connector of the same
    name would wait two minutes for the first one's metrics to go before it reads anything."""
    return f"{settings.topic_prefix}{SOURCE}"


def heartbeat_topic(settings: Settings) -> str:
    """Return the topic that the connector's heartbeat goes to."""
    return f"__debezium-heartbeat.{server_name(settings)}"


def connector_config(
    settings: Settings, *, publication: str, database: Mapping[str, str], since: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the connector's configuration.

    `database` gives host, port, dbname and sslmode; the password is a reference that the worker resolves. `since` bounds a
    repair: per outbox table the smallest id that a snapshot re-emits.
    """
    server = server_name(settings)
    config = {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "topic.prefix": server,
        "database.hostname": database["host"],
        "database.port": database["port"],
        "database.dbname": database["dbname"],
        "database.sslmode": database["sslmode"],
        "database.user": CONNECTOR,
        "database.password": settings.connector_password_ref,
        # Slot and publication are made by us, before the first write; nothing here may make or drop them.
        "plugin.name": "pgoutput",
        "slot.name": settings.slot,
        "slot.drop.on.stop": "false",
        "publication.name": publication,
        "publication.autocreate.mode": "disabled",
        "table.include.list": ",".join(OUTBOXES),
        "message.prefix.exclude.list": MESSAGES_LEFT_OUT,
        # Rows inserted there tell it to emit kept rows again, in chunks between live events: ops/pipeline/snapshot.py.
        SIGNAL_SETTING: SIGNALS,
        "incremental.snapshot.chunk.size": "1024",
        # With no_data a lost slot, or rows older than the slot, would never be published.
        "snapshot.mode": "when_needed",
        # `all` drops records without a word.
        "errors.tolerance": "none",
        "errors.max.retries": "-1",
        "retriable.restart.connector.wait.ms": "1000",
        # The queue hands over a batch when it is full or this time has passed, never earlier: it is the latency.
        "poll.interval.ms": str(settings.connector_poll_interval_ms),
        "max.batch.size": "8192",
        "max.queue.size": "32768",
        "max.queue.size.in.bytes": "67108864",
        # A row written and read back through the slot: what health is judged by, and what moves an idle slot on.
        "heartbeat.interval.ms": str(settings.heartbeat_interval_ms),
        "heartbeat.action.query": HEARTBEAT_SQL,
        "tombstones.on.delete": "false",
        "provide.transaction.metadata": "false",
        "extended.headers.enabled": "false",
        "status.update.interval.ms": "1000",
        # The body travels as the text it is: no envelope, no schema guessed from it.
        "key.converter": _STRING,
        "value.converter": _STRING,
        "header.converter": "org.apache.kafka.connect.storage.SimpleHeaderConverter",
        # Without the predicate the first heartbeat would fail the task.
        "predicates": "isOutbox,isSignal",
        "predicates.isSignal.type": "org.apache.kafka.connect.transforms.predicates.TopicNameMatches",
        "predicates.isSignal.pattern": re.escape(f"{server}.{SIGNALS}"),
        "predicates.isOutbox.type": "org.apache.kafka.connect.transforms.predicates.TopicNameMatches",
        "predicates.isOutbox.pattern": rf"{re.escape(server)}\.[a-z]+\.outbox",
        "transforms": "signals,outbox,source",
        # Signals are for the connector itself.
        "transforms.signals.type": "org.apache.kafka.connect.transforms.Filter",
        "transforms.signals.predicate": "isSignal",
        **_router(settings),
        # CloudEvents' binary mode needs it beside ce_id, ce_type and ce_specversion.
        "transforms.source.type": "org.apache.kafka.connect.transforms.InsertHeader",
        "transforms.source.header": "ce_source",
        "transforms.source.value.literal": SOURCE,
        "producer.override.compression.type": "lz4",
        "producer.override.linger.ms": "0",
        "producer.override.batch.size": "262144",
        "producer.override.max.request.size": "2097152",
    }
    if since:
        config["snapshot.select.statement.overrides"] = ",".join(since)
        for table, first_id in since.items():
            config[f"snapshot.select.statement.overrides.{table}"] = (
                f"SELECT * FROM {table} WHERE id >= '{first_id}' ORDER BY id"  # noqa: S608 - ids of ours
            )
    return config


def _router(settings: Settings) -> dict[str, str]:
    """Return what makes a message of an outbox row."""
    return {
        "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
        "transforms.outbox.predicate": "isOutbox",
        "transforms.outbox.route.by.field": "topic",
        "transforms.outbox.route.topic.replacement": settings.topic_prefix + "${routedByValue}",
        "transforms.outbox.table.field.event.id": "id",
        "transforms.outbox.table.field.event.key": "key",
        "transforms.outbox.table.field.event.payload": "payload",
        "transforms.outbox.table.fields.additional.placement": ",".join(
            f"{column}:header:{header}" for column, header in _HEADERS.items()
        ),
        # Rows written before a column was added lack it, and are published without its header.
        "transforms.outbox.table.field.additional.missing": "ignore",
        "transforms.outbox.table.op.invalid.behavior": "fatal",
        # Parsing the payload would turn its numbers into floats.
        "transforms.outbox.table.expand.json.payload": "false",
    }


def headers_of_row(row: Mapping[str, Any]) -> list[tuple[str, bytes | None]]:
    """Return the headers of the message that the connector makes of an outbox row.

    >>> row = dict.fromkeys(_HEADERS) | {"id": 7, "created_at": datetime(2026, 1, 1, tzinfo=UTC), "specversion": "1.0"}
    >>> [(name, value) for name, value in headers_of_row(row) if value]
    [('ce_id', b'7'), ('ce_time', b'2026-01-01T00:00:00.000000Z'), ('ce_specversion', b'1.0'), ('ce_source', b'payrelay')]
    """
    return [
        *((header, _header_value(row[column])) for column, header in _HEADERS.items()),
        ("ce_source", SOURCE.encode()),
    ]


def _header_value(value: object) -> bytes | None:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z").encode()
    return None if value is None else str(value).encode()


def masked(key: str, value: str) -> str:
    """Return a configuration value as it may be shown.

    >>> masked("database.password", "hunter2"), masked("slot.name", "payrelay_outbox")
    ('********', 'payrelay_outbox')
    """
    secret = any(word in key.lower() for word in ("password", "secret", "token", "sasl.jaas"))
    return "********" if secret and not value.startswith("${") else value


def diff(old: Mapping[str, str] | None, new: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return what changes: key, old value, new value; secrets masked, empty where absent."""
    before = {key: value for key, value in (old or {}).items() if key != "name"}
    return [
        (key, masked(key, before.get(key, "")), masked(key, new.get(key, "")))
        for key in sorted(before.keys() | new.keys())
        if before.get(key) != new.get(key)
    ]
