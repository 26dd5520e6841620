"""Bytes to events: what fits is an event, everything else is Undecodable or UnknownType, and nothing else is raised."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import Undecodable, UnknownType, decode, encode
from tests.factories import ID, settled

HEADERS = {
    "ce_id": str(ID).encode(), "ce_type": b"payment.settled.v1", "aggregate_version": b"3", "correlation": b"O1",
}  # fmt: skip


def test_an_event_reads_back() -> None:
    event = settled()
    envelope = decode(HEADERS, encode(event).encode())
    assert (envelope.id, envelope.version, envelope.correlation, envelope.event) == (ID, 3, "O1", event)


def test_a_field_that_a_later_version_of_ours_adds_is_no_obstacle() -> None:
    value = encode(settled()).replace("{", '{"added_later":1,', 1).encode()
    assert decode(HEADERS, value).event == settled()


def test_an_unknown_type_or_version_is_told_apart() -> None:
    with pytest.raises(UnknownType):
        decode({**HEADERS, "ce_type": b"payment.settled.v9"}, b"{}")


@pytest.mark.parametrize("value", [
    None, b"", b"{}", b"\xff", b"[" * 100_000, b"x" * 300_000, encode(settled()).replace("10001", "-1").encode(),
    encode(settled()).replace("10001", "1.5").encode(), encode(settled()).replace("10001", '"1"').encode(),
])  # fmt: skip
def test_a_body_that_does_not_fit_is_undecodable(value: bytes | None) -> None:
    with pytest.raises(Undecodable):
        decode(HEADERS, value)


@given(st.dictionaries(st.sampled_from(sorted(HEADERS)), st.binary(max_size=40)), st.binary(max_size=200))
def test_no_bytes_raise_anything_else(headers: dict[str, bytes], value: bytes) -> None:
    with contextlib.suppress(Undecodable, UnknownType):
        decode(HEADERS | headers, value)
