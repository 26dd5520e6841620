"""Recovery by an operator's commands, on the real stack: events redelivered from the topic and from the outbox, kept rows emitted
again, Connect's own position moved."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from typer.testing import CliRunner

from connect.client import ConnectClient
from connect.source_offsets import position_of
from consumers.delivery.redeliver import Redelivered
from ops.cli.main import app
from ops.delivery.redeliver import redeliver_events
from ops.delivery.search import Window, searching
from ops.kafka.reader import bounds, id_of, read, wait_published
from ops.kafka.topics import topic_states
from ops.ledger.integrity import ledger_problems
from ops.pipeline.arrival import REPAIRING, arrivals, check_arrivals
from ops.pipeline.checks import examine
from ops.pipeline.health import slot_state
from ops.pipeline.repair import plan_repair, repair_slot
from ops.pipeline.snapshot import Rows, emit_again, find_rows
from ops.pipeline.source import standing
from outbox.clock import first_id_at, utc_now
from outbox.errors import NotReady, PayrelayError, Refused
from outbox.inbox import Log, move_to
from outbox.migrate import ensure_slot, migrate
from outbox.publication import PUBLICATION
from outbox.record import Outgoing, record
from outbox.settings import SERVICES, Settings
from schemas.codec import encode
from schemas.topics import PAYMENT_ORDER
from tests.factories import deposited, failed, settled, suspense
from tests.pipeline import Pipeline, engine_of, environment
from tests.waiting import eventually

Command = Callable[..., tuple[int, Any, str]]

TOPIC = PAYMENT_ORDER.name


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], Command]:
    """Run `payrelay …` with settings; gives exit code, rows and what was said."""

    def with_settings(settings: Settings) -> Command:
        for name, value in environment(settings).items():
            monkeypatch.setenv(name, value)

        def run(*arguments: str) -> tuple[int, Any, str]:
            result = CliRunner().invoke(app, [*arguments])
            if isinstance(result.exception, PayrelayError):
                raise result.exception
            return result.exit_code, json.loads(result.stdout) if result.stdout else None, result.stderr

        return run

    return with_settings


def recorded(settings: Settings, *events: Any) -> list[UUID]:
    """The events are in payments' outbox."""
    with engine_of(settings, "payments").begin() as connection:
        outgoing = [Outgoing(event=event, version=1, correlation=f"c-{event.payment_no}") for event in events]
        return record(connection, outgoing)


def published(settings: Settings, ids: list[UUID]) -> None:
    wait_published(settings, [TOPIC], ids, since=utc_now() - timedelta(minutes=1), within_s=60)


def copies(settings: Settings, begin: dict[tuple[str, int], int]) -> list[Any]:
    """Return the records appended from there on."""
    spans = {place: range(begin.get(place, 0), high) for place, (_, high) in bounds(settings, [TOPIC]).items()}
    return list(read(settings, spans))


def ends(settings: Settings) -> dict[tuple[str, int], int]:
    return {place: high for place, (_, high) in bounds(settings, [TOPIC]).items()}


def known_to(settings: Settings, consumer: str, ids: list[UUID]) -> int:
    with engine_of(settings, "ops").connect() as connection:
        statement = f"SELECT count(*) FROM {consumer}.inbox WHERE consumer = :consumer AND event_id = ANY(:ids)"
        return int(connection.execute(text(statement), {"consumer": consumer, "ids": ids}).scalar_one())


def forgotten(settings: Settings, consumer: str, ids: list[UUID]) -> None:
    """The consumer has not applied the events, which had no effect there."""
    with engine_of(settings, "owner").begin() as connection:
        connection.execute(text(f"DELETE FROM {consumer}.inbox WHERE event_id = ANY(:ids)"), {"ids": ids})


# ---- from the topic -----------------------------------------------------------------------------------------------


