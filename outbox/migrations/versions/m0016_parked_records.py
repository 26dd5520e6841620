"""A parked record is known by its place and its content: a log that was cut off and grew again has others at the same offsets.

And reconcile's checkpoint knows how far the WAL went when it was set, which no clock's step takes back.
"""

from alembic import op

revision = "0016"
down_revision = "0015"

SERVICES = ("shop", "payments", "bank", "funds", "points", "accounting", "notification")


def upgrade() -> None:
    for service in SERVICES:
        # Digests, so that keys and bodies of any length fit. A version that runs still knows repeats by either index.
        op.execute(f"""
            CREATE UNIQUE INDEX parked_record ON {service}.parked (
              consumer, topic_id, partition, "offset", coalesce(sha256(key), ''), coalesce(sha256(value), ''),
              hashtextextended(CAST(headers AS text), 0))""")
        op.execute(f'ALTER TABLE {service}.parked DROP CONSTRAINT "parked_consumer_topic_id_partition_offset_key"')
    op.execute("ALTER TABLE reconcile.checkpoint ADD COLUMN lsn bigint")
