"""Roles, schemas and the kernel's four tables in each."""

from alembic import op

revision = "0001"
down_revision = None

SERVICES = ("shop", "payments", "bank", "funds", "points", "accounting", "notification")


def upgrade() -> None:
    database = op.get_bind().exec_driver_sql("SELECT quote_ident(current_database())").scalar_one()
    op.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    op.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    for role in (*SERVICES, "ops", "debezium"):
        attributes = "LOGIN REPLICATION" if role == "debezium" else "LOGIN"
        op.execute(f"""
            DO $$ BEGIN CREATE ROLE {role} {attributes}; EXCEPTION WHEN duplicate_object THEN NULL; END $$""")
        op.execute(f"GRANT CONNECT ON DATABASE {database} TO {role}")
    _uuidv7_where_missing()
    for service in SERVICES:
        _kernel(service, database)
    op.execute("ALTER ROLE ops SET default_transaction_read_only = on")
    op.execute("GRANT pg_monitor TO ops")


def _uuidv7_where_missing() -> None:
    """PostgreSQL 18 has uuidv7(); older servers get a function of that name.

    Source: RFC 9562, section 6.2, method 3: sub-millisecond fraction in rand_a.
    """
    op.execute("""
        DO $$ BEGIN
          IF to_regprocedure('pg_catalog.uuidv7()') IS NULL THEN
            CREATE FUNCTION public.uuidv7() RETURNS uuid LANGUAGE sql VOLATILE AS $f$
              SELECT encode(
                substring(int8send((us / 1000)::bigint) FROM 3)
                || substring(int4send((x'7000'::int | (((us % 1000) * 4096) / 1000)::int)) FROM 3)
                || substring(uuid_send(gen_random_uuid()) FROM 9), 'hex')::uuid
              FROM (SELECT floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) AS t
            $f$;
            GRANT USAGE ON SCHEMA public TO PUBLIC;
          END IF;
        END $$""")


def _kernel(service: str, database: str) -> None:
    op.execute(f"CREATE SCHEMA {service}")
    op.execute(f"GRANT USAGE ON SCHEMA {service} TO {service}, ops, debezium")
    op.execute(f"ALTER ROLE {service} IN DATABASE {database} SET search_path = {service}, public")
    op.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA {service} GRANT SELECT ON TABLES TO ops")
    op.execute(f"""
        CREATE TABLE {service}.outbox (
          id          uuid        NOT NULL DEFAULT uuidv7() PRIMARY KEY,
          topic       text        NOT NULL,
          key         text        NOT NULL CHECK (key <> ''),
          version     bigint      NOT NULL CHECK (version > 0),
          type        text        NOT NULL,
          correlation text        NOT NULL,
          causation   text,
          traceparent text,
          payload     text        NOT NULL CHECK (octet_length(payload) <= 262144),
          lsn         bigint      NOT NULL DEFAULT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,
          created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
        ) PARTITION BY RANGE (id)""")
    op.execute(f"""
        CREATE TABLE {service}.inbox (
          consumer    text        NOT NULL,
          event_id    uuid        NOT NULL,
          topic       text        NOT NULL,
          partition   integer     NOT NULL,
          "offset"    bigint      NOT NULL,
          applied_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
          PRIMARY KEY (event_id, consumer)
        ) PARTITION BY RANGE (event_id)""")
    op.execute(f"""
        CREATE TABLE {service}.progress (
          consumer        text        NOT NULL,
          cluster_id      text        NOT NULL,
          topic           text        NOT NULL,
          topic_id        text        NOT NULL,
          partition       integer     NOT NULL,
          next_offset     bigint      NOT NULL CHECK (next_offset >= 0),
          mirrored_offset bigint,
          has_parked      boolean     NOT NULL DEFAULT false,
          updated_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
          PRIMARY KEY (consumer, cluster_id, topic, topic_id, partition)
        ) WITH (fillfactor = 50)""")
    op.execute(f"""
        CREATE TABLE {service}.parked (
          id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          consumer  text        NOT NULL,
          event_id  uuid,
          topic     text        NOT NULL,
          topic_id  text        NOT NULL,
          partition integer     NOT NULL,
          "offset"  bigint      NOT NULL,
          key       bytea,
          type      text,
          version   bigint,
          headers   jsonb       NOT NULL,
          value     bytea,
          cause     text        NOT NULL,
          error     text        NOT NULL,
          attempts  integer     NOT NULL CHECK (attempts >= 0),
          parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          UNIQUE (consumer, event_id),
          UNIQUE (consumer, topic_id, partition, "offset")
        )""")
    op.execute(f"CREATE INDEX ON {service}.parked (consumer, key)")
    op.execute(f"GRANT INSERT, SELECT ON {service}.outbox, {service}.inbox, {service}.parked TO {service}")
    op.execute(f"GRANT INSERT, SELECT, UPDATE ON {service}.progress TO {service}")
    op.execute(f"GRANT SELECT ON {service}.outbox TO debezium")
    op.execute(f"GRANT SELECT ON {service}.outbox, {service}.inbox, {service}.progress, {service}.parked TO ops")
