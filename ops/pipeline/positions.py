"""How far each consumer is in each log, and how far the log goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from ops.kafka.reader import Place, append_times, bounds
from ops.kafka.topics import topic_states
from ops.pipeline.health import reader_engine
from outbox.settings import SERVICES, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a consumer is in one log, and how far the log goes."""

    consumer: str
    place: Place
    next_offset: int
    low: int
    high: int

    @property
    def begin(self) -> int:
        """The first offset that waits, if any does."""
        return max(self.next_offset, self.low)

    @property
    def behind(self) -> int:
        """How many offsets wait."""
        return max(0, self.high - self.begin)


def consumer_positions(settings: Settings) -> list[Position]:
    """Return every consumer's position in the topics of today: one that was made again under its name is another log."""
    topics = {state.topic: state.topic_id for state in topic_states(settings) if state.found}
    with reader_engine(settings).connect() as connection:
        rows = [
            row
            for service in SERVICES
            for row in connection.execute(text(f"SELECT * FROM {service}.progress ORDER BY consumer, topic, partition"))  # noqa: S608
            if topics.get(row.topic) == row.topic_id
        ]
    ends = bounds(settings, topics)  # after the positions: a log only grows
    return [
        Position(
            consumer=row.consumer, place=place, next_offset=row.next_offset, low=ends[place][0], high=ends[place][1]
        )
        for row in rows
        if (place := (row.topic, row.partition)) in ends
    ]


def lag_ages(settings: Settings, positions: Sequence[Position], now: datetime) -> dict[Position, float]:
    """Return how old (seconds) the oldest message that waits is, of each position that is behind. Raises Unreachable."""
    behind = [position for position in positions if position.behind]
    times = append_times(settings, {(position.place, position.begin) for position in behind})
    return {
        position: (now - at).total_seconds()
        for position in behind
        if (at := times.get((position.place, position.begin))) is not None
    }
