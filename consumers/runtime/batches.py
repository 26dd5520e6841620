"""Patches how aiokafka reads Kafka's batches: a message or a batch that cannot be read concerns its own partition only.

aiokafka takes the name of a header for UTF-8, while Kafka takes any bytes. If a name is not UTF-8, aiokafka raises
UnicodeDecodeError out of the poll, and the other partitions lose what came in for them. So a batch that holds such a name is
read again, by aiokafka's own slower reader, and its message says that it cannot be read; other batches are read as before.
A batch that is broken itself (a wrong check sum) raises UnreadableBatch, which names its partition, once what lies before it
has been handed out. `install` replaces the two names under which aiokafka's fetcher knows its readers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any

import aiokafka.consumer.fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import KafkaError
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from schemas.codec import UNREADABLE

_HEAD = struct.Struct(">qi")
"""A batch begins with its base offset and the length of what follows."""


class UnreadableBatch(KafkaError):  # type: ignore[misc]
    """The next batch of a partition cannot be read."""

    def __init__(self, tp: TopicPartition, offset: int, error: Exception) -> None:
        super().__init__(f"the batch at offset {offset} of {tp.topic}/{tp.partition} cannot be read: {error!r}")
        self.tp = tp


class LenientRecords:
    """The batches that a fetch has brought of a partition; stands in for aiokafka's MemoryRecords."""

    __slots__ = ("_content", "_records", "has_next", "size_in_bytes")

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._records = MemoryRecords(content)
        self.has_next = self._records.has_next
        self.size_in_bytes = self._records.size_in_bytes

    def next_batch(self) -> Any:
        """Return the next batch, or None."""
        batch = self._records.next_batch()
        return None if batch is None else LenientBatch(batch, self._content)


class LenientBatch:
    """A batch whose messages can all be read; everything else is aiokafka's."""

    __slots__ = ("_batch", "_content")

    def __init__(self, batch: Any, content: bytes) -> None:
        self._batch = batch
        self._content = content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        count = 0
        try:
            for record in self._batch:
                count += 1
                yield record
        except UnicodeDecodeError:
            yield from islice(_LenientReader(_batch_at(self._content, self._batch.base_offset)), count, None)


class LenientPartition(PartitionRecords):  # type: ignore[misc]
    """What a fetch has brought of a partition, up to the first batch that cannot be read."""

    def _unpack_records(self) -> Iterator[Any]:
        begin = self.next_fetch_offset
        try:
            yield from super()._unpack_records()
        except Exception as error:
            # Else messages before it would be lost with it: they are handed out, and the next fetch begins at the batch.
            if self.next_fetch_offset == begin:
                raise UnreadableBatch(self._tp, begin, error) from error


class _Names(bytearray):
    """A buffer whose parts are decoded without an error; what is no UTF-8 becomes lone surrogates."""

    def __getitem__(self, at: Any) -> Any:
        part = super().__getitem__(at)
        return _Names(part) if isinstance(at, slice) else part

    def decode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> str:  # noqa: ARG002 - not strict
        return super().decode(encoding, "surrogateescape")


class _LenientReader(_DefaultRecordBatchPy):  # type: ignore[misc]
    """A batch in which the names of headers may be any bytes. A message that has such a name says so in a header of its own."""

    _buffer: bytearray

    def __iter__(self) -> Any:
        self._maybe_uncompress()
        self._buffer = _Names(self._buffer)
        return self

    def _read_msg(self, *arguments: Any) -> Any:
        record = super()._read_msg(*arguments)
        names = [_shown(name) for name, _ in record.headers]
        strange = [shown for shown, (name, _) in zip(names, record.headers, strict=True) if shown != name]
        if strange:
            values = [value for _, value in record.headers]
            record.headers[:] = zip(names, values, strict=True)
            record.headers.append((UNREADABLE, f"the name of a header is no UTF-8: {strange[0][:100]}".encode()))
        return record


def _shown(name: str) -> str:
    r"""Return a name with what is no UTF-8 in it escaped.

    >>> _shown("trace\udcff"), _shown("größe")
    ('trace\\xff', 'größe')
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _batch_at(content: bytes, base_offset: int) -> bytes:
    """Return the bytes of the batch that begins at an offset."""
    at = 0
    while True:
        base, length = _HEAD.unpack_from(content, at)
        end = at + _HEAD.size + length
        if base == base_offset:
            return content[at:end]
        at = end


def install() -> None:
    """aiokafka's consumers of this process read batches as described above. May be repeated."""
    aiokafka.consumer.fetcher.MemoryRecords = LenientRecords
    aiokafka.consumer.fetcher.PartitionRecords = LenientPartition
