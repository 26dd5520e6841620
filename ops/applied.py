"""What a consumer has done about events: applied, parked, or nothing yet. Looked up in sets, by id."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Connection, text

from outbox.settings import SERVICES


class Fate(StrEnum):
    """What became of an event at a consumer."""

    APPLIED = "APPLIED"
    """Or skipped by an operator, which the consumer's `parked_audit` tells."""
    PARKED = "PARKED"
    MISSING = "MISSING"
    """Neither: it waits, or was skipped, or the inbox has forgotten it."""


def fates(connection: Connection, service: str, consumer: str, ids: Collection[UUID]) -> dict[UUID, Fate]:
    """Return what became of each event at a consumer, of the service whose inbox and parking lot it has. Reads only.

    Two look-ups by index for all of them; a few thousand at a time keep the statements small.
    """
    if service not in SERVICES:
        raise ValueError(service)
    found = dict.fromkeys(ids, Fate.MISSING)
    wanted = {"consumer": consumer, "ids": list(found)}
    for fate, table in ((Fate.PARKED, "parked"), (Fate.APPLIED, "inbox")):
        rows = connection.execute(
            text(f"SELECT event_id FROM {service}.{table} WHERE consumer = :consumer AND event_id = ANY(:ids)"),  # noqa: S608
            wanted,
        )
        found.update(dict.fromkeys(rows.scalars(), fate))
    return found
