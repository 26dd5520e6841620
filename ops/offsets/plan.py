"""What a move would do, before it is done: per partition, and for groups of ours in events. Reads only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from ops.delivery.outcomes import Fate, Foreseen, meet
from ops.kafka.groups import Group, committed, group
from ops.kafka.reader import Place, append_times, bounds, read
from ops.offsets.ours import OurConsumer, ours
from ops.offsets.targets import MoveRequest, PartitionPosition, target
from ops.pipeline.health import reader_engine
from outbox.errors import Refused, UnknownName
from outbox.inbox import NO_HORIZON, behind_horizons, horizon
from outbox.settings import Settings

Scope = Mapping[str, frozenset[int] | None]
"""Topics, and which of their partitions; None: all."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A group and its positions."""

    group: Group
    ours: OurConsumer | None
    standings: Sequence[PartitionPosition]


def look(settings: Settings, name: str, scope: Scope | None = None) -> View:
    """Return a group's standing in the partitions meant: without a scope, in all that it has a position in, is assigned, or reads.

    Raises Refused where a topic or partition does not exist, or where a group of ours hides its progress; Unreachable.
    """
    known, described, offsets = ours(settings, name), group(settings, name), committed(settings, name)
    assigned = {place for member in described.members for place in member.places}
    if scope is None:
        topics = set(known.topics) if known else {topic for topic, _ in offsets.keys() | assigned}
    else:
        topics = set(scope)
    ends = bounds(settings, topics)
    if known is not None:
        ends = {place: span for place, span in ends.items() if place in known.logs}
    if scope is None:
        wanted = [place for place in ends if known or place in offsets or place in assigned]
    else:
        if known and (others := topics - set(known.topics)):
            raise UnknownName(f"{name} does not read {', '.join(sorted(others))}; it reads {', '.join(known.topics)}")
        wanted = _scoped(scope, ends)
    return View(
        group=described,
        ours=known,
        standings=[
            PartitionPosition(
                place=place,
                low=ends[place][0],
                high=ends[place][1],
                committed=offsets.get(place),
                progress=known.progress.get(place) if known else None,
                is_ours=known is not None,
                note=_note(known, place, offsets.get(place), ends[place]),
            )
            for place in sorted(wanted)
        ],
    )


def _scoped(scope: Scope, ends: Collection[Place]) -> list[Place]:
    wanted: list[Place] = []
    for topic, partitions in scope.items():
        there = {place for place in ends if place[0] == topic}
        if not there:
            raise UnknownName(f"there is no topic {topic!r}. The topics are shown by: payrelay topics list")
        meant = there if partitions is None else {(topic, number) for number in partitions}
        if missing := meant - there:
            raise UnknownName(f"{topic} has no partition {', '.join(str(number) for _, number in sorted(missing))}")
        wanted += sorted(meant)
    return wanted


def _note(known: OurConsumer | None, place: Place, kafka: int | None, log: tuple[int, int]) -> str:
    """Return what an operator must know of a position beside its numbers."""
    if outside := _outside(known.progress.get(place) if known else kafka, *log):
        return outside
    if known is None:
        return ""
    if place in known.elsewhere:
        return "progress is on another topic of this name: this one begins at its earliest"
    if place in known.progress and kafka is not None and kafka > known.progress[place]:
        return f"Kafka is at {kafka}, which is not ours: progress counts"
    return ""


def _outside(position: int | None, low: int, high: int) -> str:
    """Return that a position lies outside its log, where it does: the lag alone shows neither.

    >>> _outside(99, 0, 40), _outside(3, 10, 40), _outside(None, 0, 40)
    ("59 beyond the log's end: the log was truncated or made again", "7 before the log's beginning: these messages are gone", '')
    """
    if position is not None and position > high:
        return f"{position - high} beyond the log's end: the log was truncated or made again"
    if position is not None and position < low:
        return f"{low - position} before the log's beginning: these messages are gone"
    return ""


@dataclass(kw_only=True)
class Counted:
    """The events between an old and a new position, by what became of them at the consumer."""

    effects: Foreseen = field(default_factory=Foreseen)
    forgotten: int = 0
    """So old that the inbox would not know a repeat: whoever delivers them parks them."""


@dataclass(frozen=True, kw_only=True)
class PositionMove:
    """A partition's part of a plan."""

    place: Place
    old: int | None
    new: int
    lands_at: datetime | None
    """When the message at the new position was appended; None at the log's end."""
    lag: int
    note: str
    span: range
    """The offsets between old and new."""
    counted: Counted | None = None

    @property
    def delta(self) -> int | None:
        return None if self.old is None else self.new - self.old

    @property
    def is_back(self) -> bool:
        return self.old is not None and self.new < self.old


