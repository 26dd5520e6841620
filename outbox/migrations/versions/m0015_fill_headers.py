"""Outbox rows from before 0014 get their causation and traceparent: a row that is emitted again has no null header.

The publication carries inserts only, so nothing is published. Some thousands of rows a transaction; cut off, it is repeated.
"""

from uuid import UUID

from alembic import op
from sqlalchemy import Connection, text

from outbox.migrations.versions.m0014_cloudevents import TRACEPARENT

revision = "0015"
down_revision = "0014"

SERVICES = ("shop", "payments", "bank", "funds", "points", "accounting", "notification")
ROWS = 10_000

UNFILLED = "(causation IS NULL OR traceparent IS NULL)"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for service in SERVICES:
            _fill(op.get_bind(), service)


def _fill(connection: Connection, service: str) -> None:
    last = UUID(int=0)
    while upto := connection.execute(text(NEXT.format(service=service)), {"last": last, "rows": ROWS}).scalar():
        connection.execute(text(FILL.format(service=service)), {"last": last, "upto": upto})
        last = upto


NEXT = f"""
    SELECT id FROM (SELECT id FROM {{service}}.outbox WHERE id > :last AND {UNFILLED} ORDER BY id LIMIT :rows) AS next
    ORDER BY id DESC LIMIT 1"""  # noqa: S608 - schemas of ours

FILL = f"""
    UPDATE {{service}}.outbox
    SET causation = coalesce(causation, correlation), traceparent = coalesce(traceparent, {TRACEPARENT.format(row="")})
    WHERE id > :last AND id <= :upto AND {UNFILLED}"""  # noqa: S608
