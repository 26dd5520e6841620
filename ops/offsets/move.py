"""Carries out a plan: an undo file, then a consumer's `progress`, then Kafka, then both read back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ops.kafka.groups import commit, committed, group
from ops.kafka.reader import Place
from ops.offsets.files import write_undo
from ops.offsets.ours import move_progress, note_mirror, ours
from ops.offsets.plan import MovePlan
from ops.offsets.shown import members
from outbox.errors import PayrelayError, Refused
from outbox.settings import Settings

POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class PositionDifference:
    """What was read back is not what was written."""

    place: Place
    where: str
    wanted: int | None
    found: int | None


def require_inactive(settings: Settings, name: str, *, how: str, within: timedelta = timedelta()) -> None:
    """The group had no member a moment ago. Raises Refused with its members, their hosts, and how to stop them."""
    deadline = time.monotonic() + within.total_seconds()
    while (current := group(settings, name)).is_active:
        if time.monotonic() >= deadline:
            message = f"{name} is active, and its members would overwrite the new offsets. Stop them first:"
            raise Refused(message, details=[*members(current), how])
        time.sleep(POLL_S)


def execute(settings: Settings, plan: MovePlan, undo: Path) -> list[PositionDifference]:
    """The group is where the plan says; returns the differences, of which there are none unless somebody moved it meanwhile.

    Where it stood is in the undo file before anything is moved. Of a group of ours `progress` is moved first, in one
    transaction; cut off then, the next start of its worker writes what Kafka lacks. Raises Refused, with nothing moved, where
    the group does not stand where the plan found it.
    """
    name, known = plan.view.group.name, plan.view.ours
    write_undo(undo, name, plan.seen)
    try:
        if known is not None:
            move_progress(settings, name, known, plan.targets, seen=plan.seen)
        else:
            _require_unmoved(settings, plan)
    except Refused:
        undo.unlink()  # there is nothing to undo
        raise
    try:
        commit(settings, name, plan.targets)
    except PayrelayError as error:
        if known is None:
            raise
        raise type(error)(
            f"progress is moved, but Kafka's mirror is not: the consumer's worker writes it when it starts ({error})"
        ) from error
    if known is not None:
        note_mirror(settings, name, known, plan.targets)
    return read_back(settings, plan)


def _require_unmoved(settings: Settings, plan: MovePlan) -> None:
    offsets = committed(settings, plan.view.group.name)
    moved = [
        f"{topic}/{number}"
        for topic, number in plan.targets
        if offsets.get((topic, number)) != plan.seen.get((topic, number))
    ]
    if moved:
        raise Refused(f"{', '.join(moved)} was moved since the plan was made, so nothing was moved: plan again")


def read_back(settings: Settings, plan: MovePlan) -> list[PositionDifference]:
    """Return where `progress` or Kafka is not as planned."""
    name = plan.view.group.name
    truths = {"Kafka": committed(settings, name)}
    if plan.view.ours is not None and (now := ours(settings, name)) is not None:
        truths = {"progress": dict(now.progress), **truths}
    return [
        PositionDifference(place=place, where=where, wanted=wanted, found=truth.get(place))
        for where, truth in truths.items()
        for place, wanted in plan.targets.items()
        if truth.get(place) != wanted
    ]
