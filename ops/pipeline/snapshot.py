"""Publishes kept outbox rows again through the connector, under the same event ids: a signal asks for Debezium's incremental snapshot.

In chunks between live events, which flow on; a connector that is restarted in the middle goes on where it was. What to emit is
looked up first, by the reading role, and the connector gets ids or a span of them: no text of anybody's reaches its SQL.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from psycopg.errors import QueryCanceled
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from connect.client import ConnectClient
from connect.connector import SIGNAL_SETTING
from ops.kafka.reader import bounds, wait_appended
from ops.pipeline.conditions import require_harmless
from ops.pipeline.health import reader_engine
from ops.pipeline.source import standing
from outbox.clock import first_id_at
from outbox.errors import NotReady, Refused, UnknownName
from outbox.migrate import owner_engine
from outbox.publication import PUBLISHED_TABLES, SIGNALS, published_tables
from outbox.settings import READER, SEARCHER, SERVICES, Settings
from schemas.topics import TOPICS

ROWS_MAX = 1_000_000
"""Rows of one request; a longer stretch is asked for in parts."""

IDS_MAX = 1_000
"""Ids in one signal: the connector keeps the signal's text in its offset until it is done."""

LOOK_UP_MS = 60_000


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which outbox rows are meant; what is empty leaves all in."""

    where: str = ""
    """A condition in SQL on the outbox's columns; run by a role that can read nothing else."""
    begin: datetime | None = None
    """Recorded from then on."""
    end: datetime | None = None
    """Recorded before then."""
    order: str = ""
    events: frozenset[UUID] = frozenset()


def find_rows(settings: Settings, services: Collection[str], wanted: Rows) -> dict[str, list[UUID]]:
    """Return the ids of the wanted rows of each service that has some, in order. Reads only.

    A condition runs as the role that reads the outbox tables and nothing else, once the server has read it and it calls nothing
    that could have an effect. Raises Refused for one that does or is no SQL, for a service that is none, and for more than a
    million rows.
    """
    chosen: dict[str, list[UUID]] = {}
    engine = reader_engine(settings, role=SEARCHER if wanted.where else READER)
    for service in services:
        if service not in SERVICES:
            raise UnknownName(f"there is no service {service!r}; there are: {', '.join(SERVICES)}")
        if wanted.where:
            require_harmless(engine, f"{service}.outbox", wanted.where)
        with engine.begin() as connection:
            connection.execute(text("SET TRANSACTION READ ONLY"))
            connection.execute(text(f"SET LOCAL statement_timeout = {LOOK_UP_MS}"))
            if ids := _look_up(connection, service, wanted):
                chosen[service] = ids
    if (rows := sum(map(len, chosen.values()))) > ROWS_MAX:
        raise Refused(
            f"{rows} rows match, and at most {ROWS_MAX} are published at once: choose fewer, e.g. with --since and --to"
        )
    return chosen


def _look_up(connection: Connection, service: str, wanted: Rows) -> list[UUID]:
    condition = wanted.where.replace(":", r"\:") or "true"  # else SQLAlchemy would take a time of day for parameters
    try:
        # With parameters it is one statement to the server, whatever it holds.
        return list(
            connection.execute(
                text(f"""SELECT id FROM {service}.outbox
                         WHERE (CAST(:begin AS uuid) IS NULL OR id >= :begin) AND (CAST(:end AS uuid) IS NULL OR id < :end)
                           AND (:order = '' OR correlation = :order)
                           AND (CAST(:ids AS uuid[]) IS NULL OR id = ANY(:ids))
                           AND ({condition}
                           )
                         ORDER BY id LIMIT :limit"""),  # noqa: S608 - the operator's own condition, run by a role that reads this alone
                {
                    "begin": first_id_at(wanted.begin) if wanted.begin else None,
                    "end": first_id_at(wanted.end) if wanted.end else None,
                    "order": wanted.order,
                    "ids": list(wanted.events) or None,
                    "limit": ROWS_MAX + 1,
                },
            ).scalars()
        )
    except DBAPIError as error:
        if isinstance(error.orig, QueryCanceled):
            raise Refused(
                f"the search for rows took longer than {LOOK_UP_MS // 1000} s, so nothing was published: narrow it by --since and --to"
            ) from error
        if isinstance(error, OperationalError):
            raise
        raise Refused(f"the condition is not valid SQL: {str(error.orig).splitlines()[0]}") from error


