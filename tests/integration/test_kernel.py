"""The kernel on real PostgreSQL: record, roles, days, tables in step with migrations."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import date, timedelta
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

import consumers.accounting.tables
import consumers.funds.tables
import consumers.notification.tables
import consumers.points.tables
import outbox.tables
import producers.bank.tables
import producers.payments.tables
from consumers.accounting.agent import PROCESSOR
from consumers.delivery.loop import Delivered, Delivery
from consumers.delivery.messages import Slice
from consumers.delivery.processor import is_transient
from outbox.clock import time_of, utc_now
from outbox.database import driver_url
from outbox.errors import NotInTransaction, NotReady, PayrelayError, Refused
from outbox.http.app import Database, HttpError
from outbox.inbox import Log, begin_log
from outbox.migrations.services import add_service
from outbox.partitions import day_table, days_of, drop_days, make_days
from outbox.publication import PUBLISHED_TABLES, published_tables
from outbox.record import Outgoing, record
from outbox.settings import SERVICES, Settings
from outbox.tables import PARTITIONED
from schemas.codec import Envelope
from schemas.topics import TOPICS
from tests.factories import settled
from tests.integration.test_delivery import record_of
from tests.pipeline import ROOT, engine_of, environment
from tests.waiting import eventually

TABLES = {
    "payments": producers.payments.tables,
    "bank": producers.bank.tables,
    "funds": consumers.funds.tables,
    "points": consumers.points.tables,
    "accounting": consumers.accounting.tables,
    "notification": consumers.notification.tables,
}


@pytest.fixture
def connection(settings: Settings) -> Generator[Connection]:
    """A transaction of the payments service, rolled back."""
    with engine_of(settings, "payments").connect() as connection:
        yield connection
        connection.rollback()


def outgoing(number: int = 1, prefix: str = "T-") -> Outgoing:
    return Outgoing(event=settled(number=number, prefix=prefix), version=1, correlation="O1")


def test_record_refuses_without_a_transaction(settings: Settings) -> None:
    engine = engine_of(settings, "payments")
    with engine.connect() as connection, pytest.raises(NotInTransaction):
        record(connection, [outgoing()])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT 1"))
        with pytest.raises(NotInTransaction):
            record(connection, [outgoing()])


def test_record_keeps_the_order_of_its_events(connection: Connection) -> None:
    connection.begin()
    ids = record(connection, [outgoing(number) for number in range(50)])
    assert ids == sorted(ids)
    keys = (
        connection.execute(text("SELECT key FROM outbox WHERE id = ANY (:ids) ORDER BY id"), {"ids": ids})
        .scalars()
        .all()
    )
    assert keys == [settled(number=number).payment_no for number in range(50)]


def test_record_refuses_a_body_above_256_kib(connection: Connection) -> None:
    connection.begin()
    event = settled(fee_rule="x" * 300_000)
    with pytest.raises(Refused, match="at most 262144"):
        record(connection, [Outgoing(event=event, version=1, correlation="O1")])


def test_a_transaction_rolled_back_leaves_no_outbox_row(settings: Settings, prefix: str) -> None:
    engine = engine_of(settings, "payments")
    event = settled(prefix=prefix)
    with pytest.raises(RuntimeError, match="changed my mind"), engine.begin() as connection:
        record(connection, [Outgoing(event=event, version=1, correlation="O1")])
        raise RuntimeError("changed my mind")
    with engine.connect() as connection:
        assert (
            connection.execute(text("SELECT count(*) FROM outbox WHERE key = :key"), {"key": event.key}).scalar() == 0
        )


@pytest.fixture
def stepped(settings: Settings) -> Generator[Engine]:
    """Sessions of payments in which the owner can make ids ahead of the clock, as those do that lived through a step of it."""
    url = driver_url(settings.database_url.get_secret_value())
    engine = create_engine(url, pool_size=2, connect_args={"options": "-c search_path=payments"})
    yield engine
    engine.dispose()


def ids_ahead(connection: Connection, ahead: str = "5 minutes") -> None:
    """The transaction's ids are ahead; rolled back, they no longer are."""
    connection.execute(text(f"ALTER TABLE outbox ALTER COLUMN id SET DEFAULT uuidv7(interval '{ahead}')"))


