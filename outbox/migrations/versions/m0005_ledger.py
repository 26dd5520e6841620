"""The ledger keeps its own rules: a chart of accounts, vouchers for ever, balanced and whole at commit, corrected by reversal.
Payments have fees with fixed part, minimum and cap, and channels that cost.

A voucher says how many lines it has. At commit it has them all and they balance; since no more than these fit, no later
entry can change it. The chart is seeded from what consumers/accounting/entries.py said when this was written: a test holds the two against each other.
"""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    for statements in (CHART, VOUCHERS):
        for statement in statements.split(";"):
            op.execute(statement)
    for function in (IMMUTABLE, ENTRIES_BELONG, VOUCHER_BALANCES, VOUCHER_MIRRORS):
        op.execute(function)
    for statements in (TRIGGERS, FEES):
        for statement in statements.split(";"):
            op.execute(statement)


CHART = """
CREATE TABLE accounting.chart_of_accounts (
  code        text    PRIMARY KEY CHECK (code ~ '^[a-z][a-z_]*$'),
  name        text    NOT NULL,
  normal_side char(1) NOT NULL CHECK (normal_side IN ('D', 'C')),
  floorless   boolean NOT NULL
);
INSERT INTO accounting.chart_of_accounts (code, name, normal_side, floorless) VALUES
  ('bank_clearing',    'what banks have taken for us and will remit', 'D', true),
  ('channel_cost',     'what banks keep of it',                       'D', true),
  ('fee_income',       'what merchants pay us',                       'C', true),
  ('merchant_payable', 'what we owe a merchant',                      'C', false),
  ('suspense',         'money that no order could take',              'C', true);
GRANT SELECT ON accounting.chart_of_accounts TO accounting"""

# Facts told by events have one voucher of a kind; what people post has a reason and who gave it.
VOUCHERS = """
ALTER TABLE accounting.voucher
  ADD COLUMN lines    smallint CHECK (lines >= 2),
  ADD COLUMN reverses bigint   UNIQUE REFERENCES accounting.voucher,
  ADD COLUMN corrects bigint   UNIQUE REFERENCES accounting.voucher,
  ADD COLUMN reason   text     CHECK (reason <> ''),
  ADD COLUMN actor    text     CHECK (actor <> ''),
  ALTER COLUMN event_id DROP NOT NULL,
  DROP CONSTRAINT voucher_kind_check,
  ADD CONSTRAINT voucher_kind_check CHECK (kind IN ('settlement', 'suspense', 'reversal', 'correction')),
  ADD CONSTRAINT voucher_reverses_check CHECK ((kind = 'reversal') = (reverses IS NOT NULL)),
  ADD CONSTRAINT voucher_corrects_check CHECK ((kind = 'correction') = (corrects IS NOT NULL)),
  ADD CONSTRAINT voucher_source_check CHECK (
    CASE WHEN kind IN ('reversal', 'correction') THEN event_id IS NULL AND reason IS NOT NULL AND actor IS NOT NULL
         ELSE event_id IS NOT NULL END);
CREATE UNIQUE INDEX voucher_fact ON accounting.voucher (business_no, kind) WHERE event_id IS NOT NULL;
ALTER TABLE accounting.voucher DROP CONSTRAINT voucher_business_no_kind_key;
ALTER TABLE accounting.entry DROP CONSTRAINT entry_voucher_no_fkey"""

IMMUTABLE = """
CREATE FUNCTION accounting.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'accounting.%: % is refused, vouchers and entries stand for ever', TG_TABLE_NAME, TG_OP
    USING ERRCODE = 'restrict_violation', HINT = 'Correct by reversal: payrelay ledger reverse VOUCHER_NO --reason ...';
END $$"""

# Looks at accounts and vouchers once a statement. Vouchers are never deleted, so it does what a foreign key did row by row.
ENTRIES_BELONG = """
CREATE FUNCTION accounting.entries_belong() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  stray text;
BEGIN
  SELECT code INTO stray FROM (SELECT DISTINCT split_part(account, ':', 1) AS code FROM entered) AS used
  WHERE NOT EXISTS (SELECT FROM accounting.chart_of_accounts AS chart WHERE chart.code = used.code) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'account % is not in the chart of accounts', stray
      USING ERRCODE = 'foreign_key_violation', HINT = 'payrelay ledger accounts lists the chart.';
  END IF;
  SELECT voucher_no INTO stray
  FROM (SELECT voucher_no, min(line) AS first, max(line) AS last FROM entered GROUP BY voucher_no) AS used
       LEFT JOIN accounting.voucher USING (voucher_no)
  WHERE first < 1 OR last > coalesce(lines, 0) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'voucher % takes no such entry: it is not there, or has no room for it', stray
      USING ERRCODE = 'check_violation', HINT = 'A voucher is posted whole, and corrected by reversal.';
  END IF;
  RETURN NULL;
END $$"""

