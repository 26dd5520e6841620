"""A payer confirms by a secret that merchants do not have; balances hold one currency; `ops` reads no payer's secret."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("ALTER TABLE payments.account ADD COLUMN secret text")
    op.execute("REVOKE SELECT ON payments.account FROM ops")
    op.execute("""GRANT SELECT (payer_no, bank_account_no, single_limit_fen, daily_limit_fen, monthly_limit_fen, open)
                  ON payments.account TO ops""")
    op.execute("ALTER TABLE funds.deposit ADD CONSTRAINT deposit_currency_check CHECK (currency = 'CNY') NOT VALID")
