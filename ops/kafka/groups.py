"""Consumer groups as the broker knows them: any group, on any Kafka."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicCollection, TopicPartition

from ops.kafka.brokers import TIMEOUT_S, asking
from ops.kafka.reader import Place
from ops.kafka.topics import admin_client
from outbox.errors import Refused, Unreachable, message_of
from outbox.settings import Settings

UNKNOWN = "UNKNOWN"
"""The state of a group that the client cannot describe: a share group, or one of Kafka Streams."""

INACTIVE = ("EMPTY", "DEAD")
"""States in which nobody but the operator commits; DEAD is a group that has never been, or is no more."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A process in a group."""

    id: str
    client: str
    host: str
    places: frozenset[Place]


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group, and who is in it."""

    name: str
    state: str
    type: str
    """CLASSIC or CONSUMER; of a group that is no consumer group, its own type, e.g. connect or SHARE."""
    members: tuple[Member, ...]

    @property
    def is_active(self) -> bool:
        return self.state not in INACTIVE

    @property
    def exists(self) -> bool:
        return self.state != "DEAD"


def groups(settings: Settings) -> list[Group]:
    """Return every group of the cluster by name, also those that are none of consumers. Raises Unreachable."""
    admin = admin_client(settings)
    with asking(settings):
        listed = admin.list_consumer_groups(request_timeout=TIMEOUT_S).result(TIMEOUT_S)
        if listed.errors:
            raise KafkaException(listed.errors[0])  # a KafkaError is no exception of its own
        names = [listing.group_id for listing in listed.valid]
        described = list(_described(admin, names).values())
        # Kafka Connect's own groups are in no list of consumer groups, nor are share groups.
        others = [_other(listed) for listed in _all_groups(admin) if listed.id not in names]
    if any(other.state == UNKNOWN for other in others):  # listed, and described as if it were none
        types = _protocol_types(settings)
        others = [
            replace(other, type=types[other.name].upper()) if other.state == UNKNOWN else other
            for other in others
            if other.state != UNKNOWN or types.get(other.name)
        ]
    return sorted([*described, *others], key=lambda group: group.name)


def _other(listed: Any) -> Group:
    members = tuple(
        Member(id=member.id, client=member.client_id, host=member.client_host, places=frozenset())
        for member in listed.members
    )
    state = UNKNOWN if listed.state == "Dead" else listed.state.upper()
    return Group(name=listed.id, state=state, type=listed.protocol_type or "?", members=members)


def _protocol_types(settings: Settings) -> dict[str, str]:
    """Return what each group of the cluster speaks: the one thing that older requests tell of a share group."""
    from aiokafka.admin import AIOKafkaAdminClient  # here: few clusters have such groups, and the import takes its time
    from aiokafka.errors import (
        KafkaError,
    )  # a RuntimeError: it is neither an OSError nor the other client's KafkaException

    async def listed() -> list[tuple[str, str]]:
        client = AIOKafkaAdminClient(
            bootstrap_servers=settings.kafka_bootstrap, request_timeout_ms=int(TIMEOUT_S * 1000)
        )
        try:
            await client.start()
            return list(await client.list_consumer_groups())
        finally:
            await client.close()

    try:
        return dict(asyncio.run(listed()))
    except (OSError, KafkaError) as error:
        raise Unreachable(f"Kafka does not answer at {settings.kafka_bootstrap}: {message_of(error)}") from error


def _all_groups(admin: Any) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of which what is to be used instead gives consumers' groups only
        return list(admin.list_groups(timeout=TIMEOUT_S))


def group(settings: Settings, name: str) -> Group:
    """Return a group; one that has never been is DEAD, and has no members. Raises Unreachable."""
    admin = admin_client(settings)
    with asking(settings):
        try:
            return _described(admin, [name])[name]
        except KafkaException as error:
            if "not a consumer group" not in error.args[0].str():
                raise
            raise Refused(f"{name} is no group of consumers, so it has no positions: {error.args[0].str()}") from error


def members_of(settings: Settings, names: list[str]) -> dict[str, int]:
    """Return how many members each group has; one that has never been has none. Raises Unreachable."""
    admin = admin_client(settings)
    with asking(settings):
        return {name: len(group.members) for name, group in _described(admin, names).items()}


def _described(admin: Any, names: list[str]) -> dict[str, Group]:
    if not names:
        return {}
    described = {}
    for name, future in admin.describe_consumer_groups(names, request_timeout=TIMEOUT_S).items():
        description = future.result(TIMEOUT_S)
        members = tuple(
            Member(
                id=member.member_id,
                client=member.client_id,
                host=member.host.lstrip("/"),
                places=frozenset((place.topic, place.partition) for place in member.assignment.topic_partitions),
            )
            for member in description.members
        )
        described[name] = Group(name=name, state=description.state.name, type=description.type.name, members=members)
    return described


def committed(settings: Settings, name: str) -> dict[Place, int]:
    """Return every offset that is committed for a group. Raises Unreachable."""
    request = ConsumerGroupTopicPartitions(name)
    admin = admin_client(settings)
    with asking(settings):
        futures = admin.list_consumer_group_offsets([request], request_timeout=TIMEOUT_S)
        positions = futures[name].result(TIMEOUT_S).topic_partitions
        for position in positions:
            if position.error is not None:
                raise KafkaException(position.error)
    return {(position.topic, position.partition): position.offset for position in positions if position.offset >= 0}


def commit(settings: Settings, name: str, offsets: Mapping[Place, int]) -> None:
    """The offsets are committed for the group. May be repeated. Raises Refused where a member has come back, or Unreachable."""
    if not offsets:
        return
    request = ConsumerGroupTopicPartitions(name, [TopicPartition(*place, offset) for place, offset in offsets.items()])
    admin = admin_client(settings)
    with asking(settings):
        futures = admin.alter_consumer_group_offsets([request], request_timeout=TIMEOUT_S)
        for position in futures[name].result(TIMEOUT_S).topic_partitions:
            if position.error is not None:
                raise KafkaException(position.error)


def delete(settings: Settings, name: str) -> None:
    """The group is no more, and none of its offsets. Raises Refused where it has members or has never been, or Unreachable."""
    admin = admin_client(settings)
    with asking(settings):
        admin.delete_consumer_groups([name], request_timeout=TIMEOUT_S)[name].result(TIMEOUT_S)


def topic_ids(settings: Settings, topics: list[str]) -> dict[str, str]:
    """Return the id of each of the topics that exists: made again under its name, it has another. Raises Unreachable."""
    if not topics:
        return {}
    ids = {}
    admin = admin_client(settings)
    with asking(settings):
        described = admin.describe_topics(TopicCollection(topics), request_timeout=TIMEOUT_S)
        for name, future in described.items():
            try:
                ids[name] = str(future.result(TIMEOUT_S).topic_id)
            except KafkaException as error:
                if error.args[0].name() != "UNKNOWN_TOPIC_OR_PART":
                    raise
    return ids


def cluster_id(settings: Settings) -> str:
    """Return the cluster's id. Raises Unreachable."""
    admin = admin_client(settings)
    with asking(settings):
        described = admin.describe_cluster(request_timeout=TIMEOUT_S).result(TIMEOUT_S)
    return str(described.cluster_id)
