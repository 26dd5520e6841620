"""Events to text and back: the only place that knows the wire format (JSON text, attributes in headers)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from uuid import UUID

import msgspec

from schemas.events import EVENTS, Event
from schemas.numeric import parse_whole

ID = "ce_id"
TYPE = "ce_type"
VERSION = "aggregate_version"
CORRELATION = "correlation"
CAUSATION = "causation"
TRACEPARENT = "traceparent"
SPECVERSION = "ce_specversion"
LSN = "lsn"
UNREADABLE = "payrelay_unreadable"
"""Added by whoever reads a message whose headers cannot be read as they are: why. Such a message is no event."""

PAYLOAD_BYTES_MAX = 256 * 1024
VERSION_MAX = 2**63 - 1


class Undecodable(ValueError):
    """The message is not an event of this version: a header is missing, or the body does not fit its type."""


class UnknownType(ValueError):
    """No event of this type is known here."""


class UnknownVersion(UnknownType):
    """Events of this type are known here, but not of this version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What travels beside the body: an event as it was recorded."""

    id: UUID
    version: int
    """The aggregate's own counter: a gap or a repeat shows."""
    correlation: str
    event: Event


def encode(event: Event) -> str:
    """Return an event's body as JSON text."""
    return msgspec.json.encode(event).decode()


def decode(headers: Mapping[str, bytes], value: bytes | None) -> Envelope:
    """Return the event of a message; raises Undecodable or UnknownType, and nothing else."""
    if UNREADABLE in headers:
        raise Undecodable(headers[UNREADABLE].decode(errors="replace"))
    try:
        name = headers[TYPE].decode()
        identity = UUID(headers[ID].decode())
        version = parse_whole(headers[VERSION], low=1, high=VERSION_MAX)
        correlation = headers[CORRELATION].decode()
    except (KeyError, ValueError) as error:
        raise Undecodable(f"header: {error!r}") from error
    if name not in EVENTS:
        raise (UnknownVersion if _versionless(name) in map(_versionless, EVENTS) else UnknownType)(name[:100])
    if value is None:
        raise Undecodable("no body")
    return Envelope(id=identity, version=version, correlation=correlation, event=decode_body(name, value))


def decode_body(name: str, value: bytes) -> Event:
    """Return the event of a type that is known here; raises Undecodable for a body that does not fit it or its bound."""
    if len(value) > PAYLOAD_BYTES_MAX:
        raise Undecodable(f"body of {len(value)} bytes, at most {PAYLOAD_BYTES_MAX} are allowed")
    try:
        return _decoder(name)(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(f"body: {error}") from error


def _versionless(name: str) -> str:
    return name.rpartition(".v")[0]


@cache
def _decoder(name: str) -> Callable[[bytes], Event]:
    return msgspec.json.Decoder(EVENTS[name]).decode
