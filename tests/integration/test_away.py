"""The other side is away, hangs, or ends what we do: the round and the fix go on, and say what was left."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

import ops.kafka.topics
from consumers.notification.queues import QUEUES
from ops.cli.doctor import upkeep as command_of_upkeep
from ops.pipeline.running import idle_queues
from ops.pipeline.upkeep import upkeep
from ops.reconcile.findings import Finding, Kind
from ops.reconcile.fix import carry_out
from ops.reconcile.plan import FixStep
from outbox.clock import utc_now
from outbox.database import driver_url
from outbox.settings import READER, Settings
from tests.pipeline import engine_of, fresh_id


@contextmanager
def hanging_server() -> Generator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_broker_that_hangs_is_in_the_report_and_the_rest_of_the_round_is_done(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops.kafka.topics, "TIMEOUT_S", 1.0)
    with hanging_server() as address:
        report = upkeep(settings.model_copy(update={"kafka_bootstrap": address}), now=utc_now())
    assert f"Kafka does not answer at {address}" in report.errors["kafka"]
    assert list(report.purged) == ["payments.bank_notification"]


def test_upkeep_every_goes_on_beside_a_broker_that_hangs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds: list[float] = []

    def until_the_third(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    for module in ("ops.kafka.topics", "ops.kafka.reader", "ops.kafka.groups"):
        monkeypatch.setattr(f"{module}.TIMEOUT_S", 0.2)
    monkeypatch.setattr("ops.cli.doctor.time.sleep", until_the_third)
    monkeypatch.setattr("ops.cli.doctor.local_folder", lambda: None)
    with hanging_server() as address:
        hangs = settings.model_copy(update={"kafka_bootstrap": address})
        monkeypatch.setattr("ops.cli.doctor.current_settings", lambda: hangs)
        command_of_upkeep(every=60)
    assert rounds == [60, 60, 60]
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count(f"failed: Kafka does not answer at {address}") >= 3


@contextmanager
def deadlocks(settings: Settings, times: int) -> Generator[None]:
    """So many inserts of points are ended as a deadlock would end them."""
    statements = """
        CREATE SEQUENCE points.deadlocks;
        GRANT USAGE ON SEQUENCE points.deadlocks TO points;
        CREATE FUNCTION points.deadlock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF nextval('points.deadlocks') <= {times} THEN
            RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected';
          END IF;
          RETURN NEW;
        END $$;
        CREATE TRIGGER deadlock BEFORE INSERT ON points.entry FOR EACH ROW WHEN (NEW.kind = 'correction')
        EXECUTE FUNCTION points.deadlock()"""
    owner = engine_of(settings, "owner")
    with owner.begin() as connection:
        connection.execute(text(statements.format(times=times)))
    try:
        yield
    finally:
        with owner.begin() as connection:
            connection.execute(text("DROP FUNCTION points.deadlock() CASCADE; DROP SEQUENCE points.deadlocks"))


@pytest.mark.parametrize(("times", "done"), [(1, 2), (5, 1)], ids=["once", "for as long as it tries"])
def test_reconcile_fix_goes_on_after_a_deadlock(settings: Settings, prefix: str, times: int, done: int) -> None:
    with engine_of(settings, "points").begin() as connection:
        for number in range(2):
            about = {"payment": f"{prefix}P{number}", "account": f"{prefix}U", "event": fresh_id()}
            connection.execute(
                text("INSERT INTO account VALUES (:account, 100) ON CONFLICT (account_no) DO NOTHING"), about
            )
            connection.execute(
                text("INSERT INTO entry (payment_no, account_no, kind, points, event_id) "
                     "VALUES (:payment, :account, 'earn', 100, :event)"), about)  # fmt: skip
    findings = [
        Finding(kind=Kind.STRAY_EFFECT, service="points", consumer=f"{settings.group_prefix}points", event_id=fresh_id(),
                key=f"{prefix}P{number}", business_no=f"{prefix}P{number}", effect=f"{prefix}U", found="100")
        for number in range(2)
    ]  # fmt: skip
    step = FixStep(what="corrected", kind=Kind.STRAY_EFFECT, at="points", findings=findings)
    with deadlocks(settings, times):
        [mended] = carry_out(settings, [step], actor="test", within_s=1.0)
    assert (mended.done, len(mended.failed)) == (done, 2 - done)
    assert all("deadlock" in why for why in mended.failed.values())


def test_a_notifier_of_another_database_serves_none_of_ours(settings: Settings) -> None:
    """Two payrelays on one server: staging's notifiers are not production's."""
    [queue, *_] = QUEUES
    ours = driver_url(settings.dsn_of(READER))
    there = SecretStr(ours.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False))
    elsewhere = settings.model_copy(update={"dsn": {**settings.dsn, READER: there}})
    how = {"application_name": f"payrelay notifier {queue}"}
    with create_engine(ours, poolclass=NullPool, connect_args=how).connect():
        assert queue not in idle_queues(settings)
        assert queue in idle_queues(elsewhere)