def test_an_id_ahead_of_the_clock_is_refused_and_the_retry_in_a_new_session_gets_a_right_one(
    stepped: Engine, prefix: str
) -> None:
    def backend(connection: Connection) -> int:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

    with stepped.connect() as idle, stepped.connect() as other:
        before = {backend(idle), backend(other)}
    with pytest.raises(PayrelayError, match="ahead of it"), stepped.begin() as connection, connection.begin_nested():
        ids_ahead(connection)
        record(connection, [outgoing(number, prefix) for number in range(3)])
    with stepped.begin() as connection:
        assert backend(connection) not in before
        ids = record(connection, [outgoing(number, prefix) for number in range(3)])
        assert (
            connection.execute(
                text("SELECT count(*) FROM outbox WHERE key LIKE :like"), {"like": f"{prefix}%"}
            ).scalar()
            == 3
        )
    assert all(abs(time_of(identity) - utc_now()) < timedelta(minutes=1) for identity in ids)


def test_half_a_minute_ahead_is_recorded(stepped: Engine, prefix: str) -> None:
    with stepped.connect() as connection:
        ids_ahead(connection, "30 seconds")
        assert len(record(connection, [outgoing(1, prefix)])) == 1
        connection.rollback()


def test_a_handler_that_is_refused_an_id_parks_nothing_and_is_tried_again(stepped: Engine, prefix: str) -> None:
    refused: list[bool] = []

    def handle(connection: Connection, events: Sequence[Envelope]) -> None:
        if not refused:
            refused.append(True)
            ids_ahead(connection)
        record(connection, [Outgoing(event=event.event, version=2, correlation="c") for event in events])

    processor = replace(PROCESSOR, service="payments", handle=handle)
    delivery = Delivery(processor, stepped, consumer=f"{prefix}x", clock=utc_now)
    log = Log(cluster_id="c", topic=prefix, topic_id="i", partition=0)
    records = [record_of(n, settled(prefix=prefix, number=n)) for n in range(3)]
    whole = Slice(log=log, start=0, end=3, messages=records)
    with stepped.begin() as connection:
        begin_log(connection, delivery.consumer, log, next_offset=0)
    with pytest.raises(PayrelayError) as refusal:
        delivery.deliver([whole])
    assert is_transient(refusal.value)
    for _ in range(2):
        assert delivery.deliver([whole]) == {log: Delivered()}
    with stepped.connect() as connection:
        keys = connection.execute(text("SELECT key FROM outbox WHERE key LIKE :like"), {"like": f"{prefix}%"})
        assert sorted(keys.scalars()) == [settled(prefix=prefix, number=n).key for n in range(3)]


@pytest.mark.parametrize("times", [1, 9])
def test_a_service_tries_again_once_and_then_answers_that_asking_again_is_safe(
    settings: Settings, prefix: str, times: int
) -> None:
    database = Database(settings.database_url.get_secret_value(), name="test")
    tries: list[bool] = []

    def act(connection: Connection) -> list[UUID]:
        connection.execute(text("SET LOCAL search_path = payments"))
        if len(tries) < times:
            ids_ahead(connection)
        tries.append(True)
        return record(connection, [outgoing(1, prefix)])

    try:
        if times == 1:
            [identity] = asyncio.run(database.transact(act))
            assert abs(time_of(identity) - utc_now()) < timedelta(minutes=1)
        else:
            with pytest.raises(HttpError) as refused:
                asyncio.run(database.transact(act))
            assert refused.value.status == 503
    finally:
        database.close()
    assert len(tries) == 2


