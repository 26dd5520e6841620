"""Acting on everything that matches: what was wanted, by whom, why, and how far it has come; each item names its act."""

from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    for statement in statements("notification"):
        op.execute(statement)


def statements(schema: str) -> list[str]:
    """Return what a notifier's schema needs for acts."""
    return ACTS.replace("SCHEMA", schema).split(";\n")


ACTS = """
CREATE TABLE SCHEMA.notify_act (
  id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  action   text        NOT NULL CHECK (action IN ('RESEND')),
  wanted   jsonb       NOT NULL,
  matched  integer     NOT NULL CHECK (matched >= 0),
  newest   uuid        NOT NULL,
  last     uuid,
  done     integer     NOT NULL DEFAULT 0 CHECK (done >= 0),
  "left"   integer     NOT NULL DEFAULT 0 CHECK ("left" >= 0),
  reason   text        NOT NULL CHECK (reason <> ''),
  actor    text        NOT NULL CHECK (actor <> ''),
  role     text        NOT NULL DEFAULT session_user,
  began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at timestamptz,
  stopped_by text      CHECK (stopped_by <> ''),
  CHECK (stopped_by IS NULL OR ended_at IS NOT NULL)
);
CREATE INDEX notify_act_unfinished ON SCHEMA.notify_act (id) WHERE ended_at IS NULL;
GRANT SELECT, INSERT (action, wanted, matched, newest, reason, actor), UPDATE (last, done, "left", ended_at, stopped_by)
  ON SCHEMA.notify_act TO SCHEMA;
ALTER TABLE SCHEMA.notify_audit ADD COLUMN act_id bigint REFERENCES SCHEMA.notify_act;
GRANT INSERT (act_id) ON SCHEMA.notify_audit TO SCHEMA;
CREATE INDEX notify_audit_act ON SCHEMA.notify_audit (act_id, id) WHERE act_id IS NOT NULL;
CREATE INDEX notify_audit_record ON SCHEMA.notify_audit (record_id) WHERE record_id IS NOT NULL;
CREATE INDEX notify_record_http ON SCHEMA.notify_record (http_status, id) WHERE http_status <> 200"""
# The last is for the filter by HTTP status; a record that was taken at once is not in it.
