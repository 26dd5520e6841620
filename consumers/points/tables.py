"""Rows of the points service: each payer's points, and what earned them."""

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, MetaData, Table, Text, Uuid

metadata = MetaData()

account = Table(
    "account",
    metadata,
    Column("account_no", Text, primary_key=True),
    Column("balance", BigInteger, nullable=False),
)

entry = Table(
    "entry",
    metadata,
    Column("payment_no", Text, primary_key=True),
    Column("account_no", Text, ForeignKey("account.account_no"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("points", BigInteger, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("reason", Text),
    Column("actor", Text),
)
