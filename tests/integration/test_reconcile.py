"""Every kind of difference, planted among payments on a stack of its own: all and only these are named until they are fixed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from benchmarks.holes import FIRST, PROCESSORS, Field, Named, named
from ops.cli.main import app
from ops.ledger.reads import check
from ops.pipeline.health import reader_engine
from ops.reconcile import state
from ops.reconcile.findings import Finding, Kind
from ops.reconcile.fix import carry_out
from ops.reconcile.plan import FixStep, plan
from ops.reconcile.run import Report, reconcile
from ops.stack.control import down, up
from ops.stack.state import StackFolder
from ops.timeline.story import timeline
from outbox.clock import time_of, utc_now
from outbox.errors import PayrelayError, Refused
from outbox.inbox import Arrival, Log, arrive
from outbox.settings import SERVICES, Settings
from schemas.codec import Envelope
from tests import loyalty
from tests.pipeline import ROOT, engine_of, environment, fresh_id
from tests.waiting import eventually

SECOND = timedelta(seconds=1)
ALL = " ".join(PROCESSORS)
"""In one process: it starts sooner than five."""

EARNED = "(SELECT coalesce(sum(stamps), 0) FROM shop.stamp WHERE stamp.payer_no = card.payer_no)"
"""What the rows of a card of the tests' own consumer add up to."""

KILLED = """
import os, signal, sys
from ops.reconcile import state
from outbox import inbox
def killed(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "remember":
    state.remember = killed
else:
    import ops.reconcile.fix as mend
    note, left = mend._note, [int(sys.argv[1])]
    def counted(*given):
        left[0] -= 1
        if left[0] < 0: killed()
        note(*given)
    mend._note = counted
from ops.cli.main import app
app(["reconcile", "--grace", "1s", *sys.argv[2:]])
"""
"""The command, killed before it stores its findings, or after so many single fixes."""


@pytest.fixture(scope="module")
def field() -> Generator[Field]:
    """Payments with two holes of every kind. No worker runs afterwards."""
    folder = StackFolder(name="reconcile-" + str(id(object())))
    try:
        up(folder, infrastructure=True, with_parent=True)
        made = Field(folder)
        made.pay(100)
        made.plant(2)
        made.pay(100)
        with made.workers([" ".join(FIRST)]):
            made.drained(FIRST)
            made.plant_answers(2)
            with made.workers(["settlement"]):
                made.drained()
        made.finish()
        yield made
        made.close()
    finally:
        down(folder, wipe=True)


@pytest.fixture
def command(field: Field, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any, str]]:
    """Run `payrelay reconcile …`; gives exit code, what was printed, and what was said."""
    for name, value in environment(field.settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, Any, str]:
        result = CliRunner().invoke(app, ["reconcile", "--grace", "1s", *arguments])
        if isinstance(result.exception, PayrelayError):
            raise result.exception
        return result.exit_code, json.loads(result.stdout) if "json" in arguments else result.stdout, result.stderr

    return run


def settled(field: Field, **how: Any) -> Report:
    """Return the first report in which nothing is on its way any more."""

    def report() -> Report | None:
        latest = reconcile(field.settings, grace=SECOND, **how)
        return None if latest.waiting else latest

    final_report = eventually(report, within_s=60, what="nothing waits")
    assert final_report is not None
    return final_report


def of(report: Report) -> list[Named]:
    """Return what a report names, without what other tests of this file leave behind."""
    return sorted(named(report.findings))


