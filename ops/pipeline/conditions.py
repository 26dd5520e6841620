"""A condition in SQL that an operator writes: read by the server before it runs, and refused if it calls what may have an effect.

Neither a role's privileges nor a read-only transaction keep a condition from everything: whatever every role may execute it may
call, and some of that writes (messages into the log, large objects, another server through dblink). So the server parses the
condition, as a temporary view that is rolled back and never run, and each function in it is looked up: it must be PostgreSQL's
own, and promise to change nothing.
"""

from __future__ import annotations

import re

import psycopg
from sqlalchemy import Connection, Engine, text

from outbox.errors import Refused, Unreachable, message_of

OURS_FROM = 16_384
"""PostgreSQL's own objects have smaller ids: FirstNormalObjectId in src/include/access/transam.h."""

_FUNCTION = re.compile(r":(?:funcid|aggfnoid|winfnoid|tsmhandler) (\d+)")
_OPERATOR = re.compile(r":(?:opno|eqop|sortop) (\d+)")
_OPERATORS = re.compile(r":opnos \(o ([\d ]+)\)")
_TYPE = re.compile(r":(?:resulttype|consttype|vartype|funcresulttype|elemtypeid|typeId) (\d+)")
_RELATION = re.compile(r":relid (\d+)")

_NAMED = text("""
    SELECT DISTINCT CAST(pg_proc.oid AS regprocedure) AS called
    FROM pg_proc
    WHERE (pg_proc.oid = ANY(CAST(:functions AS oid[]))
           OR pg_proc.oid IN (SELECT oprcode FROM pg_operator WHERE oid = ANY(CAST(:operators AS oid[]))))
      AND (provolatile = 'v' OR pg_proc.oid >= :ours)
    ORDER BY 1""")

_OTHERS = text("""
    SELECT DISTINCT CAST(oid AS regclass) AS name FROM pg_class
    WHERE oid = ANY(CAST(:relations AS oid[])) AND oid >= :ours AND relkind NOT IN ('r', 'p') AND relname <> :view
    ORDER BY 1""")

VIEW = "payrelay_condition"


def require_harmless(engine: Engine, table: str, condition: str) -> None:
    """The condition on a table's rows calls only functions of PostgreSQL's that change nothing. Nothing is run.

    Raises Refused, naming what it calls, or for what is no condition. The role needs to read the table, and TEMPORARY.
    """
    with engine.connect() as connection, connection.begin() as transaction:
        tree = _parsed(connection, table, condition)
        called = _changing(connection, tree)
        transaction.rollback()
    if called:
        raise Refused(
            f"the condition calls {', '.join(called)}, which may have an effect beyond reading. Use only PostgreSQL's own functions "
            "that are stable or immutable, e.g. now() instead of clock_timestamp()"
        )


def _parsed(connection: Connection, table: str, condition: str) -> str:
    """Return the condition as PostgreSQL has parsed it: a node tree in which each function has its id."""
    cursor = connection.connection.cursor()
    try:
        # Prepared, it is one statement to the server, whatever it holds.
        cursor.execute(  # type: ignore[call-arg]
            f"CREATE TEMPORARY VIEW {VIEW} AS SELECT id FROM {table} WHERE ({condition}\n)",  # noqa: S608 - never run
            prepare=True,
        )
    except psycopg.Error as error:
        if error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
            raise Unreachable(f"PostgreSQL does not answer: {message_of(error)}") from error
        raise Refused(f"the condition is not valid SQL: {message_of(error)}") from error
    parsed = text("SELECT ev_action FROM pg_rewrite WHERE ev_class = CAST(:view AS regclass)")
    return str(connection.execute(parsed, {"view": f"pg_temp.{VIEW}"}).scalar_one())


def _changing(connection: Connection, tree: str) -> list[str]:
    """Return what the tree calls that is not PostgreSQL's own or may change something; somebody's types and views call theirs."""
    operators = [
        *_OPERATOR.findall(tree),
        *(operator for many in _OPERATORS.findall(tree) for operator in many.split()),
    ]
    about = {"functions": _FUNCTION.findall(tree), "operators": operators, "ours": OURS_FROM}
    called = [str(name) for name in connection.execute(_NAMED, about).scalars()]
    types = sorted({oid for oid in _TYPE.findall(tree) if int(oid) >= OURS_FROM})
    others = connection.execute(
        _OTHERS, {"relations": _RELATION.findall(tree), "view": VIEW, "ours": OURS_FROM}
    ).scalars()
    return [*called, *(f"type {oid}" for oid in types), *(f"{name}, which is no table" for name in others)]
