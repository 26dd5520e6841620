"""Rows of the notification service: who is told, and what is to be told or was."""

from sqlalchemy import Column, DateTime, Integer, MetaData, Table, Text, Uuid

metadata = MetaData()

receiver = Table(
    "receiver",
    metadata,
    Column("merchant_no", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
)

notify_record = Table(
    "notify_record",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("merchant_no", Text, nullable=False),
    Column("payment_no", Text, nullable=False),
    Column("order_no", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("claimed_until", DateTime(timezone=True), nullable=False),
    Column("last_error", Text),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("finished_at", DateTime(timezone=True)),
)
