"""The bank tells the platform as the platform tells merchants: from its outbox, by a notifier of its own.

What the first loop had not yet brought home goes on as records; its table is gone.
"""

from alembic import op

from outbox.migrations.versions.m0011_notifier import guard_and_grant

revision = "0012"
down_revision = "0011"

TABLES = (
    "receiver",
    "notify_queue",
    "notify_record",
    "notify_lane",
    "notify_wake",
    "notify_record_log",
    "notify_postponement",
    "notify_audit",
)

DELAYS = [0, "0.5s", "1s", "2s", "4s", "8s", "15s", "30s", 1, 2, 5, 10, 30, *([60] * 24), *(["1d"] * 6)]
"""Half a second, doubled, then hourly for a day and daily for a week: 43 attempts."""

RULE = (
    "{"
    + ",".join(
        f'"{n}":' + (f'"{delay}"' if isinstance(delay, str) else str(delay)) for n, delay in enumerate(DELAYS, 1)
    )
    + "}"
)


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql  # as it stands: a rule's colons name no parameter
    execute("ALTER TABLE bank.outbox DROP CONSTRAINT outbox_topic_is_own")
    execute("""
        ALTER TABLE bank.outbox
          ADD CONSTRAINT outbox_topic_is_own CHECK (topic IN ('bank.transaction')) NOT VALID""")
    for table in TABLES:
        execute(f"CREATE TABLE bank.{table} (LIKE notification.{table} INCLUDING ALL)")
    execute("REVOKE SELECT ON bank.receiver FROM ops")
    execute("GRANT SELECT (merchant_no, url) ON bank.receiver TO ops")
    execute("GRANT SELECT, INSERT, UPDATE ON bank.receiver, bank.notify_record TO bank")
    guard_and_grant("bank")
    execute(f"""
        INSERT INTO bank.notify_queue (queue, rule, in_flight_max, receiver_in_flight_max, breaker_first_s, breaker_cap_s,
                                       retry_after_cap_s, private_receivers)
        VALUES ('bank', '{RULE}', 20, 20, 0.5, 5, 60, true)""")  # noqa: S608 - a constant of ours
    execute(f"""
        INSERT INTO bank.notify_record (queue, event_id, merchant_no, payment_no, order_no, body, rule, planned_at)
        SELECT 'bank', uuidv7(), 'platform', payment_no, payment_no, body, '{RULE}', clock_timestamp()
        FROM bank.notification JOIN bank.transaction USING (transaction_no) WHERE answered_at IS NULL""")  # noqa: S608
    execute("""
        INSERT INTO bank.notify_wake (queue, merchant_no, planned_at)
        SELECT 'bank', 'platform', min(planned_at) FROM bank.notify_record HAVING count(*) > 0""")
    execute("DROP TABLE bank.notification")
