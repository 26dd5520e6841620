"""Rows of the payments service. docs/states.md draws the states of a payment."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

metadata = MetaData()

merchant = Table(
    "merchant",
    metadata,
    Column("merchant_no", Text, primary_key=True),
    Column("api_key", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("fee_rate_bp", Integer, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("fee_fixed_fen", BigInteger, nullable=False),
    Column("fee_min_fen", BigInteger, nullable=False),
    Column("fee_cap_fen", BigInteger),
)

channel = Table(
    "channel",
    metadata,
    Column("channel", Text, primary_key=True),
    Column("cost_rate_bp", Integer, nullable=False),
    Column("cost_fixed_fen", BigInteger, nullable=False),
    Column("cost_min_fen", BigInteger, nullable=False),
    Column("cost_cap_fen", BigInteger),
)

account = Table(
    "account",
    metadata,
    Column("payer_no", Text, primary_key=True),
    Column("bank_account_no", Text, nullable=False),
    Column("single_limit_fen", BigInteger, nullable=False),
    Column("daily_limit_fen", BigInteger, nullable=False),
    Column("monthly_limit_fen", BigInteger, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("secret", Text),
)

limit_use = Table(
    "limit_use",
    metadata,
    Column("payer_no", Text, ForeignKey("account.payer_no"), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("used_fen", BigInteger, nullable=False),
)

payment = Table(
    "payment",
    metadata,
    Column("payment_no", Text, primary_key=True),
    Column("merchant_no", Text, ForeignKey("merchant.merchant_no"), nullable=False),
    Column("order_no", Text, nullable=False),
    Column("payer_no", Text, ForeignKey("account.payer_no"), nullable=False),
    Column("amount_fen", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("request_sha256", LargeBinary, nullable=False),
    Column("status", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("limit_day", Date, nullable=False),
    Column("fee_fen", BigInteger),
    Column("points", BigInteger),
    Column("bank_transaction_no", Text),
    Column("reason", Text),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("finished_at", DateTime(timezone=True)),
    Column("cost_fen", BigInteger),
    Column("method", Text, ForeignKey("channel.channel"), nullable=False),
)

bank_notification = Table(
    "bank_notification",
    metadata,
    Column("webhook_id", Text, primary_key=True),
    Column("body_sha256", LargeBinary, nullable=False),
    Column("answer_status", Integer, nullable=False),
    Column("answer", Text, nullable=False),
    Column("received_at", DateTime(timezone=True), nullable=False),
)

suspense = Table(
    "suspense",
    metadata,
    Column("bank_transaction_no", Text, primary_key=True),
    Column("payment_no", Text, nullable=False),
    Column("amount_fen", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False),
)
