"""Topics: one per aggregate. Key, partitions and retention are declared here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

FOREVER_MS = -1


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic as `payrelay topics apply` makes it."""

    name: str
    key: str
    """What the record key is: events of one key keep their order."""
    partitions: int
    """Fixed: adding partitions moves keys, and the order of a key with them."""
    retention_ms: int

    def config(self) -> dict[str, str]:
        """Return the topic's configuration. LogAppendTime, so that the record's time is the broker's."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "retention.bytes": "-1",
            "message.timestamp.type": "LogAppendTime",
        }


PAYMENT_ORDER = Topic(name="payment.order", key="payment_no", partitions=3, retention_ms=FOREVER_MS)

TOPICS = (PAYMENT_ORDER,)
