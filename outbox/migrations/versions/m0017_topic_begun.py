"""When a consumer has begun a topic for the first time, and a table for what was older than its inbox then.

A consumer that has a position already keeps to the inbox's horizon, as it did.
"""

from alembic import op

revision = "0017"
down_revision = "0016"

SERVICES = ("shop", "payments", "bank", "funds", "points", "accounting", "notification")


def upgrade() -> None:
    for service in SERVICES:
        op.execute(f"""
            CREATE TABLE {service}.topic_begun (
              consumer  text        NOT NULL,
              topic     text        NOT NULL,
              horizon   uuid        NOT NULL,
              begun_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
              passed_at timestamptz,
              PRIMARY KEY (consumer, topic)
            )""")
        op.execute(f"""
            CREATE TABLE {service}.inbox_behind (
              consumer   text        NOT NULL,
              event_id   uuid        NOT NULL,
              topic      text        NOT NULL,
              partition  integer     NOT NULL,
              "offset"   bigint      NOT NULL,
              applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
              PRIMARY KEY (event_id, consumer)
            )""")
        op.execute(f"GRANT SELECT, INSERT ON {service}.topic_begun, {service}.inbox_behind TO {service}")
        op.execute(f"""
            INSERT INTO {service}.topic_begun (consumer, topic, horizon, passed_at)
            SELECT DISTINCT consumer, topic, CAST('00000000-0000-0000-0000-000000000000' AS uuid), clock_timestamp()
            FROM {service}.progress""")  # noqa: S608 - a schema of ours