def test_a_window_that_was_passed_over_is_redelivered_beside_the_live_worker(
    pipeline: Pipeline, command: Callable[[Settings], Command]
) -> None:
    begin = utc_now() - timedelta(minutes=5)
    pipeline.send(pipeline.events(20))
    ids = {state.topic: state.topic_id for state in topic_states(pipeline.settings)}
    cluster = pipeline.admin.list_topics(timeout=10).cluster_id
    high = bounds(pipeline.settings, [pipeline.topic])
    with engine_of(pipeline.settings, "accounting").begin() as connection:  # as after a reset to latest
        for topic, partition in high:
            log = Log(cluster_id=cluster, topic=topic, topic_id=ids[topic], partition=partition)
            move_to(connection, pipeline.consumer, log, high[topic, partition][1])
    pipeline.ready(pipeline.start())
    pipeline.send(pipeline.events(5))
    eventually(lambda: pipeline.posted() == 5, what="the worker goes on behind the hole")
    progress = "SELECT sum(next_offset) FROM accounting.progress WHERE consumer = :consumer"
    before = pipeline.count(progress)

    payrelay = command(pipeline.settings)
    window = ("replay", "redeliver", "--consumer", pipeline.consumer, "--from", begin.isoformat(), "-o", "json")
    code, rows, said = payrelay(*window)
    assert (code, sum(row["applied"] for row in rows), sum(row["known"] for row in rows)) == (0, 20, 5)
    assert {row["place"] for row in rows} <= {f"{pipeline.topic}/{number}" for number in range(3)}
    assert "nothing was done" in said
    assert pipeline.posted() == 5

    event = pipeline.sent[3]
    code, [row], _ = payrelay(
        *window, "--order", event.order_no, "--key", event.key, "--type", event.type, "--execute", "--yes"
    )
    assert (code, row["applied"], row["known"]) == (0, 1, 0)
    for applied in (19, 0):
        code, [row], _ = payrelay(*window, "--execute", "--yes")
        assert (code, row["applied"], row["known"]) == (0, applied, 25 - applied)
    pipeline.prove()
    assert pipeline.count(progress) == before

    for how in ((), ("--execute", "--yes")):
        assert payrelay(*window, "--event", str(uuid4()), *how)[0] == 1, "found nowhere"
    assert payrelay(*window[:4], "--from", "2026-01-01T00:00:00")[0] == 2, "no zone"
    assert payrelay(*window[:4], "--from", "2026-01-01T00:00:00", "--tz", "Asia/Shanghai", "-o", "json")[0] == 0
    with pytest.raises(Refused, match="does not read"):
        payrelay(*window, "--topic", "shop.order")


# ---- from the outbox ----------------------------------------------------------------------------------------------


def test_a_row_of_the_outbox_makes_the_record_that_the_connector_makes(settings: Settings, prefix: str) -> None:
    begin = ends(settings)
    ids = recorded(settings, failed(payment_no=f"{prefix}P"))
    published(settings, ids)
    [message] = [copy for copy in copies(settings, begin) if id_of(copy) == ids[0]]
    with searching(settings, "points", Window(events=frozenset(ids))) as search:
        [past] = search.in_outbox()
        [lying] = search.on_topics()
    assert (past.key, past.value) == (message.key(), message.value())
    assert dict(past.headers) == {name: value for name, value in message.headers() if name != "id"}
    assert (past.log.topic, past.log.partition, past.offset) == (TOPIC, -1, -1)
    assert (lying.log.partition, lying.offset) == (message.partition(), message.offset())


