"""Which queues there are, and the service whose role, schema and database each lives in."""

QUEUES = {"merchant": "notification", "bank": "bank"}

PLATFORM = "platform"
"""Whom the bank tells: its one merchant."""
