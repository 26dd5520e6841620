"""Rows of the bank; those of its notifier are described in consumers/notification/tables.py."""

from sqlalchemy import BigInteger, Column, DateTime, MetaData, Table, Text

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
