"""How fast a receiver was the last time: prompt ones and all others have places of their own. A SUCCESS that comes late counts.

A lane without a pace is not known to answer; so are all when this is applied, until their next attempt. The index over both
kinds stays for senders of the version before.
"""

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    for schema in ("notification", "bank"):
        op.execute(f"ALTER TABLE {schema}.notify_lane ADD COLUMN pace text CHECK (pace IN ('PROMPT', 'SLOW'))")
        op.execute(f"""
            CREATE INDEX notify_lane_ready_prompt ON {schema}.notify_lane (queue, ready_at) WHERE pace = 'PROMPT'""")
        op.execute(f"""
            CREATE INDEX notify_lane_ready_other ON {schema}.notify_lane (queue, ready_at)
            WHERE pace IS DISTINCT FROM 'PROMPT'""")
        op.execute(POSSIBLE.replace("SCHEMA", schema))


POSSIBLE = """
CREATE OR REPLACE FUNCTION SCHEMA.refuse_impossible_status() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN
  IF (NEW.id, NEW.queue, NEW.event_id, NEW.body, NEW.rule)
     IS DISTINCT FROM (OLD.id, OLD.queue, OLD.event_id, OLD.body, OLD.rule) THEN
    RAISE EXCEPTION 'notify_record %: id, queue, event, body and rule stay as they were made', OLD.id
      USING ERRCODE = 'check_violation';
  END IF;
  -- Sent again: whatever it was, its rule begins anew. Otherwise an attempt has ended, which finished records have none of,
  -- but for a SUCCESS that could not be written down before the record was given up.
  IF NEW.status = 'CREATED' AND NEW.attempts = OLD.attempts AND OLD.leased_until IS NULL
     AND NEW.rule_begin = OLD.attempts THEN
    RETURN NEW;
  END IF;
  IF NEW.status <> 'CREATED' AND NEW.attempts = OLD.attempts + 1 AND NEW.rule_begin = OLD.rule_begin
     AND (OLD.finished_at IS NULL OR OLD.status = 'FAILED' AND NEW.status = 'SUCCESS') THEN
    RETURN NEW;
  END IF;
  IF NEW.status = OLD.status AND NEW.attempts = OLD.attempts AND NEW.rule_begin = OLD.rule_begin THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION 'notify_record %: % after % attempts cannot become % after %',
    OLD.id, OLD.status, OLD.attempts, NEW.status, NEW.attempts
    USING ERRCODE = 'check_violation', HINT = 'docs/states.md draws what can';
END $f$"""