def test_events_that_reached_no_topic_are_applied_from_the_outbox_and_known_when_they_come(
    settings: Settings, prefix: str
) -> None:
    """The slot is lost with all that it had not passed: nothing is under way any more."""
    client = ConnectClient(settings.connect_url)
    client.stop(settings.connector)
    client.wait_stopped(settings.connector)
    ids = recorded(settings, *(settled(prefix=prefix, number=number) for number in range(20)))
    under_way = redeliver_events(settings, "accounting", ids, execute=True)
    assert under_way == Redelivered(waiting=20), "the connector will bring them once it runs"
    with engine_of(settings, "owner").execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("SELECT pg_drop_replication_slot(:slot)"), {"slot": settings.slot})

    nobody = uuid4()
    assert redeliver_events(settings, "accounting", [*ids, nobody], execute=False) == Redelivered(
        applied=20, missing={nobody}
    )
    for expected in (Redelivered(applied=20), Redelivered(known=20)):
        assert redeliver_events(settings, "accounting", ids, execute=True) == expected
    said: list[str] = []
    repair_slot(settings, plan_repair(settings, now=utc_now()), say=said.append)
    eventually(lambda: known_to(settings, "points", ids) == 20, what="points has them by the topic")
    with engine_of(settings, "ops").connect() as connection:
        statement = "SELECT count(*), count(DISTINCT business_no) FROM accounting.voucher WHERE business_no LIKE :like"
        assert tuple(connection.execute(text(statement), {"like": f"{prefix}%"}).one()) == (20, 20)
        assert ledger_problems(connection) == []


def test_what_comes_to_the_topic_during_a_redelivery_from_the_outbox_is_left_to_the_live_stream(
    settings: Settings, prefix: str
) -> None:
    """Else it could be applied before an earlier event of its key that came with it."""
    with searching(settings, "accounting", Window(key=f"{prefix}P1")) as search:
        waits = search.waiting()
        published(settings, recorded(settings, failed(payment_no=f"{prefix}P1")))
        assert [waits(record) for record in search.in_outbox()] == [True]


def test_a_fact_that_has_its_effect_is_told_and_exit_code_1(
    settings: Settings, prefix: str, command: Callable[[Settings], Command]
) -> None:
    ids = recorded(settings, settled(prefix=prefix))
    eventually(lambda: known_to(settings, "accounting", ids), what="applied")
    forgotten(settings, "accounting", ids)
    for _ in range(2):
        code, [row], said = command(settings)(
            "replay", "redeliver", "--consumer", "accounting", "--from-outbox", "--event", str(ids[0]), "--execute", "--yes",
            "-o", "json",
        )  # fmt: skip
        assert (code, row["failed"]) == (1, 1)
        assert f"{ids[0]}: DuplicateFact" in said
    with engine_of(settings, "accounting").begin() as connection:  # for the tests that come
        connection.execute(
            text("INSERT INTO inbox VALUES ('accounting', :id, 't', 0, 0) ON CONFLICT DO NOTHING"), {"id": ids[0]}
        )


def test_the_outside_is_told_again_only_when_asked_and_under_the_same_id(
    settings: Settings, prefix: str, command: Callable[[Settings], Command]
) -> None:
    """Merchants of the test have no receiver: what is due is tried in vain."""
    ids = recorded(settings, failed(payment_no=f"{prefix}P1"), failed(payment_no=f"{prefix}P2"))
    eventually(lambda: known_to(settings, "notification", ids) == 2, what="records are written")
    records = text("SELECT id, status FROM notification.notify_record WHERE event_id = ANY(:ids) ORDER BY id")

    def notifications() -> list[Any]:
        with engine_of(settings, "ops").connect() as connection:
            return list(connection.execute(records, {"ids": ids}))

    with engine_of(settings, "owner").begin() as connection:  # as if the merchant had been notified
        connection.execute(
            text(
                "UPDATE notification.notify_record SET status = 'SUCCESS', finished_at = clock_timestamp(), "
                "attempts = attempts + 1, leased_until = NULL WHERE event_id = ANY(:ids)"
            ),
            {"ids": ids},
        )
    before = notifications()
    window = (
        "replay",
        "redeliver",
        "--consumer",
        "notification",
        "--from-outbox",
        "--order",
        f"c-{prefix}P1",
        "-o",
        "json",
    )
    payrelay = command(settings)
    code, [row], _ = payrelay(*window, "--execute", "--yes")
    assert (code, row["known"], row["resent"], notifications()) == (0, 1, 0, before)
    code, [row], said = payrelay(*window, "--resend-external")
    assert (row["resent"], notifications()) == (1, before)
    assert "notify about 0 for the first time and about 1 again" in said
    for resent in (1, 0):  # the second time it is due already
        code, [row], _ = payrelay(*window, "--resend-external", "--execute", "--yes")
        assert (code, row["known"], row["resent"]) == (0, 1, resent)
    assert [row.id for row in notifications()] == [row.id for row in before]
    assert sorted(row.status == "SUCCESS" for row in notifications()) == [False, True]


