"""Turns an operator's request (a time, a file, another group, an order or an event) into offsets. Reads only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

from ops.kafka.groups import groups
from ops.kafka.reader import Place, offsets_at
from ops.offsets.files import read_file
from ops.offsets.ours import ours, places_of_event, places_of_order
from ops.offsets.plan import Scope, View, look
from ops.offsets.targets import Mode, MoveRequest
from outbox.errors import Refused, UnknownName
from outbox.settings import Settings


@dataclass(frozen=True, kw_only=True)
class MoveOptions:
    """A move as it was typed."""

    to_earliest: bool = False
    to_latest: bool = False
    to_current: bool = False
    from_kafka: bool = False
    to_offset: int | None = None
    shift_by: int | None = None
    at: datetime | None = None
    """--to-datetime, or --by-duration before now."""
    from_file: Path | None = None
    from_group: str | None = None
    map: Mapping[Place, int] | None = None
    to_order: str | None = None
    to_event: str | None = None

    @property
    def given(self) -> int:
        """How many of them were typed: one is right."""
        return sum(
            value is not None and value is not False
            for value in (getattr(self, option.name) for option in fields(self))
        )


def look_for(settings: Settings, name: str, options: MoveOptions, scope: Scope | None) -> tuple[View, MoveRequest]:
    """Return the group in the partitions meant, and where it is to go on. Raises Refused, Unreachable.

    What names partitions itself means these, or those of them that a scope leaves in.
    """
    places = _places(settings, name, options)
    view = look(settings, name, scope if scope is not None or places is None else _scope_of(places))
    if options.at is not None:
        places = offsets_at(settings, {standing.place[0] for standing in view.standings}, options.at)
    elif places is not None and (options.from_file is not None or options.map is not None):
        _require_all(view, places, scope)
    if places is not None:
        return view, MoveRequest(mode=Mode.PLACES, places=places)
    if options.from_kafka and view.ours is None:
        raise Refused(
            f"{name} is no group of payrelay, so --from-kafka changes nothing: Kafka's offset is its position already"
        )
    return view, _plain(options)


def _require_all(view: View, places: Mapping[Place, int], scope: Scope | None) -> None:
    """Every partition that was typed is one of the group's, and every topic of the scope was typed. Raises Refused naming the first that is not.

    What lies outside the scope's topics and partitions was left out on purpose.
    """
    standing = {standing.place for standing in view.standings}
    meant = [place for place in places if scope is None or (place[0] in scope and scope[place[0]] is None)]
    if strays := sorted(set(meant) - standing):
        raise UnknownName(f"{view.group.name} has no partition {strays[0][0]}/{strays[0][1]}: nothing was moved")
    if scope is not None and (silent := sorted(set(scope) - {topic for topic, _ in places})):
        raise Refused(f"no offset is given for topic {silent[0]}, so nothing was moved")


def _plain(options: MoveOptions) -> MoveRequest:
    if options.to_offset is not None:
        return MoveRequest(mode=Mode.OFFSET, number=options.to_offset)
    if options.shift_by is not None:
        return MoveRequest(mode=Mode.SHIFT, number=options.shift_by)
    modes = {
        Mode.EARLIEST: options.to_earliest,
        Mode.LATEST: options.to_latest,
        Mode.CURRENT: options.to_current,
        Mode.KAFKA: options.from_kafka,
    }
    return MoveRequest(mode=next(mode for mode, is_asked in modes.items() if is_asked))


def _places(settings: Settings, name: str, options: MoveOptions) -> Mapping[Place, int] | None:
    if options.from_file is not None:
        return read_file(options.from_file, name, others={described.name for described in groups(settings)})
    if options.map is not None:
        return options.map
    if options.from_group is not None:
        return _positions(settings, options.from_group)
    if options.to_order is None and options.to_event is None:
        return None
    known = ours(settings, name)
    if known is None:
        raise Refused(
            f"{name} is no group of payrelay, and --to-order and --to-event work for those only: use --to-datetime"
        )
    if options.to_order is not None:
        return places_of_order(settings, known, options.to_order)
    return places_of_event(settings, known, options.to_event or "")


def _positions(settings: Settings, name: str) -> dict[Place, int]:
    positions = {
        standing.place: standing.position
        for standing in look(settings, name).standings
        if standing.position is not None
    }
    if not positions:
        raise UnknownName(
            f"group {name!r} has no position anywhere to move to. Groups are shown by: payrelay offsets list"
        )
    return positions


def _scope_of(places: Collection[Place]) -> Scope:
    return {topic: frozenset(number for of, number in places if of == topic) for topic, _ in places}
