"""What a migration does for a service: a new one gets its schema, its role and the kernel's tables; any one gets its topics.

The kernel's tables are copied from a service that has them, as they are at that migration. So a new service is whole, whichever
migrations come before, and those after it change it with the others.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from outbox.schema_copy import bare_tables, finished_tables, run_script, tables_in

MODEL = "payments"
KERNEL = ("inbox", "inbox_behind", "outbox", "parked", "parked_audit", "progress", "topic_begun")
PUBLICATION = "payrelay_outbox"


def add_service(connection: Connection, name: str, *, topics: tuple[str, ...] = ()) -> None:
    """The service has its schema, a login role of its own name, and the kernel's tables; what it records on the topics is published.

    Transaction: the caller's, as the owner. `outbox/settings.py` lists the service too: `migrate` then sets its password and makes
    its days.
    """

    def role(of_model: str) -> str:
        return name if of_model == MODEL else of_model

    database = connection.execute(text("SELECT quote_ident(current_database())")).scalar_one()
    tables = tables_in(connection, MODEL, KERNEL)
    run_script(
        connection,
        [
            f"DO $$ BEGIN CREATE ROLE {name} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
            f"GRANT CONNECT ON DATABASE {database} TO {name}",
            f"CREATE SCHEMA {name}",
            *(f"GRANT USAGE ON SCHEMA {name} TO {role(user)}" for user in _users(connection)),
            f"ALTER ROLE {name} IN DATABASE {database} SET search_path = {name}, public",
            *bare_tables(MODEL, name, tables, divided=True),
        ],
    )
    run_script(connection, finished_tables(connection, MODEL, name, tables, role=role, all_functions=False))
    run_script(connection, [f"ALTER DEFAULT PRIVILEGES IN SCHEMA {name} GRANT SELECT ON TABLES TO ops"])
    set_topics(connection, name, *topics)
    _publish(connection, name)


def set_topics(connection: Connection, service: str, *topics: str) -> None:
    """The service's outbox takes events of these topics and of no others: name all of the service's, the old ones too.

    Transaction: the caller's, as the owner.
    """
    names = ", ".join(f"'{name}'" for name in topics)
    own = f"topic IN ({names})" if names else "false"
    run_script(
        connection,
        [
            f"ALTER TABLE {service}.outbox DROP CONSTRAINT outbox_topic_is_own",
            f"ALTER TABLE {service}.outbox ADD CONSTRAINT outbox_topic_is_own CHECK ({own}) NOT VALID",
        ],
    )


def _users(connection: Connection) -> list[str]:
    """Return who may use the model's schema, but for its owner."""
    rows = connection.execute(
        text("""SELECT grantee::regrole::text FROM pg_namespace CROSS JOIN LATERAL aclexplode(nspacl)
                WHERE nspname = :model AND privilege_type = 'USAGE' AND grantee NOT IN (0, nspowner) ORDER BY 1"""),
        {"model": MODEL},
    )
    return list(rows.scalars())


def _publish(connection: Connection, name: str) -> None:
    """The publication carries the outbox. Where somebody has dropped it, `doctor --repair-slot` makes it whole."""
    exists = text("SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = :publication)")
    if connection.execute(exists, {"publication": PUBLICATION}).scalar():
        run_script(connection, [f"ALTER PUBLICATION {PUBLICATION} ADD TABLE {name}.outbox"])
