"""What the reconciler remembers: up to where all is looked at, and what is open. The only rows that `ops` writes.

And corrections of funds and points: rows of their own, beside what they correct, with a reason and who gave it.
"""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    for statements in (STATE, CORRECTIONS):
        for statement in statements.split(";"):
            op.execute(statement)


STATE = """
CREATE SCHEMA reconcile;
GRANT USAGE ON SCHEMA reconcile TO ops;
CREATE TABLE reconcile.checkpoint (
  one    boolean     PRIMARY KEY DEFAULT true CHECK (one),
  upto   timestamptz NOT NULL,
  ran_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE reconcile.finding (
  id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind        text        NOT NULL,
  service     text        NOT NULL,
  consumer    text        NOT NULL,
  event_id    uuid,
  type        text        NOT NULL,
  key         text        NOT NULL,
  order_no    text        NOT NULL,
  business_no text        NOT NULL,
  effect      text        NOT NULL,
  place       text        NOT NULL,
  found       text        NOT NULL,
  first_seen  timestamptz NOT NULL DEFAULT clock_timestamp(),
  last_seen   timestamptz NOT NULL DEFAULT clock_timestamp(),
  closed_at   timestamptz
);
CREATE UNIQUE INDEX finding_open ON reconcile.finding
  (kind, consumer, coalesce(event_id, '00000000-0000-0000-0000-000000000000'), business_no, effect) WHERE closed_at IS NULL;
GRANT SELECT, INSERT, UPDATE ON reconcile.checkpoint, reconcile.finding TO ops"""

# NOT VALID: what stands was checked when it was entered, by narrower rules.
CORRECTIONS = """
ALTER TABLE funds.entry
  ADD COLUMN reason text CHECK (reason <> ''),
  ADD COLUMN actor  text CHECK (actor <> ''),
  DROP CONSTRAINT entry_kind_check,
  ADD CONSTRAINT entry_kind_check CHECK (kind IN ('credit', 'debit', 'deposit', 'correction')) NOT VALID,
  DROP CONSTRAINT entry_amount_fen_check,
  ADD CONSTRAINT entry_amount_fen_check CHECK (amount_fen >= 0 OR kind = 'correction') NOT VALID,
  ADD CONSTRAINT entry_source_check CHECK ((kind = 'correction') = (reason IS NOT NULL AND actor IS NOT NULL)) NOT VALID;
ALTER TABLE points.entry
  ADD COLUMN reason text CHECK (reason <> ''),
  ADD COLUMN actor  text CHECK (actor <> ''),
  DROP CONSTRAINT entry_kind_check,
  ADD CONSTRAINT entry_kind_check CHECK (kind IN ('earn', 'correction')) NOT VALID,
  DROP CONSTRAINT entry_points_check,
  ADD CONSTRAINT entry_points_check CHECK (points >= 0 OR kind = 'correction') NOT VALID,
  ADD CONSTRAINT entry_source_check CHECK ((kind = 'correction') = (reason IS NOT NULL AND actor IS NOT NULL)) NOT VALID"""