VOUCHER_BALANCES = """
CREATE FUNCTION accounting.voucher_balances() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (SELECT count(*) = NEW.lines AND sum(CASE side WHEN 'D' THEN amount_fen ELSE -amount_fen END) = 0
      FROM accounting.entry WHERE voucher_no = NEW.voucher_no) IS NOT TRUE THEN
    RAISE EXCEPTION 'voucher % of % is not balanced, or not whole', NEW.voucher_no, NEW.business_no
      USING ERRCODE = 'check_violation',
            HINT = 'Its debits must equal its credits, and it must have the lines that it says.';
  END IF;
  RETURN NULL;
END $$"""

VOUCHER_MIRRORS = """
CREATE FUNCTION accounting.voucher_mirrors() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  original accounting.voucher;
BEGIN
  SELECT * INTO original FROM accounting.voucher WHERE voucher_no = coalesce(NEW.reverses, NEW.corrects);
  IF original.kind = 'reversal' OR (original.currency, original.business_no) <> (NEW.currency, NEW.business_no) THEN
    RAISE EXCEPTION 'voucher % cannot be a % of voucher %', NEW.voucher_no, NEW.kind, original.voucher_no
      USING ERRCODE = 'check_violation', HINT = 'It must be of the same business and currency, and no reversal.';
  ELSIF NEW.kind = 'correction' AND NOT EXISTS (SELECT FROM accounting.voucher WHERE reverses = NEW.corrects) THEN
    RAISE EXCEPTION 'voucher % stands: a correction takes the place of a reversed one', NEW.corrects
      USING ERRCODE = 'check_violation', HINT = 'Reverse it first: payrelay ledger reverse VOUCHER_NO --reason ...';
  ELSIF NEW.kind = 'reversal' AND EXISTS (
    (SELECT account, side, amount_fen FROM accounting.entry WHERE voucher_no = NEW.voucher_no
     EXCEPT ALL
     SELECT account, CASE side WHEN 'D' THEN 'C' ELSE 'D' END, amount_fen FROM accounting.entry
     WHERE voucher_no = NEW.reverses)
    UNION ALL
    (SELECT account, CASE side WHEN 'D' THEN 'C' ELSE 'D' END, amount_fen FROM accounting.entry
     WHERE voucher_no = NEW.reverses
     EXCEPT ALL
     SELECT account, side, amount_fen FROM accounting.entry WHERE voucher_no = NEW.voucher_no)) THEN
    RAISE EXCEPTION 'voucher % does not mirror voucher %', NEW.voucher_no, NEW.reverses
      USING ERRCODE = 'check_violation', HINT = 'A reversal has the same entries on the other side.';
  END IF;
  RETURN NULL;
END $$"""

TRIGGERS = """
CREATE TRIGGER voucher_stands BEFORE UPDATE OR DELETE OR TRUNCATE ON accounting.voucher
  EXECUTE FUNCTION accounting.refuse_change();
CREATE TRIGGER entry_stands BEFORE UPDATE OR DELETE OR TRUNCATE ON accounting.entry
  EXECUTE FUNCTION accounting.refuse_change();
CREATE TRIGGER entries_belong AFTER INSERT ON accounting.entry REFERENCING NEW TABLE AS entered
  FOR EACH STATEMENT EXECUTE FUNCTION accounting.entries_belong();
CREATE CONSTRAINT TRIGGER voucher_balances AFTER INSERT ON accounting.voucher DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION accounting.voucher_balances();
CREATE CONSTRAINT TRIGGER voucher_mirrors AFTER INSERT ON accounting.voucher DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (NEW.reverses IS NOT NULL OR NEW.corrects IS NOT NULL)
  EXECUTE FUNCTION accounting.voucher_mirrors()"""

# Below 10^12 fen each, so that a rule's words fit into the event.
FEES = """
ALTER TABLE payments.merchant
  ADD COLUMN fee_fixed_fen bigint NOT NULL DEFAULT 0 CHECK (fee_fixed_fen BETWEEN 0 AND 999999999999),
  ADD COLUMN fee_min_fen   bigint NOT NULL DEFAULT 0 CHECK (fee_min_fen BETWEEN 0 AND 999999999999),
  ADD COLUMN fee_cap_fen   bigint CHECK (fee_cap_fen BETWEEN fee_min_fen AND 999999999999);
GRANT SELECT (fee_fixed_fen, fee_min_fen, fee_cap_fen) ON payments.merchant TO ops;
CREATE TABLE payments.channel (
  channel        text    PRIMARY KEY,
  cost_rate_bp   integer NOT NULL DEFAULT 0 CHECK (cost_rate_bp BETWEEN 0 AND 10000),
  cost_fixed_fen bigint  NOT NULL DEFAULT 0 CHECK (cost_fixed_fen BETWEEN 0 AND 999999999999),
  cost_min_fen   bigint  NOT NULL DEFAULT 0 CHECK (cost_min_fen BETWEEN 0 AND 999999999999),
  cost_cap_fen   bigint  CHECK (cost_cap_fen BETWEEN cost_min_fen AND 999999999999)
);
INSERT INTO payments.channel (channel) VALUES ('bank_card');
GRANT SELECT, INSERT, UPDATE ON payments.channel TO payments;
ALTER TABLE payments.payment ADD COLUMN cost_fen bigint CHECK (cost_fen >= 0)"""
