"""Topics on the broker, as schemas/topics.py declares them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from connect.connector import heartbeat_topic
from ops.kafka.brokers import TIMEOUT_S, asking, is_away
from outbox.errors import Refused
from outbox.settings import Settings
from schemas.topics import TOPICS, Topic

DAY_MS = 86_400_000
PARTITIONS = "partitions, declared"


@dataclass(frozen=True, kw_only=True)
class TopicState:
    """A declared topic beside what the broker has."""

    topic: str
    partitions: int
    retention_ms: int
    found: bool
    topic_id: str
    problems: tuple[str, ...]

    @property
    def has_other_partitions(self) -> bool:
        """Whether its partitions were changed: no command changes them back."""
        return any(f" {PARTITIONS} " in problem for problem in self.problems)


def admin_client(settings: Settings) -> AdminClient:
    """Return a client of the broker's administration; it connects at the first call."""
    return AdminClient({"bootstrap.servers": settings.kafka_bootstrap, "log_level": 0, "socket.timeout.ms": 10_000})


def declared(settings: Settings) -> list[Topic]:
    """Return every topic that must exist, under the settings' prefix, with the settings' partitions, and the heartbeat's."""
    heartbeat = Topic(
        name=heartbeat_topic(settings), service="connect", key="server", partitions=1, retention_ms=DAY_MS
    )
    ours = [
        replace(
            topic,
            name=settings.topic_prefix + topic.name,
            partitions=settings.partitions.get(topic.name, topic.partitions),
        )
        for topic in TOPICS
    ]  # fmt: skip
    return [*ours, heartbeat]


def topic_states(settings: Settings) -> list[TopicState]:
    """Return each declared topic and how the broker's differs from it. Raises Unreachable."""
    admin = admin_client(settings)
    topics = declared(settings)
    with asking(settings):
        described = admin.describe_topics(TopicCollection([topic.name for topic in topics]), request_timeout=TIMEOUT_S)
        return [_state(admin, topic, described[topic.name], settings.replication_factor) for topic in topics]


def _state(admin: AdminClient, topic: Topic, future: object, replication_factor: int) -> TopicState:
    try:
        existing = future.result(TIMEOUT_S)  # type: ignore[attr-defined]
    except KafkaException as error:
        if error.args[0].name() != "UNKNOWN_TOPIC_OR_PART":
            raise
        return TopicState(topic=topic.name, partitions=topic.partitions, retention_ms=topic.retention_ms, found=False,
                          topic_id="", problems=("missing: payrelay topics apply --execute",))  # fmt: skip
    resource = ConfigResource(ResourceType.TOPIC, topic.name)
    config = admin.describe_configs([resource], request_timeout=TIMEOUT_S)[resource].result(TIMEOUT_S)
    problems = []
    if len(existing.partitions) != topic.partitions:
        problems.append(f"{len(existing.partitions)} {PARTITIONS} {topic.partitions}: keys have moved")
    for key, value in topic.config(replication_factor).items():
        if config[key].value != value:
            problems.append(f"{key} is {config[key].value}, declared {value}")
    return TopicState(topic=topic.name, partitions=len(existing.partitions), retention_ms=topic.retention_ms, found=True,
                      topic_id=str(existing.topic_id), problems=tuple(problems))  # fmt: skip


def apply_topics(settings: Settings, *, execute: bool) -> list[str]:
    """Every declared topic exists with its configuration; returns what was done (or, not executed, would be).

    May be repeated. Partitions are never added: keys would move, and their order with them.
    """
    admin = admin_client(settings)
    done = []
    wanted = {topic.name: topic for topic in declared(settings)}
    for state in topic_states(settings):
        topic = wanted[state.topic]
        config = topic.config(settings.replication_factor)
        if not state.found:
            done.append(f"create {topic.name}: {topic.partitions} partitions, {config}")
            if execute:
                with asking(settings):
                    _create(admin, topic, settings.replication_factor, config)
        elif any(problem.startswith(tuple(config)) for problem in state.problems):
            done.append(f"configure {topic.name}: {'; '.join(state.problems)}")
            if execute:
                with asking(settings):
                    _configure(admin, topic, config)
    return done


def _create(admin: AdminClient, topic: Topic, replication_factor: int, config: dict[str, str]) -> None:
    new = NewTopic(topic.name, topic.partitions, replication_factor, config=config)
    try:
        admin.create_topics([new], request_timeout=TIMEOUT_S)[topic.name].result(TIMEOUT_S)
    except KafkaException as error:
        if is_away(error.args[0]):
            raise
        if error.args[0].name() != "TOPIC_ALREADY_EXISTS":  # made beside us
            raise Refused(f"{topic.name}: {error.args[0].str()}") from error


def _configure(admin: AdminClient, topic: Topic, config: dict[str, str]) -> None:
    resource = ConfigResource(ResourceType.TOPIC, topic.name)
    for key, value in config.items():
        entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
        resource.add_incremental_config(entry)
    admin.incremental_alter_configs([resource], request_timeout=TIMEOUT_S)[resource].result(TIMEOUT_S)