# ---- kept rows emitted again --------------------------------------------------------------------------------------


def test_kept_rows_are_emitted_again_by_any_condition_and_known_to_whoever_had_them(
    settings: Settings, prefix: str, command: Callable[[Settings], Command]
) -> None:
    since = utc_now() - timedelta(seconds=5)
    ids = recorded(settings, *(suspense(payment_no=f"{prefix}P{number}", bank_transaction_no=f"{prefix}B{number}")
                               for number in range(30)))  # fmt: skip
    eventually(lambda: known_to(settings, "accounting", ids) == 30, what="applied")
    begin = ends(settings)
    payrelay = command(settings)
    like = f"key LIKE '{prefix}%' AND created_at > '2026-01-01 10:30:00+00'"
    code, [row], said = payrelay("connect", "snapshot", "--where", like, "-o", "json")
    assert (code, row["outbox"], row["rows"]) == (0, "payments.outbox", 30)
    assert "nothing was done" in said
    assert payrelay("connect", "snapshot")[0] == 2, "nothing is meant"
    assert payrelay("connect", "snapshot", "--since", "2026-01-01")[0] == 2, "no zone"
    assert copies(settings, begin) == []

    code, _, said = payrelay(
        "connect", "snapshot", "--where", like, "--since", since.isoformat(), "--execute", "--yes", "-o", "json"
    )
    assert (code, "30 events are on their topics again" in said) == (0, True)
    emit_again(settings, {"payments": ids[::3]}, within_s=60)  # with others between them
    again = [id_of(copy) for copy in copies(settings, begin)]
    assert {identity: again.count(identity) for identity in ids} == {
        identity: 2 if number % 3 == 0 else 1 for number, identity in enumerate(ids)
    }
    live = recorded(settings, suspense(payment_no=f"{prefix}L", bank_transaction_no=f"{prefix}L"))
    eventually(lambda: known_to(settings, "accounting", live), what="the copies are passed")
    with engine_of(settings, "ops").connect() as connection:
        statement = text("SELECT count(*) FROM accounting.voucher WHERE business_no LIKE :like")
        assert connection.execute(statement, {"like": f"{prefix}%"}).scalar_one() == 31
        assert connection.execute(text("SELECT count(*) FROM connect.signal")).scalar_one() == 0


@pytest.fixture
def dblink(settings: Settings) -> Generator[str]:
    """The extension, where every role may use it; gives the address of a role that may write."""
    with engine_of(settings, "owner").begin() as owner:
        owner.execute(text("CREATE SCHEMA linking"))
        owner.execute(text("CREATE EXTENSION dblink SCHEMA linking"))
        owner.execute(text("GRANT USAGE ON SCHEMA linking TO PUBLIC"))
        owner.execute(
            text("""CREATE FUNCTION linking.quiet() RETURNS boolean STABLE LANGUAGE sql
                              AS $$ SELECT pg_logical_emit_message(false, 'p', 'c') IS NOT NULL $$""")
        )
        owner.execute(text("CREATE VIEW linking.rows AS SELECT linking.quiet() AS quiet"))
        owner.execute(text("GRANT SELECT ON linking.rows TO PUBLIC"))
    yield settings.dsn_of("payments")
    with engine_of(settings, "owner").begin() as owner:
        owner.execute(text("DROP SCHEMA linking CASCADE"))


