"""The effects that are there: what a consumer's rows amount to, by business number."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.effects import ANSWERED, Effects, Values


class Present(dict[str, Values]):
    """The effects that are there, by business number."""

    unanswered: dict[str, str]
    """The status of each notification that has no answer, by business number."""


NOTHING_THERE: Values = {}


def effects_of(connection: Connection, effects: Effects, numbers: Collection[str], ids: Sequence[UUID]) -> Present:
    """Return the effects that a consumer's rows show of events with these business numbers and ids."""
    return _present(connection, effects, effects.of_events, {"numbers": list(numbers), "ids": ids})


def effects_under(connection: Connection, effects: Effects, numbers: Collection[str]) -> Present:
    """Return the effects that a consumer's rows show under these business numbers."""
    return _present(connection, effects, effects.of_numbers, {"numbers": list(numbers)})


def _present(connection: Connection, effects: Effects, where: str, wanted: Mapping[str, Any]) -> Present:
    present = Present()
    present.unanswered = {}
    for number, effect, value, status in connection.execute(text(effects.rows.format(where=where)), wanted):
        if number in present:
            present[number][effect] = value
        else:
            present[number] = {effect: value}
        if status is not None and status != ANSWERED:
            present.unanswered[number] = status
    return present
