"""Every record is a CloudEvent: its specversion is a column, and none of its headers is null.

A version before this one writes rows without causation and traceparent: the trigger fills them, until no such version runs.
The rows kept from before are filled by 0015, in transactions of its own.
"""

from alembic import op

revision = "0014"
down_revision = "0013"

SERVICES = ("shop", "payments", "bank", "funds", "points", "accounting", "notification")


def upgrade() -> None:
    op.execute(FILL)
    for service in SERVICES:
        op.execute(f"ALTER TABLE {service}.outbox ADD COLUMN specversion text NOT NULL DEFAULT '1.0'")
        op.execute(f"""
            CREATE TRIGGER outbox_fill BEFORE INSERT ON {service}.outbox
              FOR EACH ROW WHEN (NEW.causation IS NULL OR NEW.traceparent IS NULL)
              EXECUTE FUNCTION connect.fill_headers()""")


# W3C trace context, as outbox/record.py makes it: the order's trace by its hash, a span of the event's own, not sampled.
TRACEPARENT = """'00-' || left(encode(sha256(convert_to({row}correlation, 'UTF8')), 'hex'), 32)
    || '-' || left(encode(sha256(uuid_send({row}id)), 'hex'), 16) || '-00'"""

FILL = f"""
CREATE FUNCTION connect.fill_headers() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $f$
BEGIN
  NEW.causation := coalesce(NEW.causation, NEW.correlation);
  NEW.traceparent := coalesce(NEW.traceparent, {TRACEPARENT.format(row="NEW.")});
  RETURN NEW;
END $f$"""
