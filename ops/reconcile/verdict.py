"""What a consumer should have done about an event beside what it has. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from consumers.effects import ANSWERED, NO_EFFECT, Values
from ops.reconcile.findings import Kind


@dataclass(slots=True, kw_only=True)
class Observed:
    """What a consumer has of an event."""

    known: bool
    """To its inbox."""
    parked: str = ""
    """Id and cause."""
    on_topic: bool = True
    passed: bool = True
    """Its progress is beyond every message of the event."""
    present: Mapping[str, str] = field(default_factory=dict)
    """The effects under the event's business number, each with its value."""
    status: str = ANSWERED
    """Of the notification, where there is one."""


Hole = tuple[Kind, str, str]
"""Kind, effect, and what was found."""


def judge(calls_for: Values, seen: Observed) -> list[Hole] | None:
    """Return the differences of an event at a consumer; None while it is on its way there.

    >>> judge({"M1": "100"}, Observed(known=True, present={"M1": "100"}))
    []
    >>> judge({"M1": "100"}, Observed(known=True))
    [(<Kind.NO_EFFECT: 'no_effect'>, '', 'it counts as applied, but its effect is not there')]
    >>> judge({}, Observed(known=False, passed=False)) is None
    True
    """
    missing = [effect for effect in calls_for if effect not in seen.present]
    if not seen.known:
        if seen.parked:
            identity, _, cause = seen.parked.partition(" ")
            return [(Kind.PARKED, identity, cause)]
        if not calls_for or missing:
            if not seen.on_topic:
                return []
            return (
                [(Kind.UNDELIVERED, "", "its message was passed by: neither applied nor parked")]
                if seen.passed
                else None
            )
        holes: list[Hole] = [(Kind.FORGOTTEN, "", "its effect is there, but it does not count as applied")]
        return holes + _differences(calls_for, seen)
    if calls_for and len(missing) == len(calls_for):
        return [(Kind.NO_EFFECT, "", "it counts as applied, but its effect is not there")]
    return _differences(calls_for, seen)


def _differences(calls_for: Values, seen: Observed) -> list[Hole]:
    if not calls_for:
        return []
    holes: list[Hole] = []
    for effect, value in calls_for.items():
        if effect not in seen.present:
            holes.append((Kind.WRONG_EFFECT, effect, f"the event calls for {value}, but there is nothing"))
        elif (stands := seen.present[effect]) != value:
            holes.append(
                (Kind.WRONG_EFFECT, effect, f"the event calls for {value}, but there is {stands or 'nothing'}")
            )
        elif seen.status != ANSWERED:
            holes.append((Kind.UNTOLD, effect, f"it is {seen.status}"))
    holes += [
        (Kind.STRAY_EFFECT, effect, f"there is also {stands}, which the event does not call for")
        for effect, stands in seen.present.items()
        if effect not in calls_for and stands not in NO_EFFECT
    ]
    return holes
