"""What a consumer should have done about an event beside what it has. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from ops.reconcile.effects import NOTHING, Effects
from ops.reconcile.findings import Kind

SENT = "SUCCESS"
"""The status of a notification that was answered."""


@dataclass(slots=True, kw_only=True)
class Standing:
    """An effect as it stands."""

    value: str
    event_id: UUID | None = None
    status: str = ""
    """Of a notification."""


@dataclass(slots=True, kw_only=True)
class Seen:
    """What a consumer has of an event."""

    known: bool
    """To its inbox."""
    parked: str = ""
    """Id and cause."""
    on_topic: bool = True
    passed: bool = True
    """Its progress is beyond every record of the event."""
    found: Mapping[str, Standing] = field(default_factory=dict)
    """What stands under the event's business number."""


Hole = tuple[Kind, str, str]
"""Kind, effect, and what was found."""


def judge(calls_for: Effects, seen: Seen) -> list[Hole] | None:
    """Return the holes of an event at a consumer; None while it is on its way there.

    >>> judge({"M1": "100"}, Seen(known=True, found={"M1": Standing(value="100")}))
    []
    >>> judge({"M1": "100"}, Seen(known=True))
    [(<Kind.NO_EFFECT: 'no_effect'>, '', 'the inbox knows it, and its effect is not there')]
    >>> judge({}, Seen(known=False, passed=False)) is None
    True
    """
    missing = [effect for effect in calls_for if effect not in seen.found]
    if not seen.known:
        if seen.parked:
            identity, _, cause = seen.parked.partition(" ")
            return [(Kind.PARKED, identity, cause)]
        if not calls_for or missing:
            if not seen.on_topic:
                return []
            return [(Kind.UNDELIVERED, "", "its record was passed by")] if seen.passed else None
        holes: list[Hole] = [(Kind.FORGOTTEN, "", "its effect is there, and the inbox does not know it")]
        return holes + _differences(calls_for, seen.found)
    if calls_for and len(missing) == len(calls_for):
        return [(Kind.NO_EFFECT, "", "the inbox knows it, and its effect is not there")]
    return _differences(calls_for, seen.found)


def _differences(calls_for: Effects, found: Mapping[str, Standing]) -> list[Hole]:
    holes: list[Hole] = []
    for effect, value in calls_for.items():
        stands = found.get(effect)
        if stands is None:
            holes.append((Kind.WRONG_EFFECT, effect, f"calls for {value}, there is nothing"))
        elif stands.value != value:
            holes.append((Kind.WRONG_EFFECT, effect, f"calls for {value}, there is {stands.value or 'nothing'}"))
        elif stands.status and stands.status != SENT:
            holes.append((Kind.UNTOLD, effect, f"it is {stands.status}"))
    if calls_for:
        holes += [
            (Kind.STRAY_EFFECT, effect, f"there is {stands.value} too, which it does not call for")
            for effect, stands in found.items()
            if effect not in calls_for and stands.value not in NOTHING
        ]
    return holes
