"""The messages around a group's position."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from sys import maxsize
from typing import Any

from confluent_kafka import Message

from ops.delivery.outcomes import meet
from ops.kafka.reader import FEW, Place, appended_at, read, stable_ends
from ops.offsets.plan import View
from ops.offsets.shown import at
from ops.offsets.targets import PartitionPosition
from ops.pipeline.health import reader_engine
from outbox.settings import Settings
from schemas.codec import CORRELATION, ID, TYPE

COLUMNS = (
    "topic", "partition", "offset", "position", "transaction", "at", "key", "type", "event_id", "order_no", "fate", "value"
)  # fmt: skip
SHOWN_MAX = 60
"""Characters of a key or a value."""
LOOKED_MAX = 1_000_000
"""Offsets of a partition that are looked through, each way, for the messages asked for: a compacted log has long stretches of none."""


def peek_rows(settings: Settings, view: View, *, before: int, after: int, whole: bool = False) -> list[dict[str, Any]]:
    """Return a row for each of so many messages before and after the group's position in each partition; the next one it reads is marked.

    Keys, headers and bodies are cut where they are long, unless the whole is wanted.

    Our consumers read messages of aborted and open transactions like any other; of other groups, the next one is the first that was
    committed.
    """
    limit = maxsize if whole else SHOWN_MAX
    around = _around(settings, view.standings, before=before, after=after)
    transactions = _transactions(settings, around)
    if view.ours is None:
        rows = [_row(message, limit) for message in around]
    else:
        met = meet(reader_engine(settings), view.ours.processor, view.group.name, around)
        rows = [_row(record.message, limit) | {"fate": record.fate} for record in met]
    for row in rows:
        row["transaction"] = transactions.get((row["topic"], row["partition"], row["offset"]), "")
    rows.sort(key=lambda row: (row["topic"], row["partition"], row["offset"]))
    return _marked(rows, view)


def _around(settings: Settings, standings: Sequence[PartitionPosition], *, before: int, after: int) -> list[Message]:
    """Return the last messages before each position and the first from there on.

    By count, not by offset: where a log was compacted, offsets hold none. Ten times as many are looked at until there are enough.
    """
    chosen: list[Message] = []
    left = {standing.place: standing for standing in standings}
    width = max(before, after, 1)
    while left:
        spans = {
            place: range(max(standing.low, standing.begin - width), min(standing.high, standing.begin + width))
            for place, standing in left.items()
        }
        earlier: dict[Place, deque[Message]] = {place: deque(maxlen=before) for place in left}
        later: dict[Place, list[Message]] = {place: [] for place in left}
        for message in read(settings, spans, **FEW):
            place = message.topic(), message.partition()
            if message.offset() < left[place].begin:
                earlier[place].append(message)
            elif len(later[place]) < after:
                later[place].append(message)
        for place, standing in list(left.items()):
            has_earlier = len(earlier[place]) == before or spans[place].start == standing.low
            has_later = len(later[place]) == after or spans[place].stop == standing.high
            if (has_earlier and has_later) or width >= LOOKED_MAX:
                chosen += [*earlier[place], *later[place]]
                del left[place]
        width *= 10
    return chosen


def _transactions(settings: Settings, messages: Sequence[Message]) -> dict[tuple[str, int, int], str]:
    """Return `aborted` or `open` for each message that a reader of committed messages does not get, or not yet."""
    offsets: dict[Place, set[int]] = {}
    for message in messages:
        offsets.setdefault((message.topic(), message.partition()), set()).add(message.offset())
    ends = stable_ends(settings, offsets)
    spans = {place: range(min(numbers), min(max(numbers) + 1, ends[place])) for place, numbers in offsets.items()}
    committed = {
        (message.topic(), message.partition(), message.offset())
        for message in read(settings, spans, **FEW, **{"isolation.level": "read_committed"})
    }
    return {
        (*place, number): "open" if number >= ends[place] else "aborted"
        for place, numbers in offsets.items()
        for number in numbers
        if (*place, number) not in committed
    }


def _row(message: Message, limit: int) -> dict[str, Any]:
    headers = dict(message.headers() or [])
    return {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "at": at(appended_at(message)),
        "key": legible(message.key(), limit),
        "type": legible(headers.get(TYPE), limit),
        "event_id": legible(headers.get(ID), limit),
        "order_no": legible(headers.get(CORRELATION), limit),
        "value": legible(message.value(), limit),
    }


def _marked(rows: list[dict[str, Any]], view: View) -> list[dict[str, Any]]:
    """Mark in each partition the first message at or after the position that the group would get."""
    begins: dict[Place, int] = {standing.place: standing.begin for standing in view.standings}
    for row in rows:
        place = (row["topic"], row["partition"])
        row["position"] = ""
        is_read = view.ours is not None or not row["transaction"]
        if place in begins and row["offset"] >= begins[place] and is_read:
            row["position"] = "next"
            del begins[place]
    return rows


def legible(content: bytes | None, limit: int = SHOWN_MAX) -> str:
    """Return bytes of anybody's as text that does nothing to a terminal, cut where it is long.

    >>> legible(b"P1"), legible(b"\\x1b[2J")
    ('P1', '\\\\x1b[2J')
    """
    text = "" if content is None else content[: min(limit, len(content)) * 4].decode(errors="backslashreplace")
    text = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
