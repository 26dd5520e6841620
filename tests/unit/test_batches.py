"""Record batches as the Kafka client hands them over: what cannot be read concerns its record, or its partition, alone."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.structs import TopicPartition

from consumers.runtime.batches import LenientPartition, LenientRecords, UnreadableBatch
from schemas.codec import Undecodable, decode
from tests.pipeline import NotUtf8

PLAIN: list[tuple[str, bytes | None]] = [("größe", b"1"), ("none", None)]
STRANGE: list[tuple[str, bytes | None]] = [("ok", b"1"), (NotUtf8("tr\xff"), b"2")]


def batch(base: int, *headers: list[tuple[str, bytes | None]], codec: int = 0) -> bytes:
    """Return a batch of a record for each list of headers, its offsets from `base` on."""
    builder = _DefaultRecordBatchBuilderPy(2, codec, False, -1, -1, 0, 1 << 20)
    for number, own in enumerate(headers):
        builder.append(number, 1_700_000_000_000, b"k", b"v%d" % number, own)
    made = builder.build()
    made[0:8] = base.to_bytes(8, "big")  # a broker does it; the check sum begins behind it
    return bytes(made)


def fetched(content: bytes, begin: int = 0) -> Any:
    return LenientPartition(TopicPartition("t", 0), LenientRecords(content), None, begin, None, None, True, 0)


@pytest.mark.parametrize("codec", range(5), ids=["plain", "gzip", "snappy", "lz4", "zstd"])
def test_a_record_whose_header_has_a_name_that_is_no_utf8_is_handed_out_and_is_no_event(codec: int) -> None:
    content = batch(7, PLAIN, STRANGE, PLAIN, codec=codec) + batch(10, STRANGE, codec=codec) + batch(11, PLAIN)
    records = list(fetched(content, 7))
    assert [(record.offset, record.value) for record in records] == [
        (7, b"v0"), (8, b"v1"), (9, b"v2"), (10, b"v0"), (11, b"v0")]  # fmt: skip
    assert [list(records[at].headers) for at in (0, 2, 4)] == [PLAIN] * 3
    for strange in (records[1], records[3]):
        assert strange.headers[:2] == (("ok", b"1"), ("tr\\xff", b"2"))
        with pytest.raises(Undecodable, match="no UTF-8"):
            decode({name: value for name, value in strange.headers if value is not None}, strange.value)


def test_a_fetch_that_begins_inside_a_batch_goes_on_there() -> None:
    assert [record.offset for record in fetched(batch(0, STRANGE, STRANGE, PLAIN), 1)] == [1, 2]


def test_a_broken_batch_names_its_partition_once_what_lies_before_it_is_handed_out() -> None:
    broken = bytearray(batch(2, PLAIN))
    broken[-1] ^= 1
    content = batch(0, PLAIN, PLAIN) + bytes(broken)
    assert [record.offset for record in fetched(content)] == [0, 1]
    with pytest.raises(UnreadableBatch, match=r"offset 2 of t/0 cannot be read: CorruptRecord.*CRC") as raised:
        list(fetched(bytes(broken), 2))
    assert raised.value.tp == TopicPartition("t", 0)
