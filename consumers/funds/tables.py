"""Rows of the funds service: what the platform owes each merchant, and why."""

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, MetaData, Table, Text, Uuid

metadata = MetaData()

account = Table(
    "account",
    metadata,
    Column("account_no", Text, primary_key=True),
    Column("balance_fen", BigInteger, nullable=False),
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
)
