"""A topic and a group that are none of ours, and `payrelay offsets` as an operator types it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from typer.testing import CliRunner

from ops.cli.offsets import app
from outbox.errors import PayrelayError
from outbox.settings import Settings
from tests.pipeline import environment

BEGIN = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
"""When the first record of each partition was made; then one a minute."""


@dataclass
class Foreign:
    """Topics with records of known times, which a group of somebody else's reads."""

    settings: Settings
    prefix: str
    consumers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admin: Any = AdminClient({"bootstrap.servers": self.settings.kafka_bootstrap, "log_level": 0})
        self.topic, self.group = f"{self.prefix}clicks", f"{self.prefix}report"

    def make(self, *counts: int, topic: str = "", low: int = 0) -> str:
        """Return a topic with so many records in each partition, of which the first `low` are gone."""
        topic = topic or self.topic
        config = {
            "message.timestamp.type": "CreateTime",
            "retention.ms": "-1",
            "message.timestamp.after.max.ms": str(2**63 - 1),
        }
        self.admin.create_topics([NewTopic(topic, len(counts), 1, config=config)])[topic].result(20)
        producer = Producer({"bootstrap.servers": self.settings.kafka_bootstrap, "linger.ms": 5, "acks": "all"})
        for partition, count in enumerate(counts):
            for number in range(count):
                at = BEGIN + timedelta(minutes=number)
                producer.produce(topic, partition=partition, key=f"k{number}", value=f"click {number}",
                                 timestamp=int(at.timestamp() * 1000))  # fmt: skip
        assert producer.flush(30) == 0
        if low:
            gone = [TopicPartition(topic, partition, low) for partition, count in enumerate(counts) if count >= low]
            for future in self.admin.delete_records(gone).values():
                future.result(20)
        return topic

    def commit(self, *offsets: int | None, topic: str = "", group: str = "") -> None:
        """The group has committed these offsets, one a partition."""
        places = [
            TopicPartition(topic or self.topic, n, offset) for n, offset in enumerate(offsets) if offset is not None
        ]
        group = group or self.group
        done = self.admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places)])[group].result(20)
        assert not [place for place in done.topic_partitions if place.error]

    def committed(self, *, topic: str = "", group: str = "") -> dict[int, int]:
        group = group or self.group
        answer = self.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(20)
        return {
            position.partition: position.offset
            for position in answer.topic_partitions
            if position.topic == (topic or self.topic)
        }

    def join(self) -> Any:
        """Return a consumer that is in the group."""
        consumer = Consumer(
            {"bootstrap.servers": self.settings.kafka_bootstrap, "group.id": self.group, "client.id": "reporter",
             "enable.auto.commit": False, "log_level": 0}
        )  # fmt: skip
        self.consumers.append(consumer)
        consumer.subscribe([self.topic])
        for _ in range(300):
            consumer.poll(0.1)
            if consumer.assignment():
                return consumer
        raise AssertionError("no partition was assigned")

    def close(self) -> None:
        for consumer in self.consumers:
            consumer.close()


@dataclass(frozen=True)
class CommandResult:
    """What a command printed, and its exit code."""

    code: int
    rows: Any
    said: str

    def of(self, *names: str) -> list[tuple[Any, ...]]:
        return [tuple(row.get(name) for name in names) for row in self.rows]


class Command:
    """`payrelay offsets`, with nothing but these settings in the environment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
        import os

        for name in [name for name in os.environ if name.startswith("PAYRELAY_")]:
            monkeypatch.delenv(name)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    def text(self, *arguments: object) -> tuple[int, str, str]:
        """Return exit code, standard output and what was said; an error of ours as `main` would print it."""
        result = CliRunner().invoke(app, [*map(str, arguments)])
        if isinstance(result.exception, PayrelayError):
            return result.exception.exit_code, result.stdout, f"{result.stderr}payrelay: {result.exception}\n"
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    def __call__(self, *arguments: object) -> CommandResult:
        code, out, said = self.text(*arguments, "-o", "json")
        return CommandResult(code, json.loads(out) if out else None, said)


def kafka_alone(settings: Settings, home: Any) -> dict[str, str]:
    """Return the environment of somebody who has a Kafka and no payrelay."""
    return {"PAYRELAY_KAFKA_BOOTSTRAP": settings.kafka_bootstrap, "PAYRELAY_HOME": str(home)}


def ours(settings: Settings, home: Any) -> dict[str, str]:
    """Return the environment of an operator of ours."""
    return {**environment(settings), "PAYRELAY_HOME": str(home)}
