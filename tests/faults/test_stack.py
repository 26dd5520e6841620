"""Parts of the stack killed under real payments: lost 0, doubled 0, ledger balanced; slot and publication lost and repaired."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from ops.cli.main import app
from ops.cli.status import OLDER
from ops.demo.run import run_demo
from ops.kafka.reader import event_times
from ops.pipeline.checks import examine
from ops.pipeline.health import last_heartbeat, slot_state
from ops.pipeline.repair import plan_repair, repair_slot
from ops.stack.code import CODE
from ops.stack.control import start, stop
from ops.stack.state import ROOT, StackFolder
from outbox.clock import utc_now
from outbox.settings import Settings
from schemas.topics import PAYMENT_ORDER
from tests.pipeline import Pipeline, engine_of, frozen
from tests.providers import Stack
from tests.waiting import eventually


def pid_of(folder: StackFolder, part: str) -> int:
    def running() -> int | None:
        return next((s.pid for s in folder.states() if s.name == part and s.state == "running"), None)

    return eventually(running, within_s=60, what=f"{part} running") or 0


def healthy(settings: Settings) -> bool:
    return all(check.ok for check in examine(settings, now=utc_now()) if check.check != "parked")


def test_connect_broker_postgresql_a_service_and_a_worker_killed_under_payments(stack: Stack) -> None:
    """One after the other, each once the one before is back, while payments go on."""
    folder, begun = stack.embedded, utc_now()
    some = threading.Event()

    def watch(stage: str, done: int, _total: int) -> None:
        if stage == "paid" and done >= 60:
            some.set()

    with ThreadPoolExecutor(1) as pool:
        driven = pool.submit(run_demo, stack.settings, folder, orders=600, seed=7, rate=25, watch=watch)
        assert some.wait(60)
        for part in ("connect", "kafka", "postgres", "service:payments", "worker:accounting"):
            pid = pid_of(folder, part)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda part=part, pid=pid: pid_of(folder, part) != pid, within_s=60, what=f"{part} restarted")
        proof, _ = driven.result(150)
    assert proof.holds, proof.findings
    times = Counter(identity for identity, _ in event_times(stack.settings, [PAYMENT_ORDER.name], since=begun))
    assert max(times.values()) > 1, "no duplicate arrived: this proves nothing"


def test_postgresql_away_for_60_s_with_a_rebalance_and_a_start_falling_into_it(
    stack: Stack, pipeline: Pipeline
) -> None:
    folder = stack.embedded
    pipeline.settings = pipeline.settings.model_copy(update={"max_poll_interval_s": 10.0})
    first = pipeline.ready(pipeline.start())
    pipeline.send(pipeline.events(100))
    pipeline.all_posted()
    supervisor = folder.read("state.json")["supervisor"]
    with frozen(supervisor):  # or it would bring PostgreSQL back at once
        postgres = pid_of(folder, "postgres")
        os.kill(postgres, signal.SIGQUIT)
        begun = time.monotonic()
        pipeline.send(pipeline.events(200))
        eventually(
            lambda: "waiting for the database" in first.condition(), within_s=30, what="the worker waits and says so"
        )
        second = pipeline.start()  # starts, and rebalances, into the outage
        group = pipeline.consumer

        def members() -> int:
            return len(pipeline.admin.describe_consumer_groups([group])[group].result(20).members)

        eventually(lambda: members() == 2, within_s=40, what="both in the group, the database away")
        eventually(lambda: time.monotonic() - begun > 60, within_s=61)
        assert members() == 2, "a worker left its group for the database's sake"
    eventually(lambda: last_heartbeat(stack.settings), within_s=30, what="PostgreSQL back")
    pipeline.all_posted()
    pipeline.prove()
    assert first.process.poll() is None
    assert second.process.poll() is None
    eventually(lambda: healthy(stack.settings), within_s=60, what="the pipeline well again")


def test_workers_told_to_end_while_the_broker_is_frozen_or_away_end(stack: Stack, pipeline: Pipeline) -> None:
    folder = stack.embedded
    first, second = pipeline.start(), pipeline.start()
    for worker in (first, second):
        pipeline.ready(worker)
    pipeline.send(pipeline.events(100))
    pipeline.all_posted()
    broker = pid_of(folder, "kafka")
    with frozen(broker):
        assert first.end() == 0
    with frozen(folder.read("state.json")["supervisor"]):  # or it would bring the broker back at once
        os.kill(broker, signal.SIGKILL)
        eventually(lambda: "NodeNotReadyError" in second.log.read_text(), what="a worker that waits to fetch again")
        assert second.end() == 0
    eventually(lambda: pid_of(folder, "kafka") != broker, within_s=60, what="the broker back")
    pipeline.start()
    pipeline.send(pipeline.events(100))
    pipeline.all_posted()
    pipeline.prove()
    eventually(lambda: healthy(stack.settings), within_s=60, what="the pipeline well again")


def payrelay(folder: StackFolder, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PAYRELAY_HOME": str(folder.home), "PAYRELAY_STACK": folder.name}
    command = [sys.executable, "-m", "ops.cli.main", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=200)


def shown(folder: StackFolder) -> dict[str, str]:
    """Return each part's state as `payrelay status` shows it."""
    result = CliRunner().invoke(app, ["status", "--stack", folder.name, "-o", "json"])
    return {row["name"]: row["state"] for row in json.loads(result.stdout)}


