"""The notifier: queues with their rules, records with their states, lanes, logs, postponements, an audit table.

A lane is one receiver's part of a queue. Its `ready_at` is when it is worth a look, so that what a claim costs does not
depend on what is blocked. It is never later than the truth: whoever makes a record due writes a wake row in the same
transaction, and the next claim takes it in.
"""

from alembic import op

revision = "0011"
down_revision = "0010"

SEED_RULE = '{"1":0,"2":1,"3":2,"4":5,"5":15}'
STATUSES = "'CREATED', 'HTTP_REQUEST_SUCCESS', 'HTTP_REQUEST_FAILED', 'SUCCESS', 'FAILED'"


def upgrade() -> None:
    for statement in (RECEIVER_AND_RECORD + REST).split(";\n"):
        op.get_bind().exec_driver_sql(statement)  # as it stands: a rule's colons name no parameter
    guard_and_grant("notification")


def guard_and_grant(schema: str) -> None:
    """The schema's notifier tables refuse what cannot be, are vacuumed often, and its role may do with them what it needs."""
    for statement in GRANTS.replace("SCHEMA", schema).split(";\n"):
        op.execute(statement)
    for function in (POSSIBLE, UNCHANGED):
        op.execute(function.replace("SCHEMA", schema))
    op.execute(f"""
        CREATE TRIGGER possible BEFORE UPDATE OF status, attempts, rule_begin, id, queue, event_id, body, rule ON {schema}.notify_record
        FOR EACH ROW EXECUTE FUNCTION {schema}.refuse_impossible_status()""")
    op.execute(f"""
        CREATE TRIGGER unchanged BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.notify_audit
        FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_notify_audit_change()""")


RECEIVER_AND_RECORD = f"""
ALTER TABLE notification.receiver
  ADD COLUMN old_secret text,
  ADD COLUMN old_secret_until timestamptz,
  ADD CONSTRAINT receiver_old_secret_check CHECK ((old_secret IS NULL) = (old_secret_until IS NULL));
DROP INDEX notification.notify_record_due;
ALTER TABLE notification.notify_record
  DROP CONSTRAINT notify_record_status_check,
  DROP CONSTRAINT notify_record_check,
  DROP COLUMN claimed_until,
  ADD COLUMN rule         text        NOT NULL DEFAULT '{SEED_RULE}' CHECK (octet_length(rule) <= 4096),
  ADD COLUMN rule_begin   integer     NOT NULL DEFAULT 0 CHECK (rule_begin >= 0),
  ADD COLUMN planned_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  ADD COLUMN postponed    boolean     NOT NULL DEFAULT false,
  ADD COLUMN leased_until timestamptz,
  ADD COLUMN http_status  integer,
  ADD CONSTRAINT notify_record_status_check CHECK (status IN ({STATUSES})),
  ADD CONSTRAINT notify_record_finished_check CHECK ((status IN ('SUCCESS', 'FAILED')) = (finished_at IS NOT NULL)),
  ADD CONSTRAINT notify_record_lease_check CHECK (finished_at IS NULL OR leased_until IS NULL);
UPDATE notification.notify_record SET rule_begin = attempts;
ALTER TABLE notification.notify_record
  ALTER COLUMN rule DROP DEFAULT,
  ALTER COLUMN planned_at DROP DEFAULT,
  ADD CONSTRAINT notify_record_begun_check CHECK (rule_begin <= attempts);
CREATE INDEX notify_record_waiting ON notification.notify_record (queue, merchant_no, planned_at, id)
  WHERE leased_until IS NULL AND finished_at IS NULL;
CREATE INDEX notify_record_leased ON notification.notify_record (queue, merchant_no) WHERE leased_until IS NOT NULL;
CREATE INDEX notify_record_failed ON notification.notify_record (id) WHERE status = 'FAILED';
CREATE INDEX notify_record_feed ON notification.notify_record (merchant_no, id);
CREATE INDEX notify_record_order ON notification.notify_record (order_no);
"""  # noqa: S608 - constants of ours

