"""Rows of the funds service: what the platform owes each merchant and holds for each payer, and why."""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, ForeignKey, MetaData, Table, Text, Uuid

metadata = MetaData()

account = Table(
    "account",
    metadata,
    Column("account_no", Text, primary_key=True),
    Column("balance_fen", BigInteger, nullable=False),
    Column("floor_fen", BigInteger),
)

entry = Table(
    "entry",
    metadata,
    Column("payment_no", Text, primary_key=True),
    Column("account_no", Text, ForeignKey("account.account_no"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("amount_fen", BigInteger, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("reason", Text),
    Column("actor", Text),
)

balance_payment = Table(
    "balance_payment",
    metadata,
    Column("payment_no", Text, primary_key=True),
    Column("event_id", Uuid, nullable=False),
    Column("paid", Boolean, nullable=False),
)

deposit = Table(
    "deposit",
    metadata,
    Column("deposit_no", Text, primary_key=True),
    Column("payer_no", Text, nullable=False),
    Column("amount_fen", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("deposited_at", DateTime(timezone=True), nullable=False),
)