def test_processors_with_nothing_to_do_are_not_shown_as_running_while_postgresql_is_stopped(stack: Stack) -> None:
    folder = stack.embedded
    processors = {f"worker:{name}" for name in ("funds", "points", "accounting", "notification", "settlement")}
    eventually(lambda: {shown(folder)[name] for name in processors} == {"running"}, within_s=60)
    pid = pid_of(folder, "worker:funds")
    stop(folder, ["postgres"])
    try:
        eventually(
            lambda: {shown(folder)[name] for name in processors} == {"waiting"},
            within_s=20,
            what="idle processors say that their database is away",
        )
    finally:
        start(folder, ["postgres"])
    eventually(
        lambda: {shown(folder)[name] for name in processors} == {"running"}, within_s=60, what="all is well again"
    )
    assert pid_of(folder, "worker:funds") == pid, "it waited, and did not end"
    assert not (Path(tempfile.gettempdir()) / f"payrelay-faust-{pid}").exists(), "a folder that nobody removes"


def test_the_demo_leaves_a_part_stopped_that_an_operator_stopped(stack: Stack) -> None:
    folder = stack.embedded
    stop(folder, ["worker:points"])
    try:
        ran = payrelay(folder, "demo", "--orders", "1")
        assert "worker:points" in folder.stopped_parts(), "the demo has started what an operator stopped"
        assert shown(folder)["worker:points"] == "stopped"
        assert ran.returncode == 1
        assert "payrelay start worker:points" in ran.stderr
    finally:
        start(folder, ["worker:points"])


def test_up_restarts_what_runs_older_code_and_says_so(stack: Stack) -> None:
    folder = stack.embedded
    same = pid_of(folder, "worker:funds"), pid_of(folder, "postgres")
    before = pid_of(folder, "worker:points")
    code = folder.read(CODE)
    code["parts"]["worker:points"] = "older"
    folder.write(CODE, code)
    status = payrelay(folder, "status", "-o", "json")
    conditions = {row["name"]: row["condition"] for row in json.loads(status.stdout)}
    assert [name for name, condition in conditions.items() if OLDER in condition] == ["worker:points"]
    assert "older code runs in worker:points; to restart what runs it: payrelay up\n" in status.stderr
    with engine_of(stack.settings, "owner").begin() as connection:
        connection.execute(text("ALTER ROLE points PASSWORD 'another'"))  # migrate sets it again
    ran = payrelay(folder, "up")
    assert ran.returncode == 0, ran.stderr
    assert "restarted, for they ran older code: worker:points\n" in ran.stderr
    assert "service payments" in ran.stderr, "where things are"
    assert "next: payrelay demo" in ran.stderr
    assert pid_of(folder, "worker:points") != before
    assert (pid_of(folder, "worker:funds"), pid_of(folder, "postgres")) == same
    again = payrelay(folder, "up")
    assert "the stack was up already\n" in again.stderr
    assert "restarted" not in again.stderr
    assert OLDER not in payrelay(folder, "status").stdout


def test_restart_gives_a_part_a_new_process(stack: Stack) -> None:
    folder = stack.embedded
    before = pid_of(folder, "worker:points")
    ran = payrelay(folder, "restart", "worker:points")
    assert (ran.returncode, ran.stderr) == (0, "running again: worker:points\n")
    assert pid_of(folder, "worker:points") != before
    assert payrelay(folder, "restart", "worker:nobody").returncode == 2


def test_sql_as_a_service_writes_its_own_schema_on_the_local_stack(stack: Stack) -> None:
    folder = stack.embedded
    ran = payrelay(
        folder,
        "sql",
        "--as",
        "points",
        "-c",
        "SELECT current_user, has_schema_privilege('funds', 'USAGE')",
        "--",
        "-At",
    )
    assert (ran.returncode, ran.stdout) == (0, "points|f\n"), ran.stderr


@pytest.mark.parametrize("lost", ["slot", "publication"])
def test_a_lost_slot_or_publication_is_found_and_mended(stack: Stack, lost: str) -> None:
    settings, folder = stack.settings, stack.embedded
    eventually(lambda: healthy(settings), within_s=60)
    owner = engine_of(settings, "owner").execution_options(isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        if lost == "slot":
            from connect.client import ConnectClient

            client = ConnectClient(settings.connect_url)
            client.stop(settings.connector)
            client.wait_stopped(settings.connector)
            connection.execute(text("SELECT pg_drop_replication_slot(:slot)"), {"slot": settings.slot})
        else:
            connection.execute(text("DROP PUBLICATION payrelay_outbox"))
    with ThreadPoolExecutor(1) as pool:  # payments go on: their rows are committed while nothing publishes them
        driven = pool.submit(
            run_demo, settings, folder, orders=100, seed=9, rate=20, watch=lambda _stage, _done, _total: None
        )  # fmt: skip

        def alarmed() -> bool:
            checks = {check.check: check.ok for check in examine(settings, now=utc_now())}
            return not checks[lost] and (lost == "publication" or not checks["heartbeat"])

        eventually(alarmed, within_s=30, what="doctor finds it")
        eventually(
            lambda: plan_repair(settings, now=utc_now()).missing, within_s=20, what="rows that nothing published"
        )
        repair_slot(settings, plan_repair(settings, now=utc_now()), say=lambda _: None)
        assert slot_state(settings).active, "mended is when somebody reads the slot"
        proof, _ = driven.result(120)
    assert proof.holds, proof.findings
    eventually(lambda: healthy(settings), within_s=30, what="the pipeline well again")
    assert not plan_repair(settings, now=utc_now()).missing
