"""The services' own rows. Tables refuse the impossible; docs/states.md draws the states."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for statements in (PAYMENTS, BANK, FUNDS, POINTS, ACCOUNTING, NOTIFICATION):
        for statement in statements.split(";"):
            op.execute(statement)


PAYMENTS = """
CREATE TABLE payments.merchant (
  merchant_no text        PRIMARY KEY,
  api_key     text        NOT NULL UNIQUE,
  secret      text        NOT NULL,
  fee_rate_bp integer     NOT NULL CHECK (fee_rate_bp BETWEEN 0 AND 10000),
  created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE payments.account (
  payer_no          text    PRIMARY KEY,
  bank_account_no   text    NOT NULL,
  single_limit_fen  bigint  NOT NULL CHECK (single_limit_fen >= 0),
  daily_limit_fen   bigint  NOT NULL CHECK (daily_limit_fen >= 0),
  monthly_limit_fen bigint  NOT NULL CHECK (monthly_limit_fen >= 0),
  open              boolean NOT NULL DEFAULT true
);
CREATE TABLE payments.limit_use (
  payer_no text   NOT NULL REFERENCES payments.account,
  day      date   NOT NULL,
  used_fen bigint NOT NULL CHECK (used_fen >= 0),
  PRIMARY KEY (payer_no, day)
);
CREATE TABLE payments.payment (
  payment_no          text        PRIMARY KEY,
  merchant_no         text        NOT NULL REFERENCES payments.merchant,
  order_no            text        NOT NULL,
  payer_no            text        NOT NULL REFERENCES payments.account,
  amount_fen          bigint      NOT NULL CHECK (amount_fen > 0),
  currency            text        NOT NULL,
  request_sha256      bytea       NOT NULL,
  status              text        NOT NULL CHECK (status IN ('CREATED', 'SETTLED', 'FAILED', 'EXPIRED')),
  version             bigint      NOT NULL DEFAULT 0,
  limit_day           date        NOT NULL,
  fee_fen             bigint,
  points              bigint,
  bank_transaction_no text        UNIQUE,
  reason              text,
  created_at          timestamptz NOT NULL,
  expires_at          timestamptz NOT NULL,
  finished_at         timestamptz,
  UNIQUE (merchant_no, order_no),
  CHECK ((status = 'CREATED') = (finished_at IS NULL)),
  CHECK ((status = 'SETTLED') = (fee_fen IS NOT NULL AND points IS NOT NULL)),
  CHECK (status NOT IN ('SETTLED', 'FAILED') OR bank_transaction_no IS NOT NULL)
);
CREATE INDEX payment_expiry ON payments.payment (expires_at) WHERE status = 'CREATED';
CREATE TABLE payments.bank_notification (
  webhook_id    text        PRIMARY KEY,
  body_sha256   bytea       NOT NULL,
  answer_status integer     NOT NULL,
  answer        text        NOT NULL,
  received_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE payments.suspense (
  bank_transaction_no text        PRIMARY KEY,
  payment_no          text        NOT NULL,
  amount_fen          bigint      NOT NULL CHECK (amount_fen > 0),
  currency            text        NOT NULL,
  reason              text        NOT NULL,
  recorded_at         timestamptz NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON payments.merchant, payments.account, payments.limit_use, payments.payment TO payments;
GRANT SELECT, INSERT, DELETE ON payments.bank_notification TO payments;
GRANT SELECT, INSERT ON payments.suspense TO payments"""

BANK = """
CREATE TABLE bank.account (
  account_no  text   PRIMARY KEY,
  balance_fen bigint NOT NULL CHECK (balance_fen >= 0),
  currency    text   NOT NULL
);
CREATE TABLE bank.transaction (
  transaction_no text        PRIMARY KEY,
  payment_no     text        NOT NULL UNIQUE,
  account_no     text        NOT NULL,
  amount_fen     bigint      NOT NULL CHECK (amount_fen > 0),
  currency       text        NOT NULL,
  status         text        NOT NULL CHECK (status IN ('SUCCESS', 'FAILED')),
  reason         text,
  created_at     timestamptz NOT NULL,
  CHECK ((status = 'FAILED') = (reason IS NOT NULL))
);
CREATE TABLE bank.notification (
  transaction_no text        PRIMARY KEY REFERENCES bank.transaction,
  body           text        NOT NULL,
  attempts       integer     NOT NULL DEFAULT 0,
  due_at         timestamptz NOT NULL,
  answered_at    timestamptz
);
CREATE INDEX notification_due ON bank.notification (due_at) WHERE answered_at IS NULL;
GRANT SELECT, INSERT, UPDATE ON bank.account, bank.notification TO bank;
GRANT SELECT, INSERT ON bank.transaction TO bank"""

FUNDS = """
CREATE TABLE funds.account (
  account_no  text   PRIMARY KEY,
  balance_fen bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE funds.entry (
  payment_no text        NOT NULL,
  account_no text        NOT NULL REFERENCES funds.account,
  kind       text        NOT NULL CHECK (kind IN ('credit')),
  amount_fen bigint      NOT NULL CHECK (amount_fen >= 0),
  event_id   uuid        NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (payment_no, account_no, kind)
);
GRANT SELECT, INSERT, UPDATE ON funds.account TO funds;
GRANT SELECT, INSERT ON funds.entry TO funds"""

POINTS = """
CREATE TABLE points.account (
  account_no text   PRIMARY KEY,
  balance    bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE points.entry (
  payment_no text        NOT NULL,
  account_no text        NOT NULL REFERENCES points.account,
  kind       text        NOT NULL CHECK (kind IN ('earn')),
  points     bigint      NOT NULL CHECK (points >= 0),
  event_id   uuid        NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (payment_no, account_no, kind)
);
GRANT SELECT, INSERT, UPDATE ON points.account TO points;
GRANT SELECT, INSERT ON points.entry TO points"""

ACCOUNTING = """
CREATE TABLE accounting.voucher (
  voucher_no  bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  business_no text        NOT NULL,
  kind        text        NOT NULL CHECK (kind IN ('settlement', 'suspense')),
  event_id    uuid        NOT NULL,
  currency    text        NOT NULL,
  occurred_at timestamptz NOT NULL,
  posted_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  UNIQUE (business_no, kind)
);
CREATE TABLE accounting.entry (
  voucher_no bigint   NOT NULL REFERENCES accounting.voucher,
  line       smallint NOT NULL,
  account    text     NOT NULL,
  side       char(1)  NOT NULL CHECK (side IN ('D', 'C')),
  amount_fen bigint   NOT NULL CHECK (amount_fen > 0),
  PRIMARY KEY (voucher_no, line)
);
CREATE TABLE accounting.balance (
  account    text    NOT NULL,
  currency   text    NOT NULL,
  stripe     integer NOT NULL,
  debit_fen  bigint  NOT NULL DEFAULT 0 CHECK (debit_fen >= 0),
  credit_fen bigint  NOT NULL DEFAULT 0 CHECK (credit_fen >= 0),
  PRIMARY KEY (account, currency, stripe)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT ON accounting.voucher, accounting.entry TO accounting;
GRANT SELECT, INSERT, UPDATE ON accounting.balance TO accounting"""

NOTIFICATION = """
CREATE TABLE notification.receiver (
  merchant_no text PRIMARY KEY,
  url         text NOT NULL,
  secret      text NOT NULL
);
CREATE TABLE notification.notify_record (
  id            uuid        PRIMARY KEY DEFAULT uuidv7(),
  queue         text        NOT NULL,
  event_id      uuid        NOT NULL,
  merchant_no   text        NOT NULL,
  payment_no    text        NOT NULL,
  order_no      text        NOT NULL,
  body          text        NOT NULL,
  status        text        NOT NULL DEFAULT 'CREATED' CHECK (status IN ('CREATED', 'SUCCESS')),
  attempts      integer     NOT NULL DEFAULT 0,
  claimed_until timestamptz NOT NULL DEFAULT '-infinity',
  last_error    text,
  created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  finished_at   timestamptz,
  UNIQUE (queue, event_id),
  CHECK ((status = 'SUCCESS') = (finished_at IS NOT NULL))
);
CREATE INDEX notify_record_due ON notification.notify_record (claimed_until) WHERE status = 'CREATED';
GRANT SELECT, INSERT, UPDATE ON notification.receiver, notification.notify_record TO notification"""
