"""What tells the connector to emit rows again: Debezium's signal table, in the publication."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    # Columns as Debezium wants them, in this order; a signal may name many ids.
    op.execute("""
        CREATE TABLE connect.signal (
          id   text PRIMARY KEY CHECK (octet_length(id) <= 100),
          type text NOT NULL CHECK (octet_length(type) <= 100),
          data text CHECK (octet_length(data) <= 1048576)
        )""")
    # Of a snapshot the connector marks each chunk's begin and end there.
    op.execute("GRANT SELECT, INSERT ON connect.signal TO debezium")
    op.execute("GRANT SELECT ON connect.signal TO ops")
    # Dropped by somebody, it is made whole by `doctor --repair-slot`.
    op.execute("""
        DO $$ BEGIN
          IF EXISTS (SELECT FROM pg_publication WHERE pubname = 'payrelay_outbox') THEN
            ALTER PUBLICATION payrelay_outbox ADD TABLE connect.signal;
          END IF;
        END $$""")
