"""A schema's tables made again under another name, as the catalog describes them: without rows, or with rows that come in between.

A rebuild's shadow is one, and the kernel's tables of a new service are another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

_TABLES = text("""
    SELECT pg_class.oid, relname AS name, reloptions AS options, pg_get_partkeydef(pg_class.oid) AS divided FROM pg_class
    WHERE relnamespace = CAST(:schema AS regnamespace) AND relkind IN ('r', 'p') AND NOT relispartition
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
    WHERE pronamespace = CAST(:schema AS regnamespace) AND prokind = 'f'
      AND (:all_functions OR oid IN (SELECT tgfoid FROM pg_trigger WHERE tgrelid = ANY(CAST(:oids AS oid[]))))
    ORDER BY oid""")

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


def tables_in(connection: Connection, schema: str, names: Sequence[str] = ()) -> list[Row[Any]]:
    """Return a schema's tables, or those of these names only. Reads only."""
    return [table for table in connection.execute(_TABLES, {"schema": schema}) if not names or table.name in names]


def bare_tables(schema: str, to: str, tables: Sequence[Row[Any]], *, divided: bool) -> Iterator[str]:
    """Give the statements that make the tables without indexes, constraints and triggers. Divided: into partitions, as they are there."""
    for table in tables:
        how = f" PARTITION BY {table.divided}" if divided and table.divided else ""
        yield (
            f'CREATE TABLE {to}."{table.name}" '
            f'(LIKE {schema}."{table.name}" INCLUDING ALL EXCLUDING INDEXES EXCLUDING CONSTRAINTS){how}'
        )
        if table.options:
            yield f'ALTER TABLE {to}."{table.name}" SET ({", ".join(table.options)})'


def finished_tables(
    connection: Connection,
    schema: str,
    to: str,
    tables: Sequence[Row[Any]],
    *,
    role: Callable[[str], str | None],
    all_functions: bool,
) -> Iterator[str]:
    """Give the statements that make of bare tables what the others are.

    `role` says who gets what a role may do there; None: nobody. All functions of the schema come along, or those of the triggers.
    """
    moved = re.compile(rf"\b{schema}\.")
    names = {table.oid: table.name for table in tables}
    about = {"oids": list(names), "schema": schema, "all_functions": all_functions}

    def moved_statement(statement: str) -> str:
        return moved.sub(f"{to}.", statement)

    for row in connection.execute(_INDEXES, about):
        yield moved_statement(row.made)
    for types in (["c", "p", "u", "x"], ["f"]):  # a foreign key needs the other's primary key
        for row in connection.execute(_CONSTRAINTS, {**about, "types": types}):
            yield f'ALTER TABLE {to}."{names[row.oid]}" {moved_statement(row.made)}'
    for statement in (_FUNCTIONS, _TRIGGERS):
        for row in connection.execute(statement, about):
            yield moved_statement(row.made)
    for row in connection.execute(_GRANTS, about):
        if (grantee := role(row.role)) is not None:
            yield f'GRANT {row.privilege} {row.part} ON {to}."{row.name}" TO {grantee}'


def run_script(connection: Connection, statements: Iterable[str]) -> None:
    """The statements have run as they stand, in one go: function bodies hold signs that a parser of parameters would take for its own."""
    if script := ";\n".join(statements):
        connection.connection.cursor().execute(script)
