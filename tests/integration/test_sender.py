"""The notifier as it sends: real receivers on the loopback, real rows; killed, cut off, held up and lied to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from consumers.notification.notifier import attempt as attempting
from consumers.notification.notifier.attempt import new_session
from consumers.notification.notifier.claims import LEASE_S, Ended, take_wakes, turn
from consumers.notification.notifier.lanes import Result
from consumers.notification.notifier.sender import Sender, sender_engine
from ops.stack.parts import tied
from outbox.clock import utc_now
from outbox.settings import Settings
from outbox.status import Condition
from tests.notifier import PATIENT, Desk, desks, ended
from tests.pipeline import ROOT, engine_of, environment
from tests.sink import Sink, sinking
from tests.waiting import eventually

SHORT = aiohttp.ClientTimeout(total=3, connect=2, sock_read=3)


@pytest.fixture
def open_desk(settings: Settings, prefix: str) -> Iterator[Callable[..., Desk]]:
    with desks(settings, prefix) as opened:
        yield opened


@pytest.fixture
def sink() -> Iterator[Sink]:
    with sinking() as made:
        yield made


@contextmanager
def running(settings: Settings, desk: Desk, held: Sequence[Ended] = ()) -> Iterator[Sender]:
    """A notifier of the desk's queue, which holds what ended already, runs meanwhile, and is asked to end."""
    engine = sender_engine(settings, desk.queue.queue, "notification")
    sender: Any = None
    loop: Any = None
    begun = threading.Event()

    async def main() -> None:
        nonlocal sender, loop
        loop = asyncio.get_running_loop()
        sender = Sender(engine, Condition(None, "notifier"), desk.queue.queue, allow_private=True)
        sender._ended += held
        begun.set()
        await sender.run()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert begun.wait(10)
    try:
        yield sender
    finally:
        loop.call_soon_threadsafe(sender.end)
        thread.join(20)
        engine.dispose()
    assert not thread.is_alive()


def all_are(desk: Desk, *statuses: str) -> bool:
    return {record.status for record in desk.records()} == set(statuses)


ANSWERS = {
    "good": ("SUCCESS", 200, ""),
    "almost": ("HTTP_REQUEST_SUCCESS", 200, "status 200, but not the word success"),
    "word": ("HTTP_REQUEST_SUCCESS", 204, "status 204, but not the word success"),
    "gone": ("HTTP_REQUEST_FAILED", 410, "status 410"),
    "moved": ("HTTP_REQUEST_FAILED", 307, "status 307"),
    "later": ("HTTP_REQUEST_FAILED", 429, "status 429"),
    "huge": ("HTTP_REQUEST_SUCCESS", 200, "but not the word"),
    "packed": ("HTTP_REQUEST_SUCCESS", 200, "but not the word"),
    "drip": ("HTTP_REQUEST_FAILED", 200, "TimeoutError"),
    "silent": ("HTTP_REQUEST_FAILED", None, "TimeoutError"),
    "headers": ("HTTP_REQUEST_FAILED", None, "ResponseTooLarge|Too many headers"),
}  # fmt: skip


def test_each_answer_has_its_state_and_its_row_in_the_log(
    settings: Settings, open_desk: Any, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempting, "TIMEOUT", SHORT)
    desk = open_desk(rule='{"1":0,"2":60}')
    for number, path in enumerate(ANSWERS):
        desk.register(f"{sink.url}/{path}", number)
        desk.write(1, number)
    desk.register("http://127.0.0.1:1/", len(ANSWERS))
    desk.write(1, len(ANSWERS))
    desk.write(1, len(ANSWERS) + 1)  # nobody's: no receiver
    with running(settings, desk):
        eventually(lambda: len(desk.log()) == len(ANSWERS) + 2, what="all answered", within_s=60)
    attempts = {row.merchant_no: row for row in desk.log()}
    records = {row.merchant_no: row for row in desk.records()}
    for number, (path, (status, http_status, error)) in enumerate(ANSWERS.items()):
        row, record = attempts[desk.merchant(number)], records[desk.merchant(number)]
        assert (path, row.result, row.http_status) == (path, status, http_status)
        assert (record.status, record.attempts, record.leased_until) == (status, 1, None)
        assert any(part in row.error for part in error.split("|")), row.error
        assert len(row.response) <= 2_000
        assert row.url == f"{sink.url}/{path}"
    assert attempts[desk.merchant(3)].response == "gone\N{REPLACEMENT CHARACTER} \N{SNOWMAN}"
    assert "Connect" in attempts[desk.merchant(len(ANSWERS))].error
    assert (
        attempts[desk.merchant(len(ANSWERS) + 1)].error == f"merchant {desk.merchant(len(ANSWERS) + 1)} has no receiver"
    )
    assert sum(request.path == "/good" for request in sink.came) == 1, "no redirect is followed"
    [lane] = desk.rows("SELECT * FROM notify_lane WHERE queue = :queue AND blocked_until IS NOT NULL")
    assert (lane.merchant_no, lane.blocked_cause) == (desk.merchant(5), "RETRY_AFTER")
    assert lane.blocked_until - attempts[desk.merchant(5)].ended_at == timedelta(seconds=30)