def killed(field: Field, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=environment(field.settings) | {"PATH": ""}, cwd=ROOT, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr.decode()[-2000:]


def rows(field: Field, statement: str, **parameters: Any) -> list[Any]:
    with reader_engine(field.settings).connect() as connection:
        return list(connection.execute(text(statement), parameters))


def test_a_run_that_is_killed_leaves_nothing_and_the_next_one_names_all_and_only_what_was_planted(field: Field) -> None:
    killed(field, "remember", "--full")
    assert not rows(field, "SELECT FROM reconcile.checkpoint") + rows(field, "SELECT FROM reconcile.finding")
    kinds = {kind for kind, _, _ in field.planted}
    assert len(kinds) == 10
    assert len(field.planted) == 2 * 26
    settled_report = settled(field, full=True)
    assert of(settled_report) == sorted(field.planted)


def test_what_is_not_mended_is_named_again_by_runs_that_look_at_little(field: Field) -> None:
    before = settled(field)
    again = reconcile(field.settings, grace=SECOND)
    assert of(before) == of(again) == sorted(field.planted)
    assert again.events < 60, "only the open ones' events"
    assert of(reconcile(field.settings, grace=SECOND, full=True)) == sorted(field.planted)


def test_two_runs_beside_each_other_are_one(field: Field) -> None:
    engine = state.engine_of(field.settings)
    with engine.connect() as connection:
        state.alone(connection)
        with pytest.raises(Refused, match="another reconcile"):
            reconcile(field.settings)
    engine.dispose()


def test_ops_writes_its_own_rows_and_nobody_elses(field: Field) -> None:
    engine = state.engine_of(field.settings)
    names = [
        row.name
        for row in rows(
            field,
            """SELECT n.nspname || '.' || c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
               WHERE relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')""",
        )
    ]
    assert {name.split(".")[0] for name in names} >= {*SERVICES, "reconcile", "connect"}
    refused = set()
    for name in names:
        for statement in (f"INSERT INTO {name} DEFAULT VALUES", f"DELETE FROM {name}", f"TRUNCATE {name}"):
            with engine.connect() as connection, pytest.raises(DBAPIError) as error:
                connection.execute(text(statement))
                connection.rollback()
                raise DBAPIError(statement, None, Exception("was done"))
            if getattr(error.value.orig, "sqlstate", "") == "42501":
                refused.add((name, statement.split(" ", maxsplit=1)[0]))
    engine.dispose()
    own = {"reconcile.checkpoint", "reconcile.finding"}
    assert refused >= {(name, verb) for name in set(names) - own for verb in ("INSERT", "DELETE", "TRUNCATE")}
    assert refused >= {(name, "DELETE") for name in own}


@contextmanager
def transaction(field: Field) -> Generator[Any]:
    """A transaction of payments, open for as long as the caller wants; it has written."""
    with field.engine("payments").connect() as connection:
        yield connection


def test_what_commits_late_does_not_slip_past_the_checkpoint(field: Field) -> None:
    """An order is settled without a notification, in a transaction that is open during two runs."""
    event = field._settled("late")
    with transaction(field) as late:
        field._write(late, [event])
        [begun] = late.execute(text("SELECT now()")).scalars()
        eventually(lambda: utc_now() - begun > 3 * SECOND, what="it is older than the grace")
        for _ in range(2):
            report = reconcile(field.settings, grace=SECOND)
            assert report.upto is not None
            assert report.upto <= begun
        late.commit()
    new: Named = ("unrecorded", "", event.key)
    eventually(lambda: new in of(reconcile(field.settings, grace=SECOND)), what="it is named")
    field.planted.add(new)


def test_events_recorded_behind_the_checkpoint_are_noticed(settings: Settings, prefix: str) -> None:
    behind = text("""
        INSERT INTO outbox (id, topic, key, version, type, correlation, payload)
        VALUES (:id, 'payment.order', :key, 1, 'payment.settled.v1', 'c', '{}')""")
    with engine_of(settings, "payments").connect() as connection:
        last = state.Checkpoint(upto=utc_now() - SECOND, lsn=state.wal_position(connection))
        connection.execute(behind, {"id": fresh_id(), "key": prefix})
        assert not state.recorded_behind(connection, "payments", last)
        connection.execute(behind, {"id": UUID(int=fresh_id().int - (5_000 << 80)), "key": prefix})
        assert state.recorded_behind(connection, "payments", last)
        connection.rollback()


def test_a_checkpoint_from_before_the_clock_was_set_back_hides_nothing(field: Field) -> None:
    reconcile(field.settings, grace=SECOND)
    engine = state.engine_of(field.settings)
    with engine.begin() as connection:
        moved = connection.execute(text("UPDATE reconcile.checkpoint SET upto = now() + interval '2 hours'"))
        assert moved.rowcount == 1
    engine.dispose()
    report = reconcile(field.settings, grace=SECOND)
    assert report.since is None
    assert report.upto is not None
    assert report.upto < utc_now()
    assert report.events > 0


def test_beside_live_payments_nothing_false_is_named(field: Field) -> None:
    stop = threading.Event()
    paid = 0

    def pay() -> None:
        nonlocal paid
        while not stop.is_set():
            field.pay(20)
            paid += 20
            stop.wait(0.1)

    with field.workers([ALL]):
        thread = threading.Thread(target=pay)
        thread.start()
        try:
            seen = [reconcile(field.settings, grace=SECOND) for _ in range(4)]
        finally:
            stop.set()
            thread.join(30)
        field.drained()
    assert paid > 0
    for report in seen:
        assert {finding for finding in of(report) if finding[0] != "untold"} <= field.planted, "no notifier runs"
    field.answer_all(but="untold")
    assert of(settled(field)) == sorted(field.planted)


def test_the_command_counts_names_and_plans(field: Field, command: Any) -> None:
    code, output, said = command("-o", "json")
    assert (code, len(output["findings"])) == (1, len(field.planted))
    mends = {finding["kind"]: finding["fix"] for finding in output["findings"]}
    assert mends["undelivered"].startswith("payrelay replay redeliver --consumer ")
    assert mends["unpublished"].startswith("payrelay connect snapshot --event ")
    assert mends["parked"].startswith("payrelay parked retry funds:")
    code, table, said = command("--limit", "1")
    assert code == 1
    assert f"{len(field.planted)} findings" in said
    assert "named: --limit, or -o json for all" in said
    assert "no_effect" in table
    code, _, said = command("--fix")
    assert (code, "nothing was done: --execute fixes it" in said) == (1, True), said
    code, _, said = command("--fix", "--execute")
    assert code == 1, "nobody has said yes"
    assert "redeliver the event" in said
    assert of(reconcile(field.settings, grace=SECOND)) == sorted(field.planted)


def test_a_balance_payment_that_was_answered_is_not_decided_again(field: Field) -> None:
    [decision] = rows(field, "SELECT causation FROM funds.outbox WHERE causation <> correlation ORDER BY id LIMIT 1")
    consumer = field.settings.group_prefix + "funds"
    lost = Finding(kind=Kind.NO_EFFECT, service="funds", consumer=consumer, event_id=UUID(decision.causation))
    step = FixStep(what="", kind=Kind.NO_EFFECT, at=consumer, findings=[lost])
    [mended] = carry_out(field.settings, [step], actor="test", within_s=1)
    assert (mended.done, list(mended.failed)) == (0, [decision.causation])
    assert "would decide again" in mended.failed[decision.causation]


def test_fix_mends_all_that_can_be_and_says_what_cannot_killed_or_not(field: Field, command: Any) -> None:
    """Killed after three single fixes, then run to its end. What is left is fixed by hand, and a full run finds nothing."""
    with field.workers([ALL]):
        killed(field, "3", "--fix", "--execute", "--yes")
        code, output, said = command("--fix", "--execute", "--yes", "-o", "json")
        left = {(finding["kind"], finding["consumer"]) for finding in output["findings"]}
        assert left == {("contradicted", ""), ("stray_effect", "notification"), ("untold", "notification")}, said
        assert code == 1
        field.drained()
        field.fix_by_hand()
        field.answer_all()
        end = settled(field, full=True)
    assert of(end) == []
    assert end.is_clean
    assert check(reader_engine(field.settings), before=utc_now()) == []
    eventually(lambda: not reconcile(field.settings, grace=SECOND).events, what="nothing is new")


def test_a_consumer_of_a_test_that_states_its_effects_is_reconciled_corrected_and_in_the_timeline(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    loyalty.register(monkeypatch)
    with field.engine("owner").begin() as owner:
        loyalty.make_tables(owner)
    right, lost, wrong, forgotten = field.record([field._settled("loyalty") for _ in range(4)])
    stray = Envelope(id=fresh_id(), version=1, correlation="O", event=field._settled("loyalty"))
    log = Log(cluster_id="", topic=right.event.topic.name, topic_id="", partition=0)
    with field.engine("shop").begin() as connection:
        arrivals = [Arrival(event_id=envelope.id, log=log, offset=0) for envelope in (right, lost, wrong)]
        arrive(connection, loyalty.NAME, arrivals)
        loyalty.stamp_cards(connection, [right, lost, wrong, forgotten, stray])
        connection.execute(text("DELETE FROM stamp WHERE payment_no = :no"), {"no": lost.event.key})
        connection.execute(text("UPDATE stamp SET stamps = 99 WHERE payment_no = :no"), {"no": wrong.event.key})
        connection.execute(text(f"UPDATE card SET stamps = {EARNED}"))
    with field.workers([ALL]):
        field.drained()  # what waits for another consumer would stay open
    eventually(lambda: utc_now() - time_of(right.id) > 3 * SECOND, what="it is older than the grace")  # type: ignore[operator]
    report = reconcile(field.settings, full=True, grace=SECOND)
    findings = [finding for finding in report.findings if finding.consumer == loyalty.NAME]
    assert sorted(named(findings)) == sorted(
        (kind, loyalty.NAME, envelope.event.key)
        for kind, envelope in (
            ("no_effect", lost), ("wrong_effect", wrong), ("forgotten", forgotten), ("stray_effect", stray),
        )
    )  # fmt: skip
    assert report.waiting[loyalty.NAME] > 0, "all earlier payments"
    steps = plan(field.settings, findings)
    assert not any(step.by_hand for step in steps)
    assert [step.failed for step in carry_out(field.settings, steps, actor="test", within_s=1)] == [{}] * 4
    after = reconcile(field.settings, full=True, grace=SECOND)
    assert [finding for finding in after.findings if finding.consumer == loyalty.NAME] == []
    stamps = rows(field, "SELECT * FROM shop.stamp ORDER BY payment_no, kind")
    calls_for = {
        envelope.event.key: 1 + envelope.event.amount_fen // 5_000 for envelope in (right, lost, wrong, forgotten)
    }  # type: ignore[attr-defined]
    assert {no: sum(row.stamps for row in stamps if row.payment_no == no) for no in {row.payment_no for row in stamps}} == {
        **calls_for, stray.event.key: 0,
    }  # fmt: skip
    assert rows(field, f"SELECT FROM shop.card WHERE stamps <> {EARNED}") == []
    list(carry_out(field.settings, steps, actor="test", within_s=1))
    assert rows(field, "SELECT * FROM shop.stamp ORDER BY payment_no, kind") == stamps, "a second run changes nothing"
    [story] = timeline(field.settings, right.event.key)
    lines = {(line.where, line.what) for line in story.lines}
    assert {("shop.inbox", "applied"), ("shop.stamp", "stamped")} <= lines
    with field.engine("owner").begin() as owner:
        loyalty.drop_tables(owner)