KILLED_BETWEEN = """
import os, sys
from sqlalchemy import create_engine, make_url, text
from outbox.publication import PUBLISHED_TABLES, published_tables
from outbox.record import Outgoing, record
from outbox.settings import Settings
from schemas.codec import Envelope
from tests.factories import settled
from tests.integration.test_delivery import record_of
prefix, order = sys.argv[1:]
engine = create_engine(make_url(Settings().dsn_of("payments")).set(drivername="postgresql+psycopg"))
with engine.begin() as connection:
    business = text("INSERT INTO suspense VALUES (:no, 'P', 1, 'CNY', 'test', now())")
    steps = [lambda: connection.execute(business, {"no": prefix}),
             lambda: record(connection, [Outgoing(event=settled(prefix=prefix), version=1, correlation=prefix)])]
    (steps if order == "business" else steps[::-1])[0]()
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("order", ["business", "outbox"])
def test_killed_between_its_two_inserts_it_leaves_neither(settings: Settings, prefix: str, order: str) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BETWEEN, prefix, order], cwd=ROOT, env=environment(settings), check=False
    )
    assert killed.returncode == -9
    with engine_of(settings, "payments").connect() as connection:
        rows = connection.execute(
            text("SELECT (SELECT count(*) FROM outbox WHERE correlation = :no), (SELECT count(*) FROM suspense WHERE bank_transaction_no = :no)"),
            {"no": prefix},
        ).one()  # fmt: skip
    assert tuple(rows) == (0, 0)


@pytest.mark.parametrize("role", SERVICES)
def test_a_role_can_touch_its_own_schema_only(settings: Settings, role: str) -> None:
    with engine_of(settings, role).connect() as connection:
        for other in SERVICES:
            for statement in (
                f"SELECT * FROM {other}.outbox",
                f"DELETE FROM {other}.progress",
                f"CREATE TABLE {other}.x ()",
            ):
                if other == role and statement.startswith("SELECT"):
                    connection.execute(text(statement))
                    continue
                with pytest.raises(ProgrammingError, match="permission denied"):
                    connection.execute(text(statement))
                connection.rollback()


def test_the_shop_cannot_write_funds(settings: Settings) -> None:
    with (
        engine_of(settings, "shop").connect() as connection,
        pytest.raises(ProgrammingError, match="permission denied"),
    ):
        connection.execute(text("INSERT INTO funds.account VALUES ('shop', 1000000)"))


def test_readers_cannot_write_and_the_connector_sees_outboxes_only(settings: Settings) -> None:
    with (
        engine_of(settings, "ops").connect() as connection,
        pytest.raises(Exception, match=r"read-only|permission denied"),
    ):
        connection.execute(text("INSERT INTO funds.account VALUES ('ops', 1)"))
    dsn = driver_url(settings.connector_dsn.get_secret_value())
    engine = create_engine(dsn)
    with engine.connect() as connection:
        connection.execute(text("SELECT count(*) FROM payments.outbox"))
        with pytest.raises(ProgrammingError, match="permission denied"):
            connection.execute(text("SELECT secret FROM payments.merchant"))
    engine.dispose()


def test_tables_are_what_the_migrations_made(settings: Settings) -> None:
    inspector = inspect(engine_of(settings, "owner"))
    for schema, module in (*TABLES.items(), ("bank", consumers.notification.tables)):
        for table in (*module.metadata.tables.values(), *outbox.tables.metadata.tables.values()):
            columns = {
                column["name"]: column["nullable"] for column in inspector.get_columns(table.name, schema=schema)
            }
            assert {c.name: bool(c.nullable) for c in table.columns} == columns, f"{schema}.{table.name}"


def test_days_are_made_while_a_long_transaction_holds_the_table_and_inserts_flow(
    settings: Settings, prefix: str
) -> None:
    owner, payments = engine_of(settings, "owner"), engine_of(settings, "payments")
    far = utc_now().date() + timedelta(days=40)
    inserted = threading.Event()
    with payments.connect() as long:
        long.begin()
        record(long, [outgoing()])  # holds its lock on the partitioned table
        maker = threading.Thread(target=make_days, args=(owner, ["payments"]), kwargs={"today": far, "days_ahead": 0})
        maker.start()
        for number in range(20):
            with payments.begin() as other:
                record(other, [outgoing(number, prefix)])
        inserted.set()
        maker.join(timeout=30)
        assert not maker.is_alive(), "a long transaction held up the making of a day"
        long.rollback()
    with owner.connect() as connection:
        assert far in days_of(connection, "payments", "outbox")


def waiting_for_a_lock(owner: Engine, like: str) -> bool:
    with owner.connect() as connection:
        statement = text(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE :like AND wait_event_type = 'Lock' AND state = 'active'"
        )
        return bool(connection.execute(statement, {"like": f"ALTER TABLE{like}"}).scalar())


def test_days_are_dropped_while_inserts_flow_and_kept_while_needed(settings: Settings, prefix: str) -> None:
    owner, payments = engine_of(settings, "owner"), engine_of(settings, "payments")
    old, before = date(2020, 1, 2), date(2020, 1, 3)
    make_days(owner, ["payments"], today=old, days_ahead=0)
    with payments.connect() as long:
        long.begin()
        record(long, [outgoing()])
        dropped, kept = drop_days(owner, "payments", "inbox", before=before, slot=settings.slot)
        assert not dropped
        assert "an outbox day as old is kept" in kept.values()
        long.rollback()
    dropped, kept = drop_days(owner, "payments", "outbox", before=before, slot="no_such_slot")
    assert not dropped
    assert all("slot is lost" in reason for reason in kept.values())

    # A long transaction holds its lock on the table: the drop waits for it, inserts do not.
    with payments.connect() as long:
        long.begin()
        record(long, [outgoing()])
        with ThreadPoolExecutor(1) as pool:
            dropping = pool.submit(drop_days, owner, "payments", "outbox", before=before, slot=settings.slot)
            eventually(lambda: waiting_for_a_lock(owner, "%DETACH PARTITION%"), what="the drop waits")
            for number in range(20):
                with payments.begin() as other:
                    record(other, [outgoing(number, prefix)])
            assert not dropping.done()
            long.rollback()
            dropped, kept = dropping.result(60)
    assert dropped == ["payments.outbox_20200101", "payments.outbox_20200102"]
    assert not kept
    drop_days(owner, "payments", "inbox", before=before, slot=settings.slot)
    with owner.connect() as connection:
        for table in PARTITIONED:
            assert old not in days_of(connection, "payments", table)


def test_a_day_left_half_made_by_an_earlier_version_is_made_anew_and_never_if_it_holds_rows(settings: Settings) -> None:
    owner, far = engine_of(settings, "owner"), utc_now().date() + timedelta(days=60)
    table = f"funds.{day_table('outbox', far)}"
    with owner.begin() as connection:
        connection.execute(text(f"CREATE TABLE {table} (LIKE funds.outbox INCLUDING DEFAULTS)"))
        connection.execute(text(f"INSERT INTO {table} (topic, key, version, type, correlation, payload) "
                                "VALUES ('t', 'k', 1, 't', 'c', '{}')"))  # fmt: skip
    with pytest.raises(NotReady, match="holds rows"):
        make_days(owner, ["funds"], today=far, days_ahead=0)
    with owner.begin() as connection:
        connection.execute(text(f"TRUNCATE {table}"))
    assert table in make_days(owner, ["funds"], today=far, days_ahead=0)


def test_an_outbox_takes_the_topics_of_its_own_service_only(settings: Settings) -> None:
    for service in SERVICES:
        for topic in TOPICS:
            with engine_of(settings, service).connect() as connection:
                statement = text("INSERT INTO outbox (topic, key, version, type, correlation, payload) "
                                 "VALUES (:topic, 'k', 1, 't', 'c', '{}')")  # fmt: skip
                refused = nullcontext() if topic.service == service else pytest.raises(IntegrityError)
                with refused:
                    connection.execute(statement, {"topic": topic.name})
                connection.rollback()


def test_a_new_service_has_what_the_others_have(settings: Settings) -> None:
    """Added by a migration's one line: columns, checks, indexes, triggers, grants, and its place in the publication."""
    with engine_of(settings, "owner").connect() as connection:
        add_service(connection, "courier", topics=("a.topic",))
        assert described(connection, "courier") == described(connection, "shop")
        assert published_tables(connection) == PUBLISHED_TABLES
        published = text("SELECT count(*) FROM pg_publication_tables WHERE schemaname = 'courier'")
        assert connection.execute(published).scalar() == 1
        own = text("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'courier.outbox'::regclass AND conname = 'outbox_topic_is_own'")  # fmt: skip
        assert "a.topic" in connection.execute(own).scalar_one()
        connection.execute(text("SET ROLE courier"))
        with pytest.raises(ProgrammingError, match="permission denied"):
            connection.execute(text("SELECT * FROM shop.outbox"))
        connection.rollback()


