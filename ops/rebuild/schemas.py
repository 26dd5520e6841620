"""Schemas beside a service's own: the shadow that a rebuild fills, checkpoints, and what a switch has put aside.

Made from what the catalog says of the live tables: columns, defaults, identity, checks, indexes, foreign keys, storage
parameters, grants and triggers, each under its own name, so that a table can take the live one's place. Trigger functions
name their schema, and are made again with the new one's name. Days of outbox and inbox are not: one table takes all ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from outbox.errors import UnknownName
from outbox.settings import CONNECTOR, READER, SEARCHER, SERVICES

MARK = "payrelay: "
"""What the comment on a schema of this module begins with; no other one is ever dropped."""

_TABLES = text("""
    SELECT pg_class.oid, relname AS name, reloptions AS options FROM pg_class
    WHERE relnamespace = CAST(:service AS regnamespace) AND relkind IN ('r', 'p') AND NOT relispartition
      AND relname !~ '^(outbox|inbox)_\\d{8}$' ORDER BY relname""")

_CONSTRAINTS = text("""
    SELECT conrelid AS oid, format('ADD CONSTRAINT %I %s', conname, pg_get_constraintdef(oid)) AS made FROM pg_constraint
    WHERE conrelid = ANY(CAST(:oids AS oid[])) AND contype = ANY(CAST(:types AS "char"[])) ORDER BY conrelid, conname""")

_INDEXES = text("""
    SELECT replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ') AS made FROM pg_index
    WHERE indrelid = ANY(CAST(:oids AS oid[])) AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
    ORDER BY indexrelid""")

_FUNCTIONS = text("""
    SELECT pg_get_functiondef(oid) AS made FROM pg_proc
    WHERE pronamespace = CAST(:service AS regnamespace) AND prokind = 'f' ORDER BY oid""")

_TRIGGERS = text("""
    SELECT pg_get_triggerdef(oid) AS made FROM pg_trigger
    WHERE tgrelid = ANY(CAST(:oids AS oid[])) AND NOT tgisinternal ORDER BY tgrelid, tgname""")

_GRANTS = text("""
    SELECT relname AS name, privilege_type AS privilege, '' AS part, grantee::regrole::text AS role
    FROM pg_class CROSS JOIN LATERAL aclexplode(relacl)
    WHERE pg_class.oid = ANY(CAST(:oids AS oid[])) AND grantee NOT IN (0, relowner)
    UNION ALL
    SELECT relname, privilege_type, format('(%I)', attname), grantee::regrole::text
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid CROSS JOIN LATERAL aclexplode(attacl)
    WHERE pg_class.oid = ANY(CAST(:oids AS oid[])) AND grantee NOT IN (0, relowner)
    ORDER BY 1, 2, 3, 4""")


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
    existing = connection.execute(_TABLES, {"service": made.service}).all()
    chosen = [table for table in existing if not tables or table.name in tables]
    _execute(connection, _beginning(made, chosen))
    tell(connection, made)
    fill()
    _execute(connection, _rest(connection, made, chosen))


def _beginning(made: Made, chosen: Sequence[object]) -> Iterable[str]:
    yield f"CREATE SCHEMA {made.name}"
    yield f"GRANT USAGE ON SCHEMA {made.name} TO {made.service}, {READER}"
    for table in chosen:
        name, options = table.name, table.options  # type: ignore[attr-defined]
        yield f'CREATE TABLE {made.name}."{name}" (LIKE {made.service}."{name}" INCLUDING ALL EXCLUDING INDEXES EXCLUDING CONSTRAINTS)'
        if options:
            yield f'ALTER TABLE {made.name}."{name}" SET ({", ".join(options)})'


def _rest(connection: Connection, made: Made, chosen: Sequence[object]) -> Iterable[str]:
    """Give the statements that make of bare tables what the live ones are."""
    moved = re.compile(rf"\b{made.service}\.")
    names = {table.oid: table.name for table in chosen}  # type: ignore[attr-defined]
    about = {"oids": list(names), "service": made.service}

    def moved_statement(statement: str) -> str:
        return moved.sub(f"{made.name}.", statement)

    for row in connection.execute(_INDEXES, about):
        yield moved_statement(row.made)
    for types in (["c", "p", "u", "x"], ["f"]):  # a foreign key needs the other's primary key
        for row in connection.execute(_CONSTRAINTS, {**about, "types": types}):
            yield f'ALTER TABLE {made.name}."{names[row.oid]}" {moved_statement(row.made)}'
    for statement in (_FUNCTIONS, _TRIGGERS):
        for row in connection.execute(statement, about):
            yield moved_statement(row.made)
    for row in connection.execute(_GRANTS, about):
        if row.role not in (CONNECTOR, SEARCHER):  # nothing of it is ever published
            yield f'GRANT {row.privilege} {row.part} ON {made.name}."{row.name}" TO {row.role}'


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
    _execute(connection, [f"COMMENT ON SCHEMA {made.name} IS '{comment}'"])


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
    _execute(connection, [f'DROP SCHEMA "{name}" CASCADE'])


def _execute(connection: Connection, statements: Iterable[str]) -> None:
    """Run statements as they stand, in one go: function bodies hold signs that a parser of parameters would take for its own."""
    if script := ";\n".join(statements):
        connection.connection.cursor().execute(script)