def test_a_condition_that_could_have_an_effect_is_refused_and_has_none(
    settings: Settings, dblink: str, tmp_path: Path
) -> None:
    """Nor does a read-only transaction keep a message out of the log, or another connection from writing."""
    image = tmp_path / "image"
    image.write_text("x")
    for condition in (
        "pg_logical_emit_message(false, 'p', 'c') IS NOT NULL",
        f"linking.dblink_exec('{dblink}', 'DELETE FROM payments.merchant') IS NOT NULL",
        f"lo_import('{image}') > 0",
        "lo_create(0) > 0",
        "set_config('role', 'none', true) IS NOT NULL",
        "query_to_xml('SELECT pg_logical_emit_message(false, $$p$$, $$c$$)', true, true, '') IS NOT NULL",
        "pg_try_advisory_lock(1)",
        "linking.quiet()",
        "EXISTS (SELECT FROM linking.rows WHERE quiet)",
        "true) AND (SELECT linking.quiet()) UNION SELECT id FROM payments.outbox WHERE (true",
        "EXISTS (SELECT FROM payments.payment)",
    ):
        with pytest.raises(Refused, match=r"may have an effect|permission denied"):
            find_rows(settings, ["payments"], Rows(where=condition))
    with engine_of(settings, "owner").connect() as owner:
        assert owner.execute(text("SELECT count(*) FROM pg_largeobject_metadata")).scalar_one() == 0


def test_a_role_that_owns_nothing_reads_the_outboxes_and_nothing_else(settings: Settings) -> None:
    with engine_of(settings, "owner").connect() as owner:
        readable = owner.execute(text("""
            SELECT table_schema || '.' || table_name FROM information_schema.role_table_grants
            WHERE grantee = 'outbox_reader' ORDER BY 1""")).scalars().all()  # fmt: skip
        assert readable == sorted(f"{service}.outbox" for service in SERVICES)
        assert not owner.execute(
            text("""
            SELECT count(*) FROM pg_auth_members WHERE member = 'outbox_reader'::regrole""")
        ).scalar_one()


@pytest.mark.parametrize(
    "where", ["true); DELETE FROM payments.outbox; --", "true) UNION SELECT 1 --", "no_such_column = 1", "id ="]
)
def test_a_condition_that_is_more_or_less_than_one_is_refused(settings: Settings, where: str) -> None:
    with pytest.raises(Refused, match="is not valid SQL"):
        find_rows(settings, ["payments"], Rows(where=where))


def test_what_cannot_be_emitted_again_is_refused_at_once(settings: Settings, prefix: str) -> None:
    with pytest.raises(Refused, match="1 of 1 events are in the outbox of payments no more"):
        emit_again(settings, {"payments": [uuid4()]}, within_s=5)
    ids = recorded(settings, failed(payment_no=f"{prefix}P"))
    published(settings, ids)
    client = ConnectClient(settings.connect_url)
    client.pause(settings.connector)
    try:
        eventually(lambda: not client.status(settings.connector).is_running, what="paused")
        with pytest.raises(NotReady, match="does not run"):
            emit_again(settings, {"payments": ids}, within_s=5)
    finally:
        client.resume(settings.connector)
        client.wait_running(settings.connector)


def test_a_connector_restarted_in_the_middle_goes_on_and_live_events_flow(settings: Settings, prefix: str) -> None:
    ids = recorded(settings, *(failed(payment_no=f"{prefix}P{number}") for number in range(1_500)))
    published(settings, ids)
    begin = ends(settings)
    client = ConnectClient(settings.connect_url)
    with ThreadPoolExecutor(1) as pool:
        emitting = pool.submit(emit_again, settings, {"payments": ids}, within_s=120)
        eventually(lambda: copies(settings, begin), what="it has begun")
        client.restart(settings.connector)
        live = recorded(settings, failed(payment_no=f"{prefix}L"))
        emitting.result(120)
    again = [id_of(copy) for copy in copies(settings, begin)]
    assert set(ids) <= set(again)
    published(settings, live)


