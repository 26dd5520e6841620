"""Schemas beside a service's own: the shadow that a rebuild fills, checkpoints, and what a switch has put aside.

Made from what the catalog says of the live tables: columns, defaults, identity, checks, indexes, foreign keys, storage
parameters, grants and triggers, each under its own name, so that a table can take the live one's place. Trigger functions
name their schema, and are made again with the new one's name. Days of outbox and inbox are not: one table takes all ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from outbox.errors import UnknownName
from outbox.schema_copy import bare_tables, finished_tables, run_script, tables_in
from outbox.settings import CONNECTOR, READER, SEARCHER, SERVICES

MARK = "payrelay: "
"""What the comment on a schema of this module begins with; no other one is ever dropped."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A schema of this module, as its comment tells."""

    name: str
    service: str
    consumer: str
    purpose: str
    """shadow, checkpoint, or old: put aside by a switch."""
    at: datetime
    code: str = ""
    """Of a shadow: which code has filled it."""
    base: str = ""
    """Of a shadow: the checkpoint that it began from; empty for the beginning of the logs."""
    skips: int = 0
    """Of a shadow: how many events operators had skipped when it was begun; it skips the same."""


def shadow_of(service: str) -> str:
    """Return the name of a service's shadow."""
    return f"{service}_rebuild"


def make_schema(
    connection: Connection, made: Made, *, fill: Callable[[], None] = lambda: None, tables: Sequence[str] = ()
) -> None:
    """The schema is there, with the service's tables as the live ones are (or these tables only), and with the rows that `fill` writes.

    Transaction: the caller's, as the owner. Rows come before indexes, constraints and triggers. What had the name is gone if
    it was of this module; else raises Refused.
    """
    drop_schema(connection, made.name, missing_ok=True)
    chosen = tables_in(connection, made.service, tables)
    beginning = [f"CREATE SCHEMA {made.name}", f"GRANT USAGE ON SCHEMA {made.name} TO {made.service}, {READER}"]
    run_script(connection, [*beginning, *bare_tables(made.service, made.name, chosen, divided=False)])
    tell(connection, made)
    fill()
    finish = finished_tables(connection, made.service, made.name, chosen, role=_role_of_shadow, all_functions=True)
    run_script(connection, finish)


def _role_of_shadow(role: str) -> str | None:
    """Return who may do in a shadow what a role may in the live schema: nothing of a shadow is ever published."""
    return None if role in (CONNECTOR, SEARCHER) else role


def copy_rows(connection: Connection, to: str, origin: str, tables: Sequence[str], *, consumer: str = "") -> None:
    """The rows of the tables are in the other schema too; of one consumer only, where that is given. Transaction: the caller's, as the owner.

    Generated numbers are kept, and go on after the highest.
    """
    where = "WHERE consumer = :consumer" if consumer else ""
    for name in tables:
        connection.execute(
            text(f'INSERT INTO {to}."{name}" OVERRIDING SYSTEM VALUE SELECT * FROM {origin}."{name}" {where}'),  # noqa: S608
            {"consumer": consumer} if consumer else {},
        )
        column = connection.execute(
            text("""SELECT attname FROM pg_attribute
                    WHERE attrelid = CAST(:table AS regclass) AND attidentity <> ''"""),
            {"table": f'{to}."{name}"'},
        ).scalar()
        if column:
            connection.execute(
                text(f"""SELECT setval(pg_get_serial_sequence('{to}."{name}"', '{column}'), max("{column}"))
                         FROM {to}."{name}" HAVING max("{column}") IS NOT NULL""")  # noqa: S608
            )


def tell(connection: Connection, made: Made) -> None:
    """The schema's comment says what it is. Transaction: the caller's, as the owner."""
    values = {name: value for name, value in vars(made).items() if name != "name"} | {"at": made.at.isoformat()}
    comment = (MARK + json.dumps(values)).replace("'", "''")
    run_script(connection, [f"COMMENT ON SCHEMA {made.name} IS '{comment}'"])


def find_schemas(connection: Connection) -> list[Made]:
    """Return the schemas of this module, by their names. Reads only."""
    rows = connection.execute(
        text("""SELECT nspname AS name, obj_description(oid, 'pg_namespace') AS comment FROM pg_namespace
                WHERE starts_with(obj_description(oid, 'pg_namespace'), :mark) ORDER BY nspname"""),
        {"mark": MARK},
    )
    schemas = []
    for row in rows:
        values = json.loads(row.comment.removeprefix(MARK))
        schemas.append(Made(name=row.name, **values | {"at": datetime.fromisoformat(values["at"])}))
    return schemas


def find_schema(connection: Connection, name: str) -> Made | None:
    """Return one of the schemas of this module; None where there is none of that name. Reads only."""
    return next((made for made in find_schemas(connection) if made.name == name), None)


def drop_schema(connection: Connection, name: str, *, missing_ok: bool = False) -> None:
    """The schema is gone with all that is in it. Transaction: the caller's, as the owner. Raises Refused for one that is not of this module."""
    if find_schema(connection, name) is None:
        exists = connection.execute(text("SELECT to_regnamespace(:name)"), {"name": name}).scalar()
        if missing_ok and exists is None:
            return
        raise UnknownName(
            f"{name!r} was not made by a rebuild, a switch or a checkpoint. What was made is shown by: payrelay replay drop"
        )
    if name in SERVICES:
        raise ValueError(name)
    run_script(connection, [f'DROP SCHEMA "{name}" CASCADE'])
