"""Which consumers can be rebuilt from their topics, and how. Their own effects.py says so."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.delivery.processor import Processor
from consumers.effects import Rebuild
from consumers.processors import EFFECTS
from outbox.errors import Refused
from schemas.codec import Envelope


def rebuild_of(processor: Processor) -> Rebuild:
    """Return how a processor's rows are rebuilt; raises Refused, saying why, where they cannot be."""
    effects = EFFECTS.get(processor.name)
    if effects is None or effects.rebuild is None:
        why = effects.no_rebuild if effects is not None else ""
        raise Refused(
            f"{processor.name} cannot be rebuilt: {why or 'its effects.py does not say how its rows are compared'}"
        )
    return effects.rebuild


def repeatable(processor: Processor, subject: Rebuild) -> Processor:
    """Return the processor, whose handler is given only the events that may be given to it again."""

    def handle(connection: Connection, events: Sequence[Envelope]) -> Collection[UUID] | None:
        return processor.handle(connection, [envelope for envelope in events if subject.repeats(envelope.event)])

    return replace(processor, handle=handle)


def sums(connection: Connection, statement: str, schema: str, **parameters: object) -> Mapping[str, int]:
    """Return amounts by account."""
    rows = connection.execute(text(statement.format(schema=schema)), parameters)
    return {row.account: row.amount for row in rows}