# ---- what is recorded and on no topic -----------------------------------------------------------------------------


def deposited_long_ago(settings: Settings, prefix: str, count: int) -> list[UUID]:
    """Deposits are in the outbox of funds as of forty minutes ago, or of its last event: a dead topic has no later ones."""
    ids = []
    with engine_of(settings, "owner").begin() as owner:
        last = owner.execute(text("SELECT max(created_at) FROM funds.outbox WHERE topic = 'funds.transfer'")).scalar()
        long_ago = utc_now() - timedelta(minutes=40)
        at = max(long_ago, last) if last else long_ago
        for number in range(count):
            event = deposited(deposit_no=f"{prefix}D{number}", payer_no=f"{prefix}U")
            ids.append(UUID(int=first_id_at(at).int | 7 << 76 | 2 << 62 | uuid4().int & (1 << 62) - 1))
            owner.execute(
                text("""INSERT INTO funds.outbox (id, topic, key, version, type, correlation, payload, created_at)
                        VALUES (:id, 'funds.transfer', :key, 1, :type, :key, :payload, :at)"""),
                {"id": ids[-1], "key": event.key, "type": event.type, "payload": encode(event), "at": at},
            )
    return ids


def test_a_busy_topic_does_not_hide_a_dead_one_and_the_repair_emits_what_is_missing_on_it(
    settings: Settings, prefix: str, command: Callable[[Settings], Command]
) -> None:
    """A part of the publication is gone, though it holds as many tables as ever; the other topics go on."""
    with engine_of(settings, "owner").begin() as owner:
        owner.execute(text(f"ALTER PUBLICATION {PUBLICATION} DROP TABLE funds.outbox"))
        owner.execute(text(f"ALTER PUBLICATION {PUBLICATION} ADD TABLE bank.transaction"))
    dead = deposited_long_ago(settings, prefix, 5)
    alive = recorded(settings, failed(payment_no=f"{prefix}P"))
    published(settings, alive)
    checks = {check.check: check for check in examine(settings, now=utc_now())}
    assert not checks["publication"].ok
    assert not set(dead) - plan_repair(settings, now=utc_now()).missing, "the busy topic has hidden the dead one"
    later = settings.model_copy(update={"outbox_days": 1})
    overdue = plan_repair(later, now=utc_now() + timedelta(days=2))
    assert not set(dead) - overdue.missing, (
        "rows past their retention, which are kept while they are on no topic, are left out"
    )
    assert overdue.since["funds.outbox"] < dead[0], "the snapshot reads them"
    [funds] = [arrival for arrival in arrivals(settings, grace=timedelta(0)) if arrival.topic == "funds.transfer"]
    assert {row.id for row in funds.missing} == set(dead)

    with engine_of(settings, "owner").connect() as locking:
        pid = locking.execute(text("SELECT pg_backend_pid()")).scalar_one()
        locking.execute(text("LOCK TABLE funds.outbox IN SHARE UPDATE EXCLUSIVE MODE"))
        brief = settings.model_copy(update={"slot_wait_s": 1.0})
        with pytest.raises(NotReady, match=rf"tables are locked.* session {pid} "):
            repair_slot(brief, plan_repair(settings, now=utc_now()), say=lambda _: None)
    _, rows, said = command(settings)("doctor", "--repair-slot", "--execute", "--yes", "-o", "json")
    assert "5 recorded events are on no topic" in said
    wait_published(settings, ["funds.transfer"], dead, since=utc_now() - timedelta(minutes=5), within_s=20)
    assert [row["check"] for row in rows if not row["ok"] and row["check"] != "parked"] == []
    assert not check_arrivals(settings, grace=timedelta(0)).fix


