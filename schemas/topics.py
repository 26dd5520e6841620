"""Topics: one per aggregate. Key, partitions and retention are declared here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

FOREVER_MS = -1


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic as `payrelay topics apply` makes it."""

    name: str
    service: str
    """Whose outbox may hold its events; the outbox tables check it."""
    key: str
    """What the message key is: events of one key keep their order."""
    partitions: int
    """Fixed: adding partitions moves keys, and the order of a key with them."""
    retention_ms: int

    def config(self, replication_factor: int) -> dict[str, str]:
        """Return the topic's configuration. LogAppendTime, so that the message's time is the broker's.

        What the broker has acknowledged, and the slot has passed, is on two replicas at least where there are three.
        """
        return {
            "min.insync.replicas": str(max(1, replication_factor - 1)),
            "unclean.leader.election.enable": "false",
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "retention.bytes": "-1",
            "message.timestamp.type": "LogAppendTime",
        }


PAYMENT_ORDER = Topic(name="payment.order", service="payments", key="payment_no", partitions=3, retention_ms=FOREVER_MS)
FUNDS_TRANSFER = Topic(name="funds.transfer", service="funds", key="payment_no", partitions=3, retention_ms=FOREVER_MS)
BANK_TRANSACTION = Topic(
    name="bank.transaction", service="bank", key="transaction_no", partitions=3, retention_ms=FOREVER_MS
)

TOPICS = (PAYMENT_ORDER, FUNDS_TRANSFER, BANK_TRANSACTION)
