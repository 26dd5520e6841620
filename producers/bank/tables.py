"""Rows of the bank."""

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Integer, MetaData, Table, Text

metadata = MetaData()

account = Table(
    "account",
    metadata,
    Column("account_no", Text, primary_key=True),
    Column("balance_fen", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
)

transaction = Table(
    "transaction",
    metadata,
    Column("transaction_no", Text, primary_key=True),
    Column("payment_no", Text, nullable=False),
    Column("account_no", Text, nullable=False),
    Column("amount_fen", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("reason", Text),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

notification = Table(
    "notification",
    metadata,
    Column("transaction_no", Text, ForeignKey("transaction.transaction_no"), primary_key=True),
    Column("body", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", DateTime(timezone=True), nullable=False),
    Column("answered_at", DateTime(timezone=True)),
)
