"""The way out: events recorded in the transaction of the business rows they tell of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from outbox.errors import NotInTransaction, Refused
from schemas.codec import PAYLOAD_BYTES_MAX, encode
from schemas.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """An event on its way out."""

    event: Event
    version: int
    """The aggregate's counter, raised under its row's lock in the same transaction."""
    correlation: str
    """The order number that the whole story hangs on."""
    causation: str | None = None
    """Id of what caused this event, where there is one."""
    traceparent: str | None = None


_INSERT = text("""
    INSERT INTO outbox (topic, key, version, type, correlation, causation, traceparent, payload)
    SELECT * FROM unnest(
        CAST(:topics AS text[]), CAST(:keys AS text[]), CAST(:versions AS bigint[]), CAST(:types AS text[]),
        CAST(:correlations AS text[]), CAST(:causations AS text[]), CAST(:traceparents AS text[]),
        CAST(:payloads AS text[]))
    RETURNING id""")


def record(connection: Connection, events: Sequence[Outgoing]) -> list[UUID]:
    """The events' rows are in the outbox of the connection's role, in order, if and only if the caller commits.

    Transaction: the caller's; raises NotInTransaction without one. One statement for any number of events.
    Not repeatable: recorded twice is told twice, under two ids. Raises Refused for a body above 256 KiB.
    """
    if not connection.in_transaction() or connection.connection.dbapi_connection.autocommit:  # type: ignore[union-attr]
        raise NotInTransaction
    if not events:
        return []
    payloads = [encode(outgoing.event) for outgoing in events]
    for outgoing, payload in zip(events, payloads, strict=True):
        if len(payload.encode()) > PAYLOAD_BYTES_MAX:
            raise Refused(f"{outgoing.event.type} {outgoing.event.key}: body above {PAYLOAD_BYTES_MAX} bytes")
    rows = connection.execute(
        _INSERT,
        {
            "topics": [outgoing.event.topic.name for outgoing in events],
            "keys": [outgoing.event.key for outgoing in events],
            "versions": [outgoing.version for outgoing in events],
            "types": [outgoing.event.type for outgoing in events],
            "correlations": [outgoing.correlation for outgoing in events],
            "causations": [outgoing.causation for outgoing in events],
            "traceparents": [outgoing.traceparent for outgoing in events],
            "payloads": payloads,
        },
    )
    return [row.id for row in rows]
