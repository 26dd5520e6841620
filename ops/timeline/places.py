"""Where a payment's events lie on their topics: by the place that an inbox tells, else by the event's own time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from confluent_kafka import Message

from ops.kafka.reader import Place, id_of, records_at, search
from ops.timeline.facts import MARGIN, PaymentFacts
from outbox.clock import time_of
from outbox.settings import Settings
from schemas.codec import TYPE

LOOK_MAX = 200_000
"""Messages of a partition that are looked at for an event whose place no inbox tells."""


@dataclass(frozen=True, kw_only=True)
class MessagePlace:
    """A message of an event."""

    place: Place
    offset: int
    at: datetime
    """When the broker appended it."""
    type: str

    def __str__(self) -> str:
        return f"{self.place[0]}/{self.place[1]}@{self.offset}"


@dataclass(kw_only=True)
class Records:
    """An event's messages, the first one first: one that was emitted again has several."""

    found: list[MessagePlace] = field(default_factory=list)
    all_seen: bool = True
    """Whether a message that is not here is nowhere; else only so many messages were looked at."""


def find_records(settings: Settings, facts: PaymentFacts) -> dict[UUID, Records]:
    """Return the messages of each of a payment's events. Bounded, however long the topics are. Raises Unreachable."""
    topics = topics_of_events(facts, settings.topic_prefix)
    records = {event_id: Records() for event_id in topics}
    addresses = {
        ((row.topic, row.partition), row.offset): row.event_id
        for row in (*facts.inbox, *facts.parked)
        if row.event_id and row.offset >= 0
    }
    for place, message in records_at(settings, addresses).items():
        if id_of(message) == addresses[place]:  # a topic made again may hold anything there
            records[addresses[place]].found.append(_place_of(message))
    for event_id, own in records.items():
        since = time_of(event_id)
        if not own.found and since is not None:
            message, own.all_seen = search(settings, topics[event_id], event_id, since=since - MARGIN, limit=LOOK_MAX)
            own.found += [_place_of(message)] if message is not None else []
        own.found.sort(key=lambda place: (place.at, place.offset))
    return records


def topics_of_events(facts: PaymentFacts, prefix: str) -> Mapping[UUID, str]:
    """Return the topic of every event of which a row is known."""
    from_inbox = {row.event_id: row.topic for row in (*facts.parked, *facts.inbox) if row.event_id}
    return from_inbox | {row.id: prefix + row.topic for row in facts.outbox}


def _place_of(message: Message) -> MessagePlace:
    headers = dict(message.headers() or [])
    return MessagePlace(
        place=(message.topic(), message.partition()),
        offset=message.offset(),
        at=datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC),
        type=(headers.get(TYPE) or b"").decode(errors="replace"),
    )
