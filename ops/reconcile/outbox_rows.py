"""Outbox rows as a run looks at them: each decoded, and beside where its messages lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from consumers.effects import business_no
from ops.reconcile.published import Spot
from schemas.codec import Envelope, Undecodable, decode_body
from schemas.events import EVENTS

CHUNK = 4_000


@dataclass(slots=True)
class OutboxRow:
    """An outbox row, and where its messages lie."""

    service: str
    id: UUID
    topic: str
    key: str
    type: str
    correlation: str
    lsn: int
    envelope: Envelope | None
    spots: Sequence[Spot] | None
    """None: an earlier run has seen them, and not kept where."""

    number: str
    """The business number."""


def recorded(connection: Connection, service: str, condition: str, about: Mapping[str, Any]) -> Iterator[Row[Any]]:
    """Give a service's outbox rows in the order of their ids, some thousands at a time."""
    statement = f"""SELECT id, topic, key, type, version, correlation, lsn, payload FROM {service}.outbox
                    WHERE {condition} ORDER BY id"""  # noqa: S608 - ours
    yield from connection.execute(text(statement), about, execution_options={"yield_per": CHUNK})


def outbox_row_of(service: str, row: Row[Any], spots: Sequence[Spot] | None) -> OutboxRow:
    """Return an outbox row as it is looked at."""
    envelope = envelope_of(row)
    return OutboxRow(
        service=service,
        id=row.id,
        topic=row.topic,
        key=row.key,
        type=row.type,
        correlation=row.correlation,
        lsn=row.lsn,
        envelope=envelope,
        spots=spots,
        number=business_no(envelope.event) if envelope is not None else row.key,
    )


def envelope_of(row: Row[Any]) -> Envelope | None:
    """Return the event of an outbox row; None where this version does not know it."""
    if row.type not in EVENTS:
        return None
    try:
        event = decode_body(row.type, row.payload.encode())
    except Undecodable:
        return None
    return Envelope(id=row.id, version=row.version, correlation=row.correlation, event=event)


def beside(
    service: str, rows: Iterable[Row[Any]], published: Iterable[tuple[UUID, Sequence[Spot]]]
) -> Iterator[OutboxRow]:
    """Give each row with where its records lie. Both come in the order of ids."""
    records = iter(published)
    record = next(records, None)
    for row in rows:
        while record is not None and record[0] < row.id:
            record = next(records, None)
        yield outbox_row_of(service, row, record[1] if record is not None and record[0] == row.id else ())
