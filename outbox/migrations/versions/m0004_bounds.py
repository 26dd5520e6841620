"""What a role may tell and see: each outbox takes its service's own topics only, `ops` reads no merchant's secret.

And an index on parked keys that takes a key of any length.
"""

from alembic import op

revision = "0004"
down_revision = "0003"

SERVICES = ("shop", "payments", "bank", "funds", "points", "accounting", "notification")
OWN_TOPICS = {"payments": ("payment.order",)}


def upgrade() -> None:
    for service in SERVICES:
        names = ", ".join(f"'{name}'" for name in OWN_TOPICS.get(service, ()))
        own = f"topic IN ({names})" if names else "false"
        op.execute(f"ALTER TABLE {service}.outbox ADD CONSTRAINT outbox_topic_is_own CHECK ({own}) NOT VALID")
        op.execute(f"DROP INDEX {service}.parked_consumer_key_idx")
        op.execute(f"CREATE INDEX parked_key ON {service}.parked (consumer, sha256(key))")
    op.execute("REVOKE SELECT ON payments.merchant, notification.receiver FROM ops")
    op.execute("GRANT SELECT (merchant_no, fee_rate_bp) ON payments.merchant TO ops")
    op.execute("GRANT SELECT (merchant_no, url) ON notification.receiver TO ops")
