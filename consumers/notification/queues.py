"""Which queues there are, and the service whose role, schema and database each lives in."""

MERCHANT = "merchant"
BANK = "bank"

QUEUES = {MERCHANT: "notification", BANK: "bank"}

PLATFORM = "platform"
"""Whom the bank tells: its one merchant."""
