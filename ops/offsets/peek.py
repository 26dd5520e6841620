"""The records around a group's position."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from confluent_kafka import Message

from ops.applied import meet
from ops.health import reader_engine
from ops.offsets.plan import View
from ops.offsets.shown import at
from ops.offsets.targets import Standing
from ops.records import FEW, Place, appended_at, read
from outbox.settings import Settings
from schemas.codec import CORRELATION, ID, TYPE

COLUMNS = ("topic", "partition", "offset", "position", "at", "key", "type", "event", "order", "fate", "value")
SHOWN_MAX = 60
"""Characters of a key or a value."""


def peek_rows(settings: Settings, view: View, *, before: int, after: int) -> list[dict[str, Any]]:
    """Return a row for each record of the offsets around the group's position in each partition; what it reads next is marked."""
    spans = {one.place: _around(one, before, after) for one in view.standings}
    messages = read(settings, spans, **FEW)
    rows: list[dict[str, Any]] = []
    if view.ours is None:
        rows = [_row(message) for message in messages]
    else:
        met = meet(reader_engine(settings), view.ours.processor, view.group.name, messages)
        rows = [_row(one.message) | {"fate": one.fate} for one in met]
    rows.sort(key=lambda row: (row["topic"], row["partition"], row["offset"]))
    return _marked(rows, view.standings)


def _around(one: Standing, before: int, after: int) -> range:
    return range(max(one.low, one.begin - before), min(one.high, one.begin + after))


def _row(message: Message) -> dict[str, Any]:
    headers = dict(message.headers() or [])
    is_event = ID in headers
    return {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "at": at(appended_at(message)),
        "key": legible(message.key()),
        "type": legible(headers.get(TYPE)),
        "event": legible(headers.get(ID)),
        "order": legible(headers.get(CORRELATION)),
        "value": "" if is_event else legible(message.value()),
    }


def _marked(rows: list[dict[str, Any]], standings: Iterable[Standing]) -> list[dict[str, Any]]:
    """Mark in each partition the first record at or after the position."""
    begins: dict[Place, int] = {one.place: one.begin for one in standings}
    for row in rows:
        place = (row["topic"], row["partition"])
        row["position"] = ""
        if place in begins and row["offset"] >= begins[place]:
            row["position"] = "next"
            del begins[place]
    return rows


def legible(content: bytes | None) -> str:
    """Return bytes of anybody's as text that does nothing to a terminal, cut where it is long.

    >>> legible(b"P1"), legible(b"\\x1b[2J")
    ('P1', '\\\\x1b[2J')
    """
    text = "" if content is None else content[: SHOWN_MAX * 4].decode(errors="backslashreplace")
    text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 1] + "…"