def emit_again(settings: Settings, ids: Mapping[str, Collection[UUID]], *, within_s: float) -> None:
    """Each of the events, by the service whose outbox keeps it, is on its topic again, or for the first time.

    Own transactions, as the owner. May be repeated: whoever knows an event drops the repeat. Live events flow meanwhile. Raises
    Refused for events that no outbox keeps, or a connector that takes no signals; NotReady if it does not run, or after
    `within_s`: it finishes what it was asked for by then. Refused too where the database went back: a signal would be passed over.
    """
    kept = {service: sorted(set(wanted)) for service, wanted in ids.items() if wanted}
    if not kept:
        return
    deadline = time.monotonic() + within_s
    signals = list(_signals(settings, kept))
    topics = [settings.topic_prefix + topic.name for topic in TOPICS if topic.service in kept]
    _require_listener(settings)
    if unmade := set(topics) - {topic for topic, _ in bounds(settings, topics)}:
        raise Refused(
            f"{', '.join(sorted(unmade))} does not exist. To create missing topics: payrelay topics apply --execute"
        )
    engine = owner_engine(settings)
    try:
        for service, condition, wanted in signals:  # one after the other: see IDS_MAX
            begins = {place: high for place, (_, high) in bounds(settings, topics).items()}
            _signal(engine, service, condition)
            wait_appended(settings, begins, wanted, within_s=max(0.0, deadline - time.monotonic()))
    finally:
        with engine.begin() as connection:  # read from the log by then, or to be; the rows serve nobody
            connection.execute(text(f"DELETE FROM {SIGNALS}"))  # noqa: S608
        engine.dispose()


def _signals(settings: Settings, ids: Mapping[str, Sequence[UUID]]) -> Iterator[tuple[str, str, set[UUID]]]:
    """Give what the connector is asked for: service, condition, ids. As one span where nothing else lies in it, else as lists."""
    with reader_engine(settings).connect() as connection:
        for service, wanted in ids.items():
            if service not in SERVICES:
                raise UnknownName(f"there is no service {service!r}; there are: {', '.join(SERVICES)}")
            inside, kept = connection.execute(
                text(f"""SELECT count(*), count(*) FILTER (WHERE id = ANY(:ids)) FROM {service}.outbox
                         WHERE id BETWEEN :first AND :last"""),  # noqa: S608 - a schema of ours
                {"ids": wanted, "first": wanted[0], "last": wanted[-1]},
            ).one()
            if kept < len(wanted):
                raise Refused(
                    f"{len(wanted) - kept} of {len(wanted)} events are in the outbox of {service} no more, so nothing was published: leave them out"
                )
            if inside == kept:
                yield service, f"id >= '{wanted[0]}' AND id <= '{wanted[-1]}'", set(wanted)
                continue
            for first in range(0, len(wanted), IDS_MAX):
                part = wanted[first : first + IDS_MAX]
                listed = ", ".join(f"'{identity}'" for identity in part)
                yield service, f"id IN ({listed})", set(part)


def _require_listener(settings: Settings) -> None:
    """The connector runs and hears signals; raises what emit_again says otherwise."""
    client = ConnectClient(settings.connect_url)
    if (client.config(settings.connector) or {}).get(SIGNAL_SETTING) != SIGNALS:
        raise Refused(
            "the connector takes no signals, so nothing was published. To configure it: payrelay connect apply --execute"
        )
    if not client.status(settings.connector).is_running:
        raise NotReady(
            "the connector does not run, so nothing was published. Its state: payrelay connect status; then resume or restart it"
        )
    if beyond := standing(settings).beyond():
        raise Refused(
            f"{beyond}: the connector passes over signals as it passes over events. To repair it: payrelay doctor --repair-slot --execute"
        )
    with reader_engine(settings).connect() as connection:
        if published_tables(connection) < PUBLISHED_TABLES:
            raise Refused(
                "the publication lacks tables, so nothing was published. To repair it: payrelay doctor --repair-slot --execute"
            )


def _signal(engine: Engine, service: str, condition: str) -> None:
    table = f"{service}.outbox"
    signal = {
        "type": "incremental",
        "data-collections": [table],
        "additional-conditions": [{"data-collection": table, "filter": condition}],
    }
    with engine.begin() as connection:
        connection.execute(
            text(f"INSERT INTO {SIGNALS} (id, type, data) VALUES (:id, 'execute-snapshot', :data)"),  # noqa: S608
            {"id": str(uuid4()), "data": json.dumps(signal)},
        )
