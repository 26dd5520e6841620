"""The parking lot's way out: retry and skip, each with a row in an audit table that nobody changes."""

from alembic import op

revision = "0007"
down_revision = "0004"

SERVICES = ("shop", "payments", "bank", "funds", "points", "accounting", "notification")


def upgrade() -> None:
    for service in SERVICES:
        _lot(service)
    # Purged by age; nearly free for the insert, which comes in the order of time.
    op.execute("CREATE INDEX bank_notification_received ON payments.bank_notification USING brin (received_at)")


def _lot(service: str) -> None:
    op.execute(f"GRANT DELETE, UPDATE (cause, error, attempts) ON {service}.parked TO {service}")
    # A key's events in the order in which they came, however many wait.
    op.execute(f"DROP INDEX {service}.parked_key")
    op.execute(f"CREATE INDEX parked_key ON {service}.parked (consumer, sha256(key), id)")
    op.execute(f"""
        CREATE TABLE {service}.parked_audit (
          id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          action   text        NOT NULL CHECK (action IN ('RETRY', 'SKIP')),
          outcome  text        NOT NULL,
          error    text        NOT NULL,
          reason   text        NOT NULL CHECK (action = 'RETRY' OR reason <> ''),
          actor    text        NOT NULL,
          role     text        NOT NULL DEFAULT session_user,
          event    jsonb       NOT NULL,
          acted_at timestamptz NOT NULL DEFAULT clock_timestamp()
        )""")
    # The role cannot say it was another one, nor at another time.
    op.execute(f"GRANT INSERT (action, outcome, error, reason, actor, event) ON {service}.parked_audit TO {service}")
    op.execute(f"""
        CREATE FUNCTION {service}.refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $f$
        BEGIN RAISE EXCEPTION 'rows of {service}.parked_audit are never changed'; END $f$""")
    op.execute(f"""
        CREATE TRIGGER unchanged BEFORE UPDATE OR DELETE OR TRUNCATE ON {service}.parked_audit
        FOR EACH STATEMENT EXECUTE FUNCTION {service}.refuse_audit_change()""")
