"""Balance payments: payers' accounts with a floor, deposits, and payments that wait for funds' answer."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    for statements in (PAYMENTS, FUNDS, ACCOUNTING):
        for statement in statements.split(";"):
            op.execute(statement)


# No merchant may bear the name of a payer's account in funds. A payment that is PAYING does not expire.
PAYMENTS = """
ALTER TABLE payments.merchant ADD CONSTRAINT merchant_no_check CHECK (merchant_no NOT LIKE 'payer:%');
INSERT INTO payments.channel (channel) VALUES ('balance');
ALTER TABLE payments.channel ADD CONSTRAINT channel_balance_check
  CHECK (channel <> 'balance' OR (cost_rate_bp, cost_fixed_fen, cost_min_fen) = (0, 0, 0));
ALTER TABLE payments.payment
  ADD COLUMN method text NOT NULL DEFAULT 'bank_card' REFERENCES payments.channel,
  DROP CONSTRAINT payment_status_check,
  ADD CONSTRAINT payment_status_check CHECK (status IN ('CREATED', 'PAYING', 'SETTLED', 'FAILED', 'EXPIRED')),
  DROP CONSTRAINT payment_check,
  ADD CONSTRAINT payment_finished_check CHECK ((status IN ('CREATED', 'PAYING')) = (finished_at IS NULL)),
  DROP CONSTRAINT payment_check2,
  ADD CONSTRAINT payment_bank_check CHECK (CASE WHEN method = 'balance' THEN bank_transaction_no IS NULL
    ELSE status <> 'PAYING' AND (status NOT IN ('SETTLED', 'FAILED') OR bank_transaction_no IS NOT NULL) END)"""

FUNDS = """
ALTER TABLE funds.account
  ADD COLUMN floor_fen bigint,
  ADD CONSTRAINT account_floor_check CHECK (balance_fen >= floor_fen);
ALTER TABLE funds.entry
  DROP CONSTRAINT entry_kind_check,
  ADD CONSTRAINT entry_kind_check CHECK (kind IN ('credit', 'debit', 'deposit'));
CREATE TABLE funds.balance_payment (
  payment_no text    PRIMARY KEY,
  event_id   uuid    NOT NULL,
  paid       boolean NOT NULL
);
CREATE TABLE funds.deposit (
  deposit_no   text        PRIMARY KEY,
  payer_no     text        NOT NULL,
  amount_fen   bigint      NOT NULL CHECK (amount_fen > 0),
  currency     text        NOT NULL,
  deposited_at timestamptz NOT NULL
);
GRANT SELECT, INSERT ON funds.balance_payment, funds.deposit TO funds;
ALTER TABLE funds.outbox DROP CONSTRAINT outbox_topic_is_own;
ALTER TABLE funds.outbox ADD CONSTRAINT outbox_topic_is_own CHECK (topic IN ('funds.transfer')) NOT VALID"""

ACCOUNTING = """
INSERT INTO accounting.chart_of_accounts (code, name, normal_side, floorless) VALUES
  ('payer_balance', 'what we hold for a payer', 'C', false);
ALTER TABLE accounting.voucher
  DROP CONSTRAINT voucher_kind_check,
  ADD CONSTRAINT voucher_kind_check CHECK (kind IN ('settlement', 'suspense', 'deposit', 'reversal', 'correction'))"""
