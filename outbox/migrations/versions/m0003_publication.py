"""What Kafka Connect reads: the heartbeat table and the hand-made publication.

Inserts only, through the partitions' root. The heartbeat is a delete and an insert, since an update would not be
published and an idle slot would never advance.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

SERVICES = ("shop", "payments", "bank", "funds", "points", "accounting", "notification")


def upgrade() -> None:
    op.execute("CREATE SCHEMA connect")
    op.execute("GRANT USAGE ON SCHEMA connect TO debezium, ops")
    op.execute("""
        CREATE TABLE connect.heartbeat (
          id      integer     PRIMARY KEY CHECK (id = 1),
          beat    bigint      NOT NULL,
          beat_at timestamptz NOT NULL DEFAULT clock_timestamp()
        )""")
    op.execute("GRANT SELECT, INSERT, DELETE ON connect.heartbeat TO debezium")
    op.execute("GRANT SELECT ON connect.heartbeat TO ops")
    op.execute(publication("payrelay_outbox"))


def publication(name: str) -> str:
    tables = ", ".join(f"{service}.outbox" for service in SERVICES)
    return (
        f"CREATE PUBLICATION {name} FOR TABLE {tables}, connect.heartbeat "
        "WITH (publish = 'insert', publish_via_partition_root = true)"
    )
