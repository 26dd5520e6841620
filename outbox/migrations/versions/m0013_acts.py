"""Acting on everything that matches: what was wanted, by whom, why, and how far it has come; each item names its act.

An act that meets several services' records has a row in each, under one id.
"""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    for schema in ("notification", "bank"):
        for statement in ACTS.replace("SCHEMA", schema).split(";\n"):
            op.execute(statement)


ACTS = """
CREATE TABLE SCHEMA.notify_act (
  id         uuid        PRIMARY KEY,
  action     text        NOT NULL CHECK (action IN ('RESEND')),
  wanted     jsonb       NOT NULL,
  matched    integer     NOT NULL CHECK (matched > 0),
  newest     uuid        NOT NULL,
  last       uuid,
  done       integer     NOT NULL DEFAULT 0 CHECK (done >= 0),
  busy       integer     NOT NULL DEFAULT 0 CHECK (busy >= 0),
  reason     text        NOT NULL CHECK (reason <> ''),
  actor      text        NOT NULL CHECK (actor <> ''),
  role       text        NOT NULL DEFAULT session_user,
  began_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at   timestamptz,
  stopped_by text        CHECK (stopped_by <> ''),
  CHECK (stopped_by IS NULL OR ended_at IS NOT NULL)
);
CREATE INDEX notify_act_unfinished ON SCHEMA.notify_act (id) WHERE ended_at IS NULL;
GRANT SELECT, INSERT (id, action, wanted, matched, newest, reason, actor), UPDATE (last, done, busy, ended_at, stopped_by)
  ON SCHEMA.notify_act TO SCHEMA;
ALTER TABLE SCHEMA.notify_audit ADD COLUMN act_id uuid REFERENCES SCHEMA.notify_act;
GRANT INSERT (act_id) ON SCHEMA.notify_audit TO SCHEMA;
CREATE INDEX notify_audit_act ON SCHEMA.notify_audit (act_id, id) WHERE act_id IS NOT NULL;
CREATE INDEX notify_audit_record ON SCHEMA.notify_audit (record_id) WHERE record_id IS NOT NULL;
CREATE INDEX notify_record_http ON SCHEMA.notify_record (http_status, id) WHERE http_status <> 200"""
# The last is for the filter by HTTP status; a record that was taken at once is not in it.
