"""Messages written straight into PostgreSQL's log: nobody needs them here, and any role may write them by default.

The connector passes over them, which is what protects it (connect/connector.py). That the roles cannot write them comes on top.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

EMITTERS = text("""
    SELECT CAST(oid AS regprocedure) AS emitter FROM pg_proc
    WHERE proname = 'pg_logical_emit_message' AND pronamespace = CAST('pg_catalog' AS regnamespace)
      AND EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) AS granted
                  WHERE granted.grantee = 0 AND granted.privilege_type = 'EXECUTE')
    ORDER BY oid""")


def public_emitters(connection: Connection) -> list[str]:
    """Return the functions that write such messages and that every role may execute, with their arguments' types."""
    return [str(emitter) for emitter in connection.execute(EMITTERS).scalars()]


def withdraw_messages(connection: Connection) -> None:
    """No role may write such messages any more, where the caller may decide that; else it is as it was.

    Transaction: the caller's. May be repeated. Whoever owns the functions may, and a superuser.
    """
    for emitter in public_emitters(connection):
        connection.execute(text(WITHDRAWN.format(emitter=emitter)))


WITHDRAWN = """
    DO $$ BEGIN REVOKE EXECUTE ON FUNCTION {emitter} FROM PUBLIC; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$"""