def test_a_repair_beside_an_open_transaction_names_it_gives_up_and_leaves_the_connector_running(
    settings: Settings, prefix: str
) -> None:
    brief, said = settings.model_copy(update={"slot_wait_s": 1.0}), []
    plan = plan_repair(settings, now=utc_now())
    client = ConnectClient(settings.connect_url)
    with ThreadPoolExecutor(2) as pool, engine_of(settings, "payments").connect() as writing:
        pid = writing.execute(text("SELECT pg_backend_pid(), txid_current()")).scalar_one()
        repairing = pool.submit(repair_slot, brief, plan, say=said.append)
        migrating = pool.submit(slot_made_beside, settings)
        try:
            left = wait([repairing, migrating], timeout=30).not_done
            assert not left, f"after 30 s it still waits, with the connector {client.status(settings.connector).state}"
            for waiting in (repairing, migrating):
                with pytest.raises(NotReady, match=rf"session {pid} \(payments"):
                    waiting.result()
        finally:
            writing.rollback()  # or what waits for it would do so for ever
            wait([repairing, migrating], timeout=120)
    assert client.status(settings.connector).is_running
    assert slot_state(settings).active
    published(settings, recorded(settings, failed(payment_no=f"{prefix}P")))
    with engine_of(settings, "owner").connect() as owner:
        left = owner.execute(text("SELECT slot_name FROM pg_replication_slots")).scalars().all()
    assert left == [settings.slot]


def slot_made_beside(settings: Settings) -> None:
    """`payrelay migrate` waits for the same transactions."""
    with engine_of(settings, "owner").connect().execution_options(isolation_level="AUTOCOMMIT") as owner:
        ensure_slot(owner, "beside", **({"within_s": 1.0} if "within_s" in signature(ensure_slot).parameters else {}))


def test_doctor_says_how_what_waits_comes_to_its_topic_and_knows_a_repair(settings: Settings, prefix: str) -> None:
    client = ConnectClient(settings.connect_url)
    client.stop(settings.connector)
    client.wait_stopped(settings.connector)
    ids = recorded(settings, failed(payment_no=f"{prefix}P"))
    try:
        waiting = check_arrivals(settings, grace=timedelta(0))
        assert (waiting.ok, waiting.fix) == (False, "payrelay connect resume")
        with engine_of(settings, "owner").connect() as owner:
            owner.execute(text("SELECT pg_advisory_lock(hashtextextended(:name, 0))"), {"name": REPAIRING})
            assert "a repair is under way" in check_arrivals(settings, grace=timedelta(0)).found
            with pytest.raises(Refused, match="another repair"):
                repair_slot(settings, plan_repair(settings, now=utc_now()), say=lambda _: None)
    finally:
        client.resume(settings.connector)
        client.wait_running(settings.connector)
    published(settings, ids)
    eventually(lambda: check_arrivals(settings, grace=timedelta(0)).ok, what="arrived")


def test_a_message_in_the_log_stops_nothing_and_only_the_owner_may_write_one(settings: Settings, prefix: str) -> None:
    emit = text("SELECT pg_logical_emit_message(:transactional, :prefix, 'content')")
    with engine_of(settings, "owner").begin() as owner:
        for name in ("anything", "", "several\nlines", TOPIC):
            owner.execute(emit, {"transactional": False, "prefix": name})
            owner.execute(emit, {"transactional": True, "prefix": name})
    published(settings, recorded(settings, failed(payment_no=f"{prefix}P")))
    for role in ("ops", "payments"):
        with (
            engine_of(settings, role).connect() as connection,
            pytest.raises(ProgrammingError, match="permission denied"),
        ):
            connection.execute(emit, {"transactional": False, "prefix": "anything"})


def test_doctor_says_where_every_role_may_write_messages_and_migrate_takes_that_back(settings: Settings) -> None:
    def said() -> str:
        return {check.check: check.found for check in examine(settings, now=utc_now())}.get("log messages", "")

    with engine_of(settings, "owner").begin() as owner:
        owner.execute(
            text("GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, bytea, boolean) TO PUBLIC")
        )
    assert "every role may write them" in said()
    migrate(settings, today=utc_now().date())
    assert "only the owner's" in said()


