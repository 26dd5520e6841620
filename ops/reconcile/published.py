"""Which events are on the topics, in the order of their ids, however many: sorted runs, on disk beyond what memory should hold."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Collection, Iterator
from datetime import datetime
from itertools import groupby
from tempfile import TemporaryFile
from typing import IO
from uuid import UUID

from ops.kafka.reader import Place, bounds, id_of, offsets_at, read
from outbox.settings import Settings
from schemas.numeric import parse_whole

RUN = 500_000
"""Messages sorted in memory at a time: some 100 MB."""
BUFFERED = 4_096
"""Messages read back at a time, of each run."""

Spot = tuple[str, int, int]
"""A message's topic, partition and offset."""

_ENTRY = struct.Struct(">16sHiq")

PublishedRow = tuple[bytes, int, int, int]
"""An event's id, its topic's number, partition, offset."""


class Published:
    """What lies on topics. Read once, by `look`; then given in the order of ids as often as wanted."""

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = sorted(topics)
        self._last: list[PublishedRow] = []
        self._spilled: list[tuple[IO[bytes], int]] = []
        self.records = 0
        self.spots: dict[UUID, list[Spot]] = {}
        """Of the events that were wanted."""
        self.ends: dict[Place, int] = {}
        """Up to where it was looked."""

    def __enter__(self) -> Published:
        return self

    def __exit__(self, *_: object) -> None:
        for file, _count in self._spilled:
            file.close()

    def look(self, settings: Settings, *, since: datetime | None, wanted: Collection[UUID] = ()) -> None:
        """Every message appended since then, up to the ends as they are now, is known; all there are, without a time.

        May be repeated: looks from the last ends on. Raises Unreachable.
        """
        limits = bounds(settings, self._topics)
        begins = offsets_at(settings, self._topics, since) if since and not self.ends else {}
        spans = {
            place: range(self.ends.get(place, begins.get(place, low)), high) for place, (low, high) in limits.items()
        }
        numbers = {topic: number for number, topic in enumerate(self._topics)}
        for message in read(settings, spans):
            if (identity := id_of(message)) is None:
                continue
            self.records += 1
            if identity in wanted:
                self.spots.setdefault(identity, []).append((message.topic(), message.partition(), message.offset()))
            self._last.append((identity.bytes, numbers[message.topic()], message.partition(), message.offset()))
            if len(self._last) >= RUN:
                self._spill()
        self.ends = {place: span.stop for place, span in spans.items()}
        self._last.sort()

    def _spill(self) -> None:
        file = TemporaryFile()  # noqa: SIM115 - closed with this object
        for entry in sorted(self._last):
            file.write(_ENTRY.pack(*entry))
        self._spilled.append((file, len(self._last)))
        self._last = []

    def in_order(self) -> Iterator[tuple[UUID, list[Spot]]]:
        """Give each event's id with the topic, partition and offset of its messages."""
        runs = [_unpack(file, count) for file, count in self._spilled]
        for identity, entries in groupby(heapq.merge(self._last, *runs), key=lambda entry: entry[0]):
            yield (
                UUID(bytes=identity),
                [(self._topics[topic], partition, offset) for _, topic, partition, offset in entries],
            )


def _unpack(file: IO[bytes], count: int) -> Iterator[PublishedRow]:
    for first in range(0, count, BUFFERED):
        file.seek(first * _ENTRY.size)
        yield from _ENTRY.iter_unpack(file.read(min(BUFFERED, count - first) * _ENTRY.size))


def spot_of(place: str) -> Spot | None:
    """Return the message that a finding names.

    >>> spot_of("payment.order/2@4711"), spot_of("")
    (('payment.order', 2, 4711), None)
    """
    if not place:
        return None
    topic, _, rest = place.rpartition("/")
    partition, _, offset = rest.partition("@")
    return topic, parse_whole(partition), parse_whole(offset)