@dataclass(frozen=True, kw_only=True)
class MovePlan:
    """Where a group is to go on, and what that does."""

    view: View
    moves: Sequence[PositionMove]
    uncounted: int = 0
    """Messages moved over, where they are more than were to be counted."""

    @property
    def targets(self) -> dict[Place, int]:
        return {move.place: move.new for move in self.moves}

    @property
    def seen(self) -> dict[Place, int]:
        """Where the group stood, in partitions in which it did."""
        return {move.place: move.old for move in self.moves if move.old is not None}


def plan(settings: Settings, view: View, wish: MoveRequest, *, count_limit: int) -> MovePlan:
    """Return what the wish does to the group. Events are counted for groups of ours, unless there are more than the limit.

    Raises Refused where the wish leads nowhere; Unreachable.
    """
    targets = [(standing, new) for standing in view.standings if (new := target(wish, standing)) is not None]
    if not targets and not view.group.exists:
        raise UnknownName(
            f"there is no group {view.group.name!r}, and no --topic is named to make it. Groups are shown by: payrelay offsets list"
        )
    if not targets:
        raise Refused(
            f"nothing to move: {view.group.name} has a position in none of the partitions that you named; name a --topic"
        )
    inside = {(standing.place, new.offset) for standing, new in targets if new.offset < standing.high}
    times = append_times(settings, inside)
    spans = {standing.place: _between(standing, new.offset) for standing, new in targets}
    total = sum(map(len, spans.values()))
    counted: dict[Place, Counted] = {}
    if view.ours is not None and total <= count_limit:
        back = {standing.place for standing, new in targets if new.offset < standing.begin}
        counted = count(settings, view.group.name, view.ours, spans, back=back)
    moves = [
        PositionMove(
            place=standing.place,
            old=standing.position,
            new=new.offset,
            lands_at=times.get((standing.place, new.offset)),
            lag=standing.high - new.offset,
            note="; ".join(filter(None, (new.note, standing.note))),
            span=spans[standing.place],
            counted=counted.get(standing.place),
        )
        for standing, new in targets
    ]
    return MovePlan(view=view, moves=moves, uncounted=total if view.ours is not None and total > count_limit else 0)


def _between(standing: PartitionPosition, new: int) -> range:
    """Return the offsets of the log between where a group goes on and where it is to."""
    if standing.position is None and not standing.is_ours:
        return range(0)
    begin, end = sorted((min(standing.begin, standing.high), new))
    return range(begin, end)


def count(
    settings: Settings, name: str, known: OurConsumer, spans: Mapping[Place, range], *, back: Collection[Place] = ()
) -> dict[Place, Counted]:
    """Return what became of the events of each span at a consumer of ours.

    Of spans that lead `back`, a later message of an event that would be applied counts as applied, since it is by then, and
    what would park behind its key as parked.
    """
    counts = {place: Counted() for place in spans}
    if not any(spans.values()):
        return counts
    engine = reader_engine(settings)
    with engine.connect() as connection:
        oldest, _ = horizon(connection, known.processor.service)
        behind = behind_horizons(connection, name, schema=known.processor.service)
        blocked = _parked_keys(connection, known.processor.service, name)
    applied: set[UUID] = set()
    for met in meet(engine, known.processor, name, read(settings, spans)):
        place = met.message.topic(), met.message.partition()
        counted = counts[place]
        if met.fate is not Fate.MISSING or met.envelope is None:
            counted.effects.add(known.processor, met)
        elif behind.get(place[0], NO_HORIZON) <= met.envelope.id < oldest:
            counted.forgotten += 1
        elif place in back and met.message.key() in blocked:
            counted.effects.add(known.processor, replace(met, fate=Fate.PARKED))
        elif place in back and met.envelope.id in applied:
            counted.effects.add(known.processor, replace(met, fate=Fate.APPLIED))
        else:
            applied.add(met.envelope.id)
            counted.effects.add(known.processor, met)
    return counts


def _parked_keys(connection: Connection, service: str, consumer: str) -> set[bytes]:
    """Return the keys of which the consumer has something parked: whatever comes of them parks behind it."""
    statement = text(f"SELECT DISTINCT key FROM {service}.parked WHERE consumer = :consumer AND key IS NOT NULL")  # noqa: S608
    return {bytes(key) for key in connection.execute(statement, {"consumer": consumer}).scalars()}
