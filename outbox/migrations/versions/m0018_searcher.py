"""A role that reads the outbox tables and nothing else, for conditions that operators write; no messages in PostgreSQL's log.

Temporary tables: it has the server read a condition before it is run, as a view that is never kept.
"""

from alembic import op

revision = "0018"
down_revision = "0017"

SERVICES = ("shop", "payments", "bank", "funds", "points", "accounting", "notification")


def upgrade() -> None:
    database = op.get_bind().exec_driver_sql("SELECT quote_ident(current_database())").scalar_one()
    op.execute("DO $$ BEGIN CREATE ROLE outbox_reader LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    op.execute(f"GRANT CONNECT, TEMPORARY ON DATABASE {database} TO outbox_reader")
    for service in SERVICES:
        op.execute(f"GRANT USAGE ON SCHEMA {service} TO outbox_reader")
        op.execute(f"GRANT SELECT ON {service}.outbox TO outbox_reader")
    op.execute(WITHDRAWN)


# Every overload: they differ between versions of PostgreSQL. An owner who may not withdraw it leaves it as it was.
WITHDRAWN = """
    DO $$
    DECLARE emitter regprocedure;
    BEGIN
      FOR emitter IN SELECT oid FROM pg_proc
                     WHERE proname = 'pg_logical_emit_message' AND pronamespace = 'pg_catalog'::regnamespace LOOP
        BEGIN
          EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', emitter);
        EXCEPTION WHEN insufficient_privilege THEN NULL;
        END;
      END LOOP;
    END $$"""
