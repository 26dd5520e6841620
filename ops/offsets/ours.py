"""Payrelay's consumers as groups: their position is `progress` in a service's database, and Kafka's committed offset is its mirror."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from uuid import UUID

from confluent_kafka import Message

from consumers.delivery.messages import CLOCK_TOLERANCE
from consumers.delivery.processor import Processor
from ops.delivery.outcomes import progress_of
from ops.delivery.registry import known_processors, topics_of
from ops.kafka.groups import cluster_id, topic_ids
from ops.kafka.reader import Place, bounds, id_of, offsets_at, read
from ops.pipeline.health import reader_engine
from outbox.clock import time_of
from outbox.database import engine_for
from outbox.errors import Misused, Refused, UnknownName
from outbox.inbox import Log, begin_log, begin_topic, lock_position, move_to, note_mirrored
from outbox.settings import READER, SERVICES, Settings
from schemas.codec import CORRELATION


@dataclass(frozen=True, kw_only=True)
class OurConsumer:
    """A consumer of this version, and how far it has come."""

    processor: Processor
    topics: tuple[str, ...]
    logs: Mapping[Place, Log]
    """Of the topics of today."""
    progress: Mapping[Place, int]
    elsewhere: frozenset[Place]
    """Where it stands in an earlier topic of that name, or in another cluster's, and not in today's."""


def ours(settings: Settings, group: str) -> OurConsumer | None:
    """Return what is known of a group if it is a consumer of payrelay; None if it is somebody else's.

    Raises Refused where it is ours and its progress cannot be reached, or where it has progress and is none of this version's.
    """
    processor = known_processors(settings).get(group)
    if processor is None:
        if settings.dsn:
            _is_nobodys(settings, group)
        return None
    if READER not in settings.dsn:
        raise Refused(
            f"{group!r} is a consumer of payrelay: its position is in the database, and Kafka's is only the mirror. "
            f"Set PAYRELAY_DSN__{READER.upper()} and PAYRELAY_DSN__{processor.service.upper()}; "
            "if it is not payrelay's, set PAYRELAY_GROUP_PREFIX to what the names of payrelay's groups begin with"
        )
    topics = topics_of(settings, processor)
    cluster, ids = cluster_id(settings), topic_ids(settings, topics)
    logs = {
        place: Log(cluster_id=cluster, topic=place[0], topic_id=ids[place[0]], partition=place[1])
        for place in bounds(settings, list(ids))
    }
    with reader_engine(settings).connect() as connection:
        rows = progress_of(connection, processor.service, group)
    progress = {place: rows[log] for place, log in logs.items() if log in rows}
    elsewhere = {(log.topic, log.partition) for log in rows} - progress.keys()
    return OurConsumer(
        processor=processor,
        topics=tuple(topics),
        logs=logs,
        progress=progress,
        elsewhere=frozenset(elsewhere & logs.keys()),
    )


def _is_nobodys(settings: Settings, group: str) -> None:
    """No service has progress of a consumer of that name. Raises Refused."""
    with reader_engine(settings).connect() as connection:
        for service in SERVICES:
            if progress_of(connection, service, group):
                raise Refused(
                    f"{group!r} has progress in {service}, but is no consumer of this version under "
                    f"PAYRELAY_GROUP_PREFIX {settings.group_prefix!r}: set that to what its name begins with"
                )


def move_progress(
    settings: Settings, group: str, consumer: OurConsumer, moves: Mapping[Place, int], *, seen: Mapping[Place, int]
) -> None:
    """The consumer goes on there, in all of these partitions or in none. Own transaction, as the service.

    Raises Refused where it does not stand any more where it was seen: a worker, or another operator, has moved it.
    """
    engine = engine_for(settings.dsn_of(consumer.processor.service), name="offsets", pool_size=1)
    try:
        with engine.begin() as connection:
            for topic in sorted({topic for topic, _ in moves}):
                begin_topic(connection, group, consumer.processor.service, topic)
            for place in sorted(moves):
                log, expected = consumer.logs[place], seen.get(place, moves[place])
                if place not in seen:
                    begin_log(connection, group, log, next_offset=expected)
                was = lock_position(connection, group, log)
                if was != expected:
                    raise Refused(
                        f"{log} stood at {seen.get(place)} when the plan was made, and is at {was}, so nothing was moved: plan again"
                    )
                move_to(connection, group, log, moves[place])
    finally:
        engine.dispose()


def note_mirror(settings: Settings, group: str, consumer: OurConsumer, moves: Mapping[Place, int]) -> None:
    """It is known that these offsets are in Kafka. Own transaction, as the service. May be repeated."""
    engine = engine_for(settings.dsn_of(consumer.processor.service), name="offsets", pool_size=1)
    try:
        with engine.begin() as connection:
            note_mirrored(connection, group, {consumer.logs[place]: offset for place, offset in moves.items()})
    finally:
        engine.dispose()


def places_of_event(settings: Settings, consumer: OurConsumer, identity: str) -> dict[Place, int]:
    """Return the first place of an event on the consumer's topics. Reads from when the event was made. Raises Refused for an unknown event."""
    try:
        wanted = UUID(identity)
    except ValueError as error:
        raise Misused(f"{identity!r} is no event id: give a UUID") from error
    at = time_of(wanted)
    begins = {} if at is None else offsets_at(settings, consumer.topics, at - CLOCK_TOLERANCE)
    places = _first(settings, consumer, begins, lambda message: id_of(message) == wanted, at_most=1)
    if not places:
        raise UnknownName(f"event {wanted} is on none of the consumer's topics: {', '.join(consumer.topics)}")
    return places


def places_of_order(settings: Settings, consumer: OurConsumer, order_no: str) -> dict[Place, int]:
    """Return where an order's first event lies, of each partition that holds one. Reads the topics whole. Raises Refused where none is."""
    wanted = order_no.encode()

    def is_of_order(message: Message) -> bool:
        return dict(message.headers() or []).get(CORRELATION) == wanted

    places = _first(settings, consumer, {}, is_of_order)
    if not places:
        raise UnknownName(f"no event of order {order_no!r} is on the consumer's topics: {', '.join(consumer.topics)}")
    return places


def _first(
    settings: Settings,
    consumer: OurConsumer,
    begins: Mapping[Place, int],
    wanted: Callable[[Message], bool],
    *,
    at_most: int = 0,
) -> dict[Place, int]:
    """Return the first offset of each partition whose message is wanted, reading on until there are so many of them."""
    ends = bounds(settings, consumer.topics)
    places: dict[Place, int] = {}
    spans = {place: range(begins.get(place, low), high) for place, (low, high) in ends.items()}
    with closing(read(settings, spans)) as messages:
        for message in messages:
            if wanted(message):
                places.setdefault((message.topic(), message.partition()), message.offset())
                if len(places) == at_most:
                    break
    return places