def test_dead_and_silent_receivers_with_most_of_the_backlog_delay_nobody(
    settings: Settings, open_desk: Any, sink: Sink
) -> None:
    desk = open_desk(rule='{"1":0,"2":60}', in_flight_max=30, receiver_in_flight_max=4)
    desk.register("http://127.0.0.1:1/", 0)
    desk.register(f"{sink.url}/silent", 1)
    desk.write(3_000, 0)
    desk.write(3_000, 1)
    for number in range(2, 8):
        desk.register(f"{sink.url}/good", number)
        desk.write(20, number)
    good = """SELECT count(*) FROM notify_record WHERE queue = :queue AND status = 'SUCCESS'"""
    with running(settings, desk) as sender:
        begun = time.monotonic()
        eventually(lambda: desk.rows(good)[0].count == 120, within_s=20, what="the others are told")
        assert time.monotonic() - begun < 13, "less than an attempt that is not answered"
        assert len(sender._under_way) <= 60
        tried = desk.rows("SELECT FROM notify_record_log WHERE queue = :queue AND result = 'HTTP_REQUEST_FAILED'")
        assert len(tried) < 30, "the breaker holds the dead one"
        for task in tuple(sender._under_way):
            task.get_loop().call_soon_threadsafe(task.cancel)


def test_twelve_silent_receivers_with_ten_due_each_delay_neither_known_nor_new_ones(
    settings: Settings, open_desk: Any, sink: Sink
) -> None:
    """None of them is known when it begins, the others neither: as in a system that was just set up."""
    desk = open_desk(rule='{"1":0,"2":60}', are_prompt=False)
    silent, good = range(12), range(12, 15)
    for number in silent:
        desk.register(f"{sink.url}/silent", number)
        desk.write(10, number)
    for number in good:
        desk.register(f"{sink.url}/good", number)
    statement = """SELECT count(*) FROM notify_record WHERE queue = :queue AND status = 'SUCCESS'"""
    with running(settings, desk) as sender:
        eventually(
            lambda: len({request.headers["webhook-id"] for request in sink.came}) >= 12,
            what="silent ones are under way",
        )
        for round_ in range(1, 4):
            for number in good:
                desk.write(10, number)
            eventually(
                lambda round_=round_: desk.rows(statement)[0].count == 30 * round_,
                within_s=8,
                what="the others are sent to",
            )
        assert len(sender._under_way) == 12, "one place each"
        for task in tuple(sender._under_way):
            task.get_loop().call_soon_threadsafe(task.cancel)
    late = [
        (row.started_at - row.planned_at).total_seconds()
        for row in desk.log()
        if row.result == "SUCCESS" and not row.postponed
    ]
    assert max(late) < 1, f"{max(late):.1f} s late, and not postponed"


def test_a_success_held_through_an_outage_longer_than_its_lease_is_written_down_and_not_sent_again(
    settings: Settings, open_desk: Any, sink: Sink
) -> None:
    desk = open_desk()
    desk.register(f"{sink.url}/good")
    desk.write(3)
    now = desk.records()[-1].planned_at
    with desk.engine.begin() as connection:
        take_wakes(connection, desk.queue.queue)
        claimed = turn(connection, desk.queue, limit=3, now=now, lease_s=0.001)
    eventually(lambda: claimed and utc_now() > claimed[-1].leased_until, what="the leases have passed")
    with running(settings, desk, held=[ended(claim, now, Result.SUCCESS, http_status=200) for claim in claimed]):
        eventually(lambda: all_are(desk, "SUCCESS"), what="written down")
    assert sink.came == [], "nothing is sent again"
    assert [(row.attempt, row.counted) for row in desk.log()] == [(1, True)] * 3


@pytest.mark.parametrize("off", [timedelta(minutes=-2), timedelta(minutes=2)])
def test_a_notifier_whose_clock_is_off_goes_by_the_databases(
    settings: Settings, open_desk: Any, sink: Sink, monkeypatch: pytest.MonkeyPatch, off: timedelta
) -> None:
    monkeypatch.setattr(attempting, "utc_now", lambda: utc_now() + off)
    desk = open_desk(rule='{"1":0,"2":"1s"}')
    desk.register(f"{sink.url}/gone")
    desk.write()
    with running(settings, desk):
        eventually(lambda: len(desk.log()) == 2, within_s=20, what="sent when it is due, and again by its rule")
    first, second = desk.log()
    for row in (first, second):
        assert timedelta() <= row.started_at - row.planned_at < timedelta(seconds=5), "times are the database's"
    assert second.started_at - first.started_at >= timedelta(seconds=1)
    assert abs(desk.record().finished_at - utc_now()) < timedelta(seconds=30)