REST = f"""
CREATE TABLE notification.notify_queue (
  queue                  text             PRIMARY KEY CHECK (queue <> ''),
  rule                   text             NOT NULL CHECK (octet_length(rule) <= 4096),
  success_word           text             NOT NULL DEFAULT 'success' CHECK (length(success_word) BETWEEN 1 AND 64),
  in_flight_max          integer          NOT NULL DEFAULT 100 CHECK (in_flight_max BETWEEN 1 AND 1000),
  receiver_in_flight_max integer          NOT NULL DEFAULT 10 CHECK (receiver_in_flight_max BETWEEN 1 AND 1000),
  breaker_failures       integer          NOT NULL DEFAULT 5 CHECK (breaker_failures > 0),
  breaker_first_s        double precision NOT NULL DEFAULT 30 CHECK (breaker_first_s > 0),
  breaker_cap_s          double precision NOT NULL DEFAULT 600 CHECK (breaker_cap_s >= breaker_first_s),
  retry_after_cap_s      double precision NOT NULL DEFAULT 3600 CHECK (retry_after_cap_s >= 0),
  private_receivers      boolean          NOT NULL DEFAULT false
);
INSERT INTO notification.notify_queue (queue, rule) VALUES ('merchant', '{SEED_RULE}');
CREATE TABLE notification.notify_lane (
  queue         text        NOT NULL,
  merchant_no   text        NOT NULL,
  ready_at      timestamptz,
  failures      integer     NOT NULL DEFAULT 0 CHECK (failures >= 0),
  opened_at     timestamptz,
  blocked_until timestamptz,
  blocked_cause text        CHECK (blocked_cause IN ('BREAKER', 'RETRY_AFTER')),
  crowded       boolean     NOT NULL DEFAULT false,
  freed_at      timestamptz,
  paused_at     timestamptz,
  resumed_at    timestamptz,
  PRIMARY KEY (queue, merchant_no),
  CONSTRAINT notify_lane_blocked_check CHECK ((blocked_until IS NULL) = (blocked_cause IS NULL))
) WITH (fillfactor = 50);
CREATE INDEX notify_lane_ready ON notification.notify_lane (queue, ready_at);
CREATE TABLE notification.notify_wake (
  queue       text        NOT NULL,
  merchant_no text        NOT NULL,
  planned_at  timestamptz NOT NULL
);
INSERT INTO notification.notify_wake (queue, merchant_no, planned_at)
  SELECT queue, merchant_no, min(planned_at) FROM notification.notify_record
  WHERE finished_at IS NULL GROUP BY queue, merchant_no;
CREATE TABLE notification.notify_record_log (
  id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  record_id   uuid        NOT NULL,
  attempt     integer     NOT NULL CHECK (attempt > 0),
  queue       text        NOT NULL,
  merchant_no text        NOT NULL,
  planned_at  timestamptz NOT NULL,
  postponed   boolean     NOT NULL,
  started_at  timestamptz NOT NULL,
  ended_at    timestamptz NOT NULL,
  url         text        NOT NULL,
  result      text        NOT NULL CHECK (result IN ('SUCCESS', 'HTTP_REQUEST_SUCCESS', 'HTTP_REQUEST_FAILED')),
  http_status integer,
  response    text        NOT NULL,
  error       text        NOT NULL,
  counted     boolean     NOT NULL,
  CHECK (ended_at >= started_at)
);
CREATE INDEX notify_record_log_record ON notification.notify_record_log (record_id, id);
CREATE INDEX notify_record_log_started ON notification.notify_record_log USING brin (started_at);
CREATE TABLE notification.notify_postponement (
  id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  record_id    uuid        NOT NULL,
  attempt      integer     NOT NULL CHECK (attempt > 0),
  cause        text        NOT NULL CHECK (cause IN ('PAUSE', 'BREAKER', 'RETRY_AFTER', 'BOUND', 'LEASE', 'RESEND')),
  planned_at   timestamptz NOT NULL,
  postponed_to timestamptz NOT NULL,
  made_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX notify_postponement_record ON notification.notify_postponement (record_id, id);
CREATE TABLE notification.notify_audit (
  id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  action      text        NOT NULL CHECK (action IN ('RESEND', 'PAUSE', 'RESUME', 'RULE')),
  queue       text        NOT NULL,
  merchant_no text,
  record_id   uuid,
  outcome     text        NOT NULL,
  reason      text        NOT NULL,
  actor       text        NOT NULL CHECK (actor <> ''),
  role        text        NOT NULL DEFAULT session_user,
  acted_at    timestamptz NOT NULL DEFAULT clock_timestamp()
)"""  # noqa: S608 - constants of ours

GRANTS = """
GRANT SELECT, INSERT, UPDATE ON SCHEMA.notify_queue, SCHEMA.notify_lane TO SCHEMA;
GRANT SELECT, INSERT, DELETE ON SCHEMA.notify_wake TO SCHEMA;
GRANT UPDATE ON SCHEMA.notify_wake TO SCHEMA;
GRANT SELECT, INSERT ON SCHEMA.notify_record_log, SCHEMA.notify_postponement TO SCHEMA;
GRANT INSERT (action, queue, merchant_no, record_id, outcome, reason, actor) ON SCHEMA.notify_audit TO SCHEMA;
ALTER TABLE SCHEMA.notify_record SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1);
ALTER TABLE SCHEMA.notify_wake SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500)"""
# FOR UPDATE SKIP LOCKED on a wake row needs UPDATE beside DELETE.

POSSIBLE = """
CREATE FUNCTION SCHEMA.refuse_impossible_status() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN
  IF (NEW.id, NEW.queue, NEW.event_id, NEW.body, NEW.rule)
     IS DISTINCT FROM (OLD.id, OLD.queue, OLD.event_id, OLD.body, OLD.rule) THEN
    RAISE EXCEPTION 'notify_record %: id, queue, event, body and rule stay as they were made', OLD.id
      USING ERRCODE = 'check_violation';
  END IF;
  -- Sent again: whatever it was, its rule begins anew. Otherwise an attempt has ended, which finished records have none of.
  IF NEW.status = 'CREATED' AND NEW.attempts = OLD.attempts AND OLD.leased_until IS NULL
     AND NEW.rule_begin = OLD.attempts THEN
    RETURN NEW;
  END IF;
  IF NEW.status <> 'CREATED' AND OLD.finished_at IS NULL AND NEW.attempts = OLD.attempts + 1
     AND NEW.rule_begin = OLD.rule_begin THEN
    RETURN NEW;
  END IF;
  IF NEW.status = OLD.status AND NEW.attempts = OLD.attempts AND NEW.rule_begin = OLD.rule_begin THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION 'notify_record %: % after % attempts cannot become % after %',
    OLD.id, OLD.status, OLD.attempts, NEW.status, NEW.attempts
    USING ERRCODE = 'check_violation', HINT = 'docs/states.md draws what can';
END $f$"""

UNCHANGED = """
CREATE FUNCTION SCHEMA.refuse_notify_audit_change() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN RAISE EXCEPTION 'rows of SCHEMA.notify_audit are never changed'; END $f$"""