# ---- Connect's own position ---------------------------------------------------------------------------------------


def test_connects_note_is_forgotten_or_set_and_what_would_lose_events_is_refused(
    settings: Settings, prefix: str, command: Callable[[Settings], Command], tmp_path: Path
) -> None:
    payrelay = command(settings)
    first = recorded(settings, failed(payment_no=f"{prefix}P1"))
    published(settings, first)
    code, old, said = payrelay("connect", "offsets", "get")
    assert (code, old["connector"]) == (0, settings.connector)
    assert "and does not go back" in said
    (tmp_path / "old.json").write_text(json.dumps(old))

    code, _, said = payrelay("connect", "offsets", "reset")
    assert (code, "nothing was done" in said) == (0, True)
    kept = tmp_path / "kept.json"
    second = recorded(settings, failed(payment_no=f"{prefix}P2"))
    code, _, said = payrelay("connect", "offsets", "reset", "--export", str(kept), "--execute", "--yes")
    assert code == 0, said
    assert json.loads(kept.read_text())["connector"] == settings.connector
    client = ConnectClient(settings.connect_url)
    config = client.config(settings.connector) or {}
    assert not [name for name in config if name.startswith("snapshot.select")], "the bound is taken away"
    third = recorded(settings, failed(payment_no=f"{prefix}P3"))
    published(settings, [*second, *third])

    # Older than the slot: it cannot be gone back to.
    def passed() -> bool:
        slot = standing(settings)
        return (slot.confirmed_lsn or 0) > (position_of(old["offsets"]) or 0)

    eventually(passed, within_s=60, what="the slot has passed the old position")
    with pytest.raises(Refused, match="PostgreSQL does not go back"):
        payrelay("connect", "offsets", "reset", "--from-file", str(tmp_path / "old.json"), "--execute", "--yes")

    # Beyond what is published: it would pass over it.
    client.stop(settings.connector)
    client.wait_stopped(settings.connector)
    lost = recorded(settings, failed(payment_no=f"{prefix}P4"))
    for target, why in ((standing(settings).written_lsn, "passes over 1 recorded events"), (2**62, "beyond the end")):
        ahead = [
            {"partition": position["partition"], "offset": position["offset"] | {"lsn": target}}
            for position in old["offsets"]
        ]
        (tmp_path / "ahead.json").write_text(json.dumps(old | {"offsets": ahead}))
        with pytest.raises(Refused, match=why):
            payrelay("connect", "offsets", "reset", "--from-file", str(tmp_path / "ahead.json"), "--execute", "--yes")

    # At the slot's position nothing is lost. Once it runs, the slot goes on, and the same file is refused.
    slot = standing(settings)
    here = [
        {"partition": position["partition"], "offset": {"lsn": slot.confirmed_lsn}} for position in slot.noted.offsets
    ]
    (tmp_path / "here.json").write_text(json.dumps(old | {"offsets": here}))
    from_here = ("connect", "offsets", "reset", "--from-file", str(tmp_path / "here.json"), "--execute", "--yes")
    code, _, said = payrelay(*from_here, "--export", str(tmp_path / "again.json"))
    assert code == 0, said
    published(settings, lost)
    eventually(
        lambda: (standing(settings).confirmed_lsn or 0) > (slot.confirmed_lsn or 0), within_s=60, what="it goes on"
    )
    with pytest.raises(Refused, match="does not go back"):
        payrelay(*from_here, "--export", str(tmp_path / "third.json"))
    for content, why in ((b"{}", "holds no offsets"), (b"\xff", "cannot be read")):
        (tmp_path / "none.json").write_bytes(content)
        with pytest.raises(Refused, match=why):
            payrelay("connect", "offsets", "reset", "--from-file", str(tmp_path / "none.json"))
    with pytest.raises(Refused, match="the present offset cannot be kept"):
        payrelay("connect", "offsets", "reset", "--export", str(kept), "--execute", "--yes")
