"""The way out: events recorded in the transaction of the business rows they tell of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from secrets import token_hex
from uuid import UUID

from sqlalchemy import Connection, text

from outbox.clock import first_id_at
from outbox.errors import AheadOfClock, NotInTransaction, Refused
from outbox.rows import as_json
from schemas.codec import Undecodable, decode_body, encode
from schemas.events import Event

AHEAD_MAX = timedelta(minutes=1)
"""An id further ahead of the database's clock than this comes from a session that lived through a step of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """An event on its way out."""

    event: Event
    version: int
    """The aggregate's counter, raised under its row's lock in the same transaction."""
    correlation: str
    """The order number that the whole story hangs on."""
    causation: str | None = None
    """Id of what caused this event; None where nothing did: its correlation is recorded."""
    traceparent: str | None = None
    """W3C trace context; None where the caller has none: one of the order's trace is recorded."""


_INSERT = text("""
    INSERT INTO outbox (topic, key, version, type, correlation, causation, traceparent, payload)
    SELECT * FROM json_to_recordset(CAST(:rows AS json))
        AS event (topic text, key text, version bigint, type text, correlation text, causation text, traceparent text,
                  payload text)
    RETURNING id, created_at""")


def record(connection: Connection, events: Sequence[Outgoing]) -> list[UUID]:
    """The events' rows are in the outbox of the connection's role, in order, if and only if the caller commits.

    Transaction: the caller's; raises NotInTransaction without one. One statement for any number of events.
    Not repeatable: recorded twice is published twice, under two ids. Raises Refused for a body above 256 KiB, or one that does not
    fit its own type; AheadOfClock, with the transaction rolled back, in a session whose ids are ahead of the clock: try again.
    """
    if not connection.in_transaction() or connection.connection.dbapi_connection.autocommit:  # type: ignore[union-attr]
        raise NotInTransaction
    if not events:
        return []
    rows = as_json([_row(outgoing) for outgoing in events])
    recorded = connection.execute(_INSERT, {"rows": rows}).fetchall()
    refuse_ahead(connection, *recorded[-1])  # the greatest: a session's ids never go back
    return [identity for identity, _ in recorded]


def refuse_ahead(connection: Connection, identity: UUID, now: datetime) -> None:
    """Raises AheadOfClock for a new id more than a minute ahead of the database's `now`; its session and all idle ones are closed.

    The caller's transaction is rolled back with its session. A session's ids never go back, so one that made ids while the clock was
    ahead makes such ids for as long as the clock was set back; a new session goes by the clock as it is.
    """
    if identity > first_id_at(now + AHEAD_MAX):
        connection.invalidate()
        connection.engine.dispose()
        raise AheadOfClock


def traceparent_of(correlation: str) -> str:
    """Return a W3C trace context: the trace of what hangs on the correlation, a span of its own, not sampled.

    >>> traceparent_of("O1")[:36], len(traceparent_of("O1"))
    ('00-5b1f94750d53ab84b5f3fb4bf25b8bf1-', 55)
    """
    return f"00-{sha256(correlation.encode()).hexdigest()[:32]}-{token_hex(8)}-00"


def _row(outgoing: Outgoing) -> dict[str, str | int | None]:
    event = outgoing.event
    payload = encode(event)
    try:
        decode_body(event.type, payload.encode())  # what no consumer could read is not recorded
    except Undecodable as error:
        raise Refused(f"{event.type} {event.key}: {error}") from error
    return {
        "topic": event.topic.name,
        "key": event.key,
        "version": outgoing.version,
        "type": event.type,
        "correlation": outgoing.correlation,
        "causation": outgoing.causation or outgoing.correlation,
        "traceparent": outgoing.traceparent or traceparent_of(outgoing.correlation),
        "payload": payload,
    }