def described(connection: Connection, schema: str) -> list[str]:
    """Return what the catalog says of a schema and its kernel's tables, with the service's name taken out."""
    tables = list(outbox.tables.metadata.tables)
    lines = []
    for statement in DESCRIPTION.split(";"):
        rows = connection.execute(text(statement), {"schema": schema, "tables": tables})
        lines += [re.sub(rf"\b{schema}\b", "SERVICE", " ".join(map(str, row))) for row in rows]
    return sorted(lines)


DESCRIPTION = """
    SELECT 'column', table_name, ordinal_position, column_name, data_type, column_default, is_nullable, is_identity
    FROM information_schema.columns WHERE table_schema = :schema AND table_name = ANY(:tables);
    SELECT 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = CAST(:schema AS regnamespace) AND conname <> 'outbox_topic_is_own'
      AND conrelid IN (SELECT oid FROM pg_class WHERE relname = ANY(:tables));
    SELECT 'index', indexdef FROM pg_indexes WHERE schemaname = :schema AND tablename = ANY(:tables);
    SELECT 'trigger', pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid IN (
      SELECT oid FROM pg_class WHERE relname = ANY(:tables) AND relnamespace = CAST(:schema AS regnamespace));
    SELECT 'function', pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = CAST(:schema AS regnamespace)
      AND oid IN (SELECT tgfoid FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM pg_class WHERE relname = ANY(:tables)));
    SELECT 'table', relname, relkind, reloptions, pg_get_partkeydef(oid) FROM pg_class
    WHERE relname = ANY(:tables) AND relnamespace = CAST(:schema AS regnamespace);
    SELECT 'grant', table_name, grantee, privilege_type FROM information_schema.table_privileges
    WHERE table_schema = :schema AND table_name = ANY(:tables) AND grantee <> grantor;
    SELECT 'grant of a column', table_name, column_name, grantee, privilege_type FROM information_schema.column_privileges
    WHERE table_schema = :schema AND table_name = ANY(:tables) AND grantee <> grantor;
    SELECT 'use', grantee::regrole, privilege_type FROM pg_namespace CROSS JOIN LATERAL aclexplode(nspacl)
    WHERE nspname = :schema AND grantee <> nspowner;
    SELECT 'from now on', defaclobjtype, grantee::regrole, privilege_type
    FROM pg_default_acl CROSS JOIN LATERAL aclexplode(defaclacl) WHERE defaclnamespace = CAST(:schema AS regnamespace);
    SELECT 'setting', setconfig, setrole::regrole FROM pg_db_role_setting WHERE setrole = CAST(:schema AS regrole);
    SELECT 'role', rolcanlogin, rolsuper, rolreplication, rolinherit FROM pg_roles WHERE rolname = :schema"""


def test_the_reader_sees_no_secret(settings: Settings) -> None:
    for table in ("payments.merchant", "notification.receiver", "bank.receiver"):
        with engine_of(settings, "ops").connect() as connection, pytest.raises(ProgrammingError, match="denied"):
            connection.execute(text(f"SELECT secret FROM {table}"))