@pytest.mark.parametrize(("ends", "since_s"), [(True, 0.0), (False, 2.0)])
def test_what_was_claimed_and_has_not_begun_is_handed_back(
    settings: Settings, open_desk: Callable[..., Desk], ends: bool, since_s: float
) -> None:
    """Asked to end, or after a second without a slot: nothing is sent, and nobody has to wait for its lease to end."""
    desk = open_desk()
    desk.write()
    [claimed] = desk.claim(desk.record().planned_at)
    claimed = replace(claimed, leased_until=utc_now() + timedelta(seconds=LEASE_S - since_s))
    sender = Sender(desk.engine, Condition(None, "notifier"), desk.queue.queue, allow_private=True)
    if ends:
        sender.end()

    async def attempted() -> None:
        async with new_session(allow_private=True) as session:
            await sender._attempt(session, asyncio.Semaphore(1), claimed)

    asyncio.run(attempted())
    assert (sender._unbegun, sender._ended) == ([claimed], [])


def test_what_ended_while_the_database_was_away_is_written_down_and_not_sent_twice(
    settings: Settings, open_desk: Any, sink: Sink
) -> None:
    desk = open_desk(rule='{"1":0,"2":"1s","3":"1s","4":"1s"}')
    desk.register(f"{sink.url}/good")
    sink.delay_s = 0.3
    desk.write(40)
    cut = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name")
    with running(settings, desk):
        eventually(lambda: sink.came, what="something is under way")
        for _ in range(5):
            with engine_of(settings, "owner").begin() as connection:
                connection.execute(cut, {"name": f"payrelay notifier {desk.queue.queue}"})
            time.sleep(0.05)
        eventually(lambda: all_are(desk, "SUCCESS"), what="all are told", within_s=60)
    assert sorted(sink.times()) == sorted(str(record.id) for record in desk.records())
    log = [row.record_id for row in desk.log() if row.counted]
    assert sorted(log) == sorted(record.id for record in desk.records())


def start(settings: Settings, desk: Desk, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "sender.log").open("ab") as out:
        return subprocess.Popen(
            tied([sys.executable, "-m", "tests.faults.sending_worker", desk.queue.queue]),
            env=environment(settings), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip


def test_killed_in_mid_flight_every_record_goes_on_by_its_rule_at_least_once_under_the_same_id(
    settings: Settings, open_desk: Any, sink: Sink, tmp_path: Path
) -> None:
    desk = open_desk(rule='{"1":0,"2":"0.5s","3":"0.5s","4":"0.5s"}', breaker_failures=PATIENT)
    for number in range(4):
        desk.register(f"{sink.url}/good", number)
        desk.write(60, number, body='{"told": "once more"}')
    records = desk.records()
    sink.delay_s = 0.05
    sink.refuse = {str(record.id) for record in records[::5]}
    lost = 0
    for wanted in (30, 100):
        process = start(settings, desk, tmp_path)
        eventually(lambda wanted=wanted: len(sink.came) >= wanted, what="under way", within_s=90)  # type: ignore[misc]
        process.kill()
        process.wait()
        held = desk.rows("SELECT id FROM notify_record WHERE queue = :queue AND leased_until IS NOT NULL")
        assert held, "killed in mid-flight"
        lost += len(held)
        with desk.engine.begin() as connection:  # rather than wait for half a minute
            statement = "UPDATE notify_record SET leased_until = clock_timestamp() WHERE queue = :queue AND leased_until IS NOT NULL"
            connection.execute(text(statement), {"queue": desk.queue.queue})
    process = start(settings, desk, tmp_path)
    eventually(
        lambda: {record.status for record in desk.records()} <= {"SUCCESS", "FAILED"}, what="all are final", within_s=90
    )
    process.terminate()
    assert process.wait(20) == 0
    times = sink.times()
    assert set(times) == {str(record.id) for record in records}
    assert {request.body for request in sink.came} == {b'{"told": "once more"}'}
    for record in desk.records():
        refused = str(record.id) in sink.refuse
        assert (record.status, record.attempts) == (("FAILED", 4) if refused else ("SUCCESS", 1))
        assert times[str(record.id)] >= record.attempts
    twice = sum(times.values()) - sum(record.attempts for record in desk.records())
    assert 0 <= twice <= lost, "only what was under way may have come once more"
    for row in desk.log():
        assert row.started_at >= row.planned_at
    assert {row.cause for row in desk.postponements()} <= {"LEASE", "BOUND"}
