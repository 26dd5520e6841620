"""Rows of the accounting service: vouchers, their entries, and balances that the entries add up to."""

from sqlalchemy import (
    CHAR,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
)

metadata = MetaData()

chart_of_accounts = Table(
    "chart_of_accounts",
    metadata,
    Column("code", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("normal_side", CHAR(1), nullable=False),
    Column("floorless", Boolean, nullable=False),
)

voucher = Table(
    "voucher",
    metadata,
    Column("voucher_no", BigInteger, primary_key=True),
    Column("business_no", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("event_id", Uuid),
    Column("currency", Text, nullable=False),
    Column("occurred_at", DateTime(timezone=True), nullable=False),
    Column("posted_at", DateTime(timezone=True), nullable=False),
    Column("lines", SmallInteger),
    Column("reverses", BigInteger, ForeignKey("voucher.voucher_no")),
    Column("corrects", BigInteger, ForeignKey("voucher.voucher_no")),
    Column("reason", Text),
    Column("actor", Text),
)

entry = Table(
    "entry",
    metadata,
    Column("voucher_no", BigInteger, primary_key=True),
    Column("line", SmallInteger, primary_key=True),
    Column("account", Text, nullable=False),
    Column("side", CHAR(1), nullable=False),
    Column("amount_fen", BigInteger, nullable=False),
)

balance = Table(
    "balance",
    metadata,
    Column("account", Text, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("stripe", Integer, primary_key=True),
    Column("debit_fen", BigInteger, nullable=False),
    Column("credit_fen", BigInteger, nullable=False),
)
