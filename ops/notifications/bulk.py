"""Acts on everything that matches, as an operator begins and follows them, and the rest of the audit table.

`ops` reads; acts are rows of each notifying service, begun, carried out and stopped by its own functions.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from ops.notifications.operations import HELD_UP, NOTIFYING_SERVICES
from outbox.clock import first_id_at, utc_now
from outbox.errors import UnknownName

FOLLOWED_MAX = 10_000
"""Items of an act in a service whose present status is counted, the first."""
HISTORY_MAX = 200


@dataclass(frozen=True, kw_only=True)
class ActRow:
    """An act, its services' parts together."""

    id: UUID
    action: str
    wanted: dict[str, str]
    matched: int
    """When it began, counted up to 100,000 of a service."""
    done: int
    busy: int
    """Just being sent when it was their turn: left as they were."""
    reason: str
    actor: str
    began_at: datetime
    ended_at: datetime | None
    """When its last part did."""
    stopped_by: str | None


_ACTS = """
    SELECT id, action, wanted, matched, done, busy, reason, actor, began_at, ended_at, stopped_by
    FROM {service}.notify_act WHERE CAST(:id AS uuid) IS NULL OR id = :id ORDER BY id DESC LIMIT :limit"""


def acts(connection: Connection, *, limit: int = 50, identity: UUID | None = None) -> list[ActRow]:
    """Return acts, the latest first, or the one of that id."""
    parts: dict[UUID, list[Any]] = {}
    for row in _rows(connection, _ACTS, id=identity, limit=limit):
        parts.setdefault(row.id, []).append(row)
    return [_whole(parts[identity]) for identity in sorted(parts, reverse=True)][:limit]


def _whole(parts: list[Any]) -> ActRow:
    ended = [part.ended_at for part in parts]
    return ActRow(
        **{name: getattr(parts[0], name) for name in ("id", "action", "wanted", "reason", "actor")},
        **{name: sum(getattr(part, name) for part in parts) for name in ("matched", "done", "busy")},
        began_at=min(part.began_at for part in parts),
        ended_at=None if None in ended else max(ended),
        stopped_by=next((part.stopped_by for part in parts if part.stopped_by), None),
    )


def act(connection: Connection, identity: UUID) -> ActRow:
    """Return an act; raises Refused for none."""
    if actions := acts(connection, identity=identity):
        return actions[0]
    raise UnknownName(f"there is no bulk action {identity}")


def statuses(connection: Connection, identity: UUID) -> dict[str, int]:
    """Return how the notifications that a bulk action made due stand now: how many by their status."""
    rows = _rows(
        connection,
        """SELECT record.status, count(*) FROM (
             SELECT record_id FROM {service}.notify_audit
             WHERE act_id = :id AND outcome = 'DUE' ORDER BY id LIMIT :limit) AS item
           JOIN {service}.notify_record AS record ON record.id = item.record_id GROUP BY 1""",
        id=identity,
        limit=FOLLOWED_MAX,
    )
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.status] = counts.get(row.status, 0) + row.count
    return dict(sorted(counts.items()))


def held_up(connection: Connection, identity: UUID) -> dict[str, int]:
    """Return how many of the notifications that a bulk action made due wait for their receivers: PAUSED, or by what holds them up."""
    rows = _rows(
        connection,
        f"""SELECT {HELD_UP} AS cause, count(*) FROM (
              SELECT record_id FROM {{service}}.notify_audit
              WHERE act_id = :id AND outcome = 'DUE' ORDER BY id LIMIT :limit) AS item
            JOIN {{service}}.notify_record AS record ON record.id = item.record_id
            JOIN {{service}}.notify_lane AS lane USING (queue, merchant_no)
            WHERE record.finished_at IS NULL AND {HELD_UP} IS NOT NULL GROUP BY 1""",  # noqa: S608 - a constant of ours
        id=identity,
        limit=FOLLOWED_MAX,
    )
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.cause] = counts.get(row.cause, 0) + row.count
    return dict(sorted(counts.items()))


def items(connection: Connection, identity: UUID, *, limit: int = HISTORY_MAX) -> list[dict[str, Any]]:
    """Return a bulk action's latest items: the outcome of each, and its state now."""
    rows = _rows(
        connection,
        """SELECT item.record_id, item.queue, item.merchant_no, item.outcome, item.acted_at, record.status,
                  record.http_status, record.order_no
           FROM (SELECT * FROM {service}.notify_audit WHERE act_id = :id ORDER BY id DESC LIMIT :limit) AS item
           JOIN {service}.notify_record AS record ON record.id = item.record_id ORDER BY item.id DESC""",
        id=identity,
        limit=limit,
    )
    return [dict(row._mapping) for row in rows][:limit]


def single_acts(connection: Connection, *, limit: int = 50) -> list[dict[str, Any]]:
    """Return who did what to one notification, receiver or rule, and why, the latest first."""
    rows = _rows(
        connection,
        "SELECT * FROM {service}.notify_audit WHERE act_id IS NULL ORDER BY id DESC LIMIT :limit",
        limit=limit,
    )
    return sorted((dict(row._mapping) for row in rows), key=lambda row: row["acted_at"], reverse=True)[:limit]


def new_id() -> UUID:
    """Return the id of an act that begins now, a UUIDv7: the latest act has the largest."""
    return UUID(int=first_id_at(utc_now()).int | 7 << 76 | 2 << 62 | secrets.randbits(62))


def _rows(connection: Connection, statement: str, **given: object) -> Iterable[Any]:
    for service in NOTIFYING_SERVICES:
        yield from connection.execute(text(statement.format(service=service)), given)
