"""Clean-up under a moved clock, on a stack of its own: nothing that is needed goes, what is not does, and a round cut off is finished."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, text
from typer.testing import CliRunner

from connect.client import ConnectClient
from consumers.accounting.agent import PROCESSOR
from consumers.delivery.retry import skip
from ops.cli.main import app
from ops.kafka.reader import wait_published
from ops.kafka.topics import topic_states
from ops.pipeline.upkeep import NOTIFICATIONS, upkeep
from ops.pipeline.upkeep_report import REPORT, Upkeep
from ops.stack.control import up
from ops.stack.state import PartState, StackFolder
from outbox.clock import Clocks, utc_now
from outbox.inbox import Arrival, Log, arrive, begin_log
from outbox.migrate import ensure_publication
from outbox.parking import Act, Action, Cause, Parked, park
from outbox.partitions import DROP_MARK, day_table, days_of, drop_days, make_days
from outbox.record import Outgoing, record
from outbox.settings import SERVICES, Settings
from outbox.tables import PARTITIONED
from schemas.topics import PAYMENT_ORDER, Topic
from tests.factories import settled
from tests.pipeline import ROOT, engine_of, environment
from tests.providers import Stack
from tests.waiting import eventually

CONSUMER = PROCESSOR.name
YEAR = Topic(name="t", service="s", key="k", partitions=1, retention_ms=365 * 86_400_000)

ROUND = """
from ops.pipeline.upkeep import upkeep
from outbox.clock import Clocks, utc_now
from outbox.settings import Settings
upkeep(Settings(), now=utc_now())
"""


def rows(settings: Settings, statement: str, **parameters: Any) -> list[Any]:
    with engine_of(settings, "owner").begin() as connection:
        result = connection.execute(text(statement), parameters)
        return list(result) if result.returns_rows else []


@contextmanager
def open_transaction(settings: Settings) -> Iterator[None]:
    """A transaction of payments stays open meanwhile."""
    with engine_of(settings, "payments").connect() as connection:
        connection.execute(text("SELECT 1"))
        yield
        connection.rollback()


@contextmanager
def unread(settings: Settings) -> Iterator[None]:
    """A worker that was ended long ago has the topic yet to read meanwhile."""
    topic_id = next(state.topic_id for state in topic_states(settings) if state.topic == PAYMENT_ORDER.name)
    with engine_of(settings, "points").begin() as connection:
        for number in range(PAYMENT_ORDER.partitions):
            log = Log(cluster_id="c", topic=PAYMENT_ORDER.name, topic_id=topic_id, partition=number)
            begin_log(connection, "points", log, next_offset=0)
    yield
    rows(settings, "DELETE FROM points.progress")


def attached(settings: Settings, service: str, table: str) -> list[str]:
    with engine_of(settings, "owner").connect() as connection:
        return [f"{service}.{day_table(table, day)}" for day in days_of(connection, service, table)]


def test_with_the_connector_stopped_for_twice_the_retention_nothing_unpublished_goes(spare_stack: StackFolder) -> None:
    up(spare_stack, infrastructure=True, with_parent=True)
    settings = spare_stack.settings(outbox_days=1, inbox_days=2)  # few days to drop: quick
    real, now = utc_now(), utc_now() + timedelta(days=2 * settings.inbox_days)
    outbox_day, inbox_day = (f"{service}.{day_table(table, real.date())}"
                             for service, table in (("payments", "outbox"), ("accounting", "inbox")))  # fmt: skip

    def passed_by(connection: Connection, *, now: datetime, **_: Any) -> Clocks:
        """So much time has passed, by every clock."""
        return Clocks(host=now, database=now, newest_row=now)

    def one_round(**given: Any) -> Upkeep:
        report = upkeep(settings, now=now, clocks=passed_by, catch_up=True, **given)
        assert report.errors == {}
        return report

    client = ConnectClient(settings.connect_url)
    client.stop(settings.connector)
    client.wait_stopped(settings.connector)
    with engine_of(settings, "payments").begin() as connection:
        ids = record(connection, [Outgoing(event=settled(number=n), version=1, correlation="c") for n in range(100)])
    log = Log(cluster_id="c", topic="t", topic_id="i", partition=0)
    with engine_of(settings, "accounting").begin() as connection:
        arrive(connection, CONSUMER, [Arrival(event_id=identity, log=log, offset=0) for identity in ids])

    report = one_round()
    assert report.kept[outbox_day] == "the replication slot has not passed it"
    assert report.kept[inbox_day] == "an outbox day as old is kept"
    assert outbox_day in attached(settings, "payments", "outbox")
    assert inbox_day in attached(settings, "accounting", "inbox")
    assert all(name not in report.dropped for name in report.kept)
    assert f"funds.{day_table('outbox', real.date())}" in report.dropped, "an empty day is published"
    assert f"payments.{day_table('outbox', (now + timedelta(days=14)).date())}" in report.made

    client.resume(settings.connector)
    client.wait_running(settings.connector)
    wait_published(settings, [PAYMENT_ORDER.name], ids, since=real, within_s=60)

    def passed() -> str | None:
        rows(settings, "SELECT pg_log_standby_snapshot()")  # the slot moves on from one of these to the next
        reason = one_round().kept.get(outbox_day)
        return None if reason == "the replication slot has not passed it" else reason

    with open_transaction(settings):
        reason = eventually(passed, within_s=60, what="the slot passes the published events")
        assert "open transactions are older" in reason
        rows(settings, "DROP PUBLICATION payrelay_outbox")  # the slot moves on without it, and publishes nothing
        assert "the publication is not whole" in one_round().kept[outbox_day]
        with engine_of(settings, "owner").begin() as connection:
            ensure_publication(connection)

    # One parked event as old keeps its consumer's day, also one whose body nobody could read; others' days go.
    with engine_of(settings, "accounting").begin() as connection:
        park(connection, CONSUMER, {log: [
            Parked(offset=0, event_id=None, key=b"k", type="t", version=None, headers={"ce_id": str(ids[0])}, value=b"?",
                   cause=Cause.UNDECODABLE, error="no")]})  # fmt: skip
    report = eventually(
        lambda: (latest := one_round()).kept.get(outbox_day) is None and latest, what="no transaction is old"
    )
    assert outbox_day not in attached(settings, "payments", "outbox")
    assert report.kept[inbox_day] == "1 parked events are as old"
    assert all(name.startswith("accounting.inbox_") for name in report.kept)
    assert f"funds.{day_table('inbox', real.date())}" not in attached(settings, "funds", "inbox")

    assert "a topic with a retention" in one_round(topics=[YEAR]).kept[inbox_day]
    with unread(settings):
        assert "a consumer has such to read" in one_round().kept[inbox_day]
    assert one_round().kept[inbox_day] == "1 parked events are as old"
    [parked] = rows(settings, "SELECT id FROM accounting.parked")
    act = Act(action=Action.SKIP, actor="test", reason="old")
    assert skip(engine_of(settings, "accounting"), CONSUMER, parked.id, act)
    assert inbox_day in one_round().dropped
    assert one_round().rows() == []
    for service in SERVICES:
        for table in PARTITIONED:
            assert rows(settings, "SELECT FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = :schema "
                                  "AND relname = :name", schema=service, name=day_table(table, real.date())) == []  # fmt: skip


def test_a_clock_that_is_far_ahead_removes_nothing(settings: Settings, prefix: str) -> None:
    today = utc_now().date()
    rows(settings, "INSERT INTO payments.bank_notification (webhook_id, body_sha256, answer_status, answer) "
                   "VALUES (:id, '', 200, '')", id=f"{prefix}new")  # fmt: skip
    report = upkeep(settings, now=utc_now() + timedelta(days=365))
    assert report.dropped == []
    assert report.purged == {NOTIFICATIONS: 0}
    for service in SERVICES:
        for table in PARTITIONED:
            assert f"{service}.{day_table(table, today)}" in attached(settings, service, table)
    assert "differ: set the wrong one right" in report.errors["clocks"]


def test_a_round_drops_two_days_of_a_table_and_catching_up_shows_the_rest_first(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = date(2019, 3, 2)
    make_days(engine_of(settings, "owner"), ["bank"], today=old, days_ahead=3)
    outbox, inbox = (
        [f"bank.{day_table(table, old + timedelta(days=n))}" for n in range(-1, 4)] for table in PARTITIONED
    )
    report = upkeep(settings, now=utc_now())
    assert [name for name in report.dropped if name in (*outbox, *inbox)] == [*outbox[:2], *inbox[:2]]
    assert report.left["bank.outbox"] == 3

    def catch_up(*options: str) -> Any:
        result = CliRunner().invoke(app, ["upkeep", "--catch-up", *options, "-o", "json"])
        return result, {row["what"]: row["outcome"] for row in json.loads(result.stdout)} if result.stdout else {}

    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    result, plan = catch_up()
    assert (result.exit_code, {plan[name] for name in (*outbox[2:], *inbox[2:])}) == (0, {"would be dropped"})
    assert "nothing was done: --execute drops them" in result.stderr
    assert attached(settings, "bank", "outbox")[:3] == outbox[2:]
    assert CliRunner().invoke(app, ["upkeep", "--execute"]).exit_code == 2
    result, done = catch_up("--execute", "--yes")
    assert result.exit_code == 0, result.output
    assert {done[name] for name in (*outbox[2:], *inbox[2:])} == {"dropped"}, (
        "what was done, and not the plan before it"
    )
    assert not {*outbox, *inbox} & {*attached(settings, "bank", "outbox"), *attached(settings, "bank", "inbox")}


def test_a_round_killed_half_way_is_finished_by_the_next(settings: Settings) -> None:
    owner, old = engine_of(settings, "owner"), date(2020, 3, 2)
    make_days(owner, ["shop"], today=old, days_ahead=2)
    [first, second] = [f"shop.{day_table('outbox', old + timedelta(days=n))}" for n in (-1, 0)]
    [third, by_hand] = [f"shop.{day_table('inbox', old + timedelta(days=n))}" for n in (-1, 0)]

    # Younger than the day, so that the round goes ahead; its lock on the table keeps the day half detached.
    pending = "SELECT FROM pg_inherits WHERE inhdetachpending AND inhparent = CAST('shop.outbox' AS regclass)"
    with engine_of(settings, "shop").connect() as connection:
        connection.execute(text("SELECT count(*) FROM outbox"))
        killed = subprocess.Popen([sys.executable, "-c", ROUND], cwd=ROOT, env=environment(settings))
        eventually(lambda: rows(settings, pending), within_s=60, what="a day is half detached")
        killed.kill()
        killed.wait()
        assert days_of(connection, "shop", "outbox", leaving=False)[0] == old, "it takes no rows any more"
        assert days_of(connection, "shop", "outbox")[0] == old - timedelta(days=1)
    ended = "SELECT FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE%' AND state = 'active'"
    eventually(lambda: not rows(settings, ended), what="its last statement has ended")

    # And two more ends that a kill can leave: marked only, and detached but not dropped. A day detached by hand is its owner's.
    rows(settings, f"COMMENT ON TABLE {second} IS '{DROP_MARK}'")
    for day, mark in ((third, DROP_MARK), (by_hand, "kept for the auditor")):
        rows(settings, f"ALTER TABLE shop.inbox DETACH PARTITION {day}")
        rows(settings, f"COMMENT ON TABLE {day} IS '{mark}'")
    report = upkeep(settings, now=utc_now())
    assert report.errors == {}
    assert second in report.dropped
    gone = "SELECT to_regclass(:name) IS NULL AS gone"
    assert [rows(settings, gone, name=day)[0].gone for day in (first, second, third, by_hand)] == [True] * 3 + [False]
    assert not rows(settings, pending)
    rows(settings, f"DROP TABLE {by_hand}")


def test_a_round_is_bounded_and_old_answers_to_the_bank_are_purged_in_batches(settings: Settings, prefix: str) -> None:
    real = utc_now()
    with engine_of(settings, "payments").begin() as connection:
        connection.execute(
            text("""INSERT INTO bank_notification (webhook_id, body_sha256, answer_status, answer, received_at)
                    SELECT :prefix || number, '', 200, '', CAST(:now AS timestamptz) - make_interval(days => 4000 + number % 2)
                    FROM generate_series(1, 2500) AS number"""), {"prefix": prefix, "now": real})  # fmt: skip
    with engine_of(settings, "payments").begin() as connection:
        connection.execute(text("INSERT INTO bank_notification (webhook_id, body_sha256, answer_status, answer) "
                                "VALUES (:id, '', 200, '')"), {"id": f"{prefix}new"})  # fmt: skip
    left = "SELECT webhook_id FROM payments.bank_notification WHERE webhook_id LIKE :like"
    for days, purged in ((4000.5, 1250), (3999, 1250), (3999, 0)):
        kept = settings.model_copy(update={"bank_notification_days": days, "outbox_days": 9999, "inbox_days": 9999})
        assert upkeep(kept, now=real).purged == {NOTIFICATIONS: purged}
    assert [row.webhook_id for row in rows(settings, left, like=f"{prefix}%")] == [f"{prefix}new"]

    owner, long_ago = engine_of(settings, "owner"), (real - timedelta(days=3000)).date()
    make_days(owner, ["shop"], today=long_ago, days_ahead=3)
    before = long_ago + timedelta(days=100)
    sizes = [len(drop_days(owner, "shop", "outbox", before=before, slot=settings.slot, limit=2)[0]) for _ in range(3)]
    assert sizes == [2, 2, 1]
    assert len(drop_days(owner, "shop", "inbox", before=before, slot=settings.slot)[0]) == 5


def test_what_goes_wrong_is_in_the_report_and_in_status_and_the_rest_of_the_round_is_done(
    spare_stack: StackFolder, settings: Settings
) -> None:
    settings = settings.model_copy(update={"database_url": SecretStr("")})
    report = upkeep(settings, now=utc_now())
    assert "PAYRELAY_DATABASE_URL is not set" in report.errors["owner"]
    assert NOTIFICATIONS in report.purged
    spare_stack.make()
    spare_stack.write_states([PartState(name="postgres")], started_at=0.0, progress={}, waits="")
    for errors, state in ((report.errors, "failed"), ({}, "done")):
        spare_stack.write(REPORT, asdict(report) | {"errors": errors})
        result = CliRunner().invoke(app, ["status", "--stack", spare_stack.name, "-o", "json"])
        _, shown = json.loads(result.stdout)
        assert (result.exit_code, shown["name"], shown["state"], shown["since"]) == (1, "upkeep", state, report.at)
        assert ("PAYRELAY_DATABASE_URL" in shown["condition"]) == bool(errors)


def test_a_stack_does_its_first_round_at_start(stack: Stack) -> None:
    report = eventually(lambda: stack.embedded.read(REPORT), what="the first round's report")
    assert report["errors"] == {}
