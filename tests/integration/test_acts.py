"""Acting on everything that matches: in steps that may be cut off, and run beside each other; and the filter that says what matches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from consumers.notification.notifier.bulk import begin_resend, step, stop, unfinished
from consumers.notification.notifier.filter import STATUSES, NotificationFilter
from consumers.notification.notifier.lanes import Result
from ops.notifications.bulk import act, items, statuses
from ops.notifications.operations import matching, records
from ops.pipeline.health import reader_engine
from outbox.errors import Refused
from outbox.settings import Settings
from tests.notifier import Desk, desks, ended
from tests.pipeline import fresh_id

COUNT = 12


@pytest.fixture
def open_desk(settings: Settings, prefix: str) -> Iterator[Callable[..., Desk]]:
    with desks(settings, prefix) as opened:
        yield opened


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    """Twelve records that were given up."""
    made = open_desk(rule='{"1":0}', breaker_failures=10**6, receiver_in_flight_max=100)
    made.write(COUNT)
    give_up(made)
    return made


def give_up(desk: Desk, **more: Any) -> None:
    now = desk.records()[-1].planned_at
    claimed = desk.claim(now)
    desk.finish([ended(claim, now, **more) for claim in claimed], now + timedelta(seconds=1))


def begin(desk: Desk, **given: Any) -> UUID:
    identity = fresh_id()
    wanted = NotificationFilter(queue=desk.queue.queue, status="FAILED", **given)
    newest = desk.records()[-1].id
    with desk.engine.begin() as connection:
        assert begin_resend(connection, identity, wanted, newest=newest, reason="mended", actor="olga") == COUNT
    return identity


def whole(desk: Desk, identity: UUID) -> Any:
    with reader_engine(desk.settings).connect() as connection:
        return act(connection, identity)


def each_once(desk: Desk) -> None:
    """Every record has been made due once, by an item of its own."""
    audit = [row.record_id for row in desk.audit() if row.outcome == "DUE"]
    assert sorted(audit) == [record.id for record in desk.records()]
    assert {record.status for record in desk.records()} == {"CREATED"}
    assert len(desk.postponements()) == COUNT


def test_an_act_goes_on_from_where_it_was_cut_off(desk: Desk) -> None:
    identity = begin(desk)
    with pytest.raises(ZeroDivisionError), desk.engine.begin() as connection:
        assert step(connection, identity, limit=5).done == 5
        raise ZeroDivisionError
    assert whole(desk, identity).done == 0
    seen = []
    for _ in range(4):
        with desk.engine.begin() as connection:
            assert identity in unfinished(connection) or seen[-1].ended
            seen.append(step(connection, identity, limit=5))
    assert [(progress.done, progress.ended) for progress in seen] == [(5, False), (10, False), (12, True), (12, True)]
    each_once(desk)
    done = whole(desk, identity)
    assert (done.matched, done.done, done.busy, done.actor, done.reason) == (COUNT, COUNT, 0, "olga", "mended")
    assert done.wanted == {"queue": desk.queue.queue, "status": "FAILED"}
    with reader_engine(desk.settings).connect() as connection:
        assert statuses(connection, identity) == {"CREATED": COUNT}
        assert {(row["outcome"], row["status"]) for row in items(connection, identity)} == {("DUE", "CREATED")}


def test_two_consoles_share_an_act_and_no_record_is_sent_twice_for_it(desk: Desk) -> None:
    identity = begin(desk)

    def carry_out() -> None:
        ended = False
        while not ended:
            with desk.engine.begin() as connection:
                ended = step(connection, identity, limit=1).ended

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(carry_out) for _ in range(2)]:
            done.result(30)
    each_once(desk)


def test_what_came_later_what_no_longer_matches_and_what_is_under_way_are_left(desk: Desk) -> None:
    """By the time an act comes to them: one was sent again and taken, one is just being sent."""
    identity = begin(desk, merchant_no=desk.merchant())
    old = desk.records()
    desk.write(3, number=0)
    give_up(desk)
    desk.resend([old[0].event_id, old[1].event_id])
    due = desk.records()[0].planned_at + timedelta(seconds=1)
    taken, under_way = sorted(desk.claim(due, limit=2), key=lambda claim: claim.id)
    desk.finish([ended(taken, due, Result.SUCCESS)], due)
    with desk.engine.begin() as connection:
        progress = step(connection, identity)
    assert (progress.done, progress.busy, progress.ended) == (COUNT - 2, 0, True)
    now = {record.id: record.status for record in desk.records()}
    assert now[taken.id] == "SUCCESS"
    assert [now[record.id] for record in desk.records()[COUNT:]] == ["FAILED"] * 3
    with desk.engine.begin() as connection:
        again = NotificationFilter(queue=desk.queue.queue)
        assert begin_resend(connection, fresh_id(), again, newest=under_way.id, reason="x", actor="olga") == 2
        [identity] = [
            action for action in unfinished(connection) if whole_of(connection, action).queue == desk.queue.queue
        ]
        progress = step(connection, identity)
    assert (progress.done, progress.busy, progress.ended) == (1, 1, True)
    assert desk.audit()[-1].outcome in ("DUE", "UNDER_WAY")
    assert sorted(row.outcome for row in desk.audit() if row.act_id == identity) == ["DUE", "UNDER_WAY"]


def whole_of(connection: Any, identity: UUID) -> Any:
    statement = "SELECT wanted ->> 'queue' AS queue FROM notify_act WHERE id = :id"
    return connection.execute(text(statement), {"id": identity}).one()


def test_a_stopped_act_goes_no_further(desk: Desk) -> None:
    identity = begin(desk)
    with desk.engine.begin() as connection:
        step(connection, identity, limit=5)
        assert stop(connection, identity, actor="viktor")
        assert not stop(connection, identity, actor="viktor")
        assert step(connection, identity, limit=5).done == 5
    done = whole(desk, identity)
    assert (done.done, done.stopped_by) == (5, "viktor")
    assert done.ended_at is not None


def test_an_act_has_a_reason_something_to_do_and_its_past_stands(desk: Desk) -> None:
    with desk.engine.begin() as connection:
        wanted = NotificationFilter(queue=desk.queue.queue, status="SUCCESS")
        given = {"newest": desk.records()[-1].id, "actor": "olga"}
        assert begin_resend(connection, fresh_id(), wanted, reason="x", **given) == 0
        with pytest.raises(Refused, match="say why"):
            begin_resend(connection, fresh_id(), wanted, reason="  ", **given)
        with pytest.raises(Refused, match="no bulk action"):
            step(connection, fresh_id())
    identity = begin(desk)
    for change in (
        "UPDATE notify_act SET reason = 'other'",
        "UPDATE notify_act SET matched = 1",
        "DELETE FROM notify_act",
    ):
        with pytest.raises(DBAPIError, match="permission denied"), desk.engine.begin() as connection:
            connection.execute(text(f"{change} WHERE id = :id"), {"id": identity})


def test_a_filter_finds_what_it_says_page_by_page(desk: Desk) -> None:
    """Each criterion against the same one in Python, over records in every state."""
    for number, (result, status) in enumerate(
        [(Result.SUCCESS, 200), (Result.HTTP_REQUEST_SUCCESS, 200), (Result.HTTP_REQUEST_FAILED, 503), (Result.HTTP_REQUEST_FAILED, None)]
    ):  # fmt: skip
        desk.write(2, number=number + 1)
        give_up(desk, result=result, http_status=status)
    desk.write(2)
    every = desk.records()
    middle = every[COUNT].created_at
    own = {"queue": desk.queue.queue}
    expected: dict[NotificationFilter, Callable[[Any], bool]] = {
        **{
            NotificationFilter(**own, status=state): lambda row, state=state: row.status == state
            for state in STATUSES
            if state != "WAITING"
        },
        NotificationFilter(**own, status="WAITING"): lambda row: row.finished_at is None,
        NotificationFilter(**own, merchant_no=desk.merchant(3)): lambda row: row.merchant_no == desk.merchant(3),
        NotificationFilter(**own, order_no=every[1].order_no): lambda row: row.order_no == every[1].order_no,
        NotificationFilter(**own, payment_no=every[1].payment_no): lambda row: row.payment_no == every[1].payment_no,
        NotificationFilter(**own, http_status="503"): lambda row: row.http_status == 503,
        NotificationFilter(**own, http_status="5xx"): lambda row: row.http_status == 503,
        NotificationFilter(**own, http_status="2xx"): lambda row: row.http_status == 200,
        NotificationFilter(**own, http_status="none"): lambda row: row.http_status is None and row.attempts > 0,
        NotificationFilter(**own, begin=middle): lambda row: row.id.int >> 80 >= every[COUNT].id.int >> 80,
        NotificationFilter(**own, end=middle): lambda row: row.id.int >> 80 < every[COUNT].id.int >> 80,
        NotificationFilter(**own, id=every[3].id): lambda row: row.id == every[3].id,
        NotificationFilter(**own): lambda _: True,
    }
    with reader_engine(desk.settings).connect() as connection:
        for wanted, is_meant in expected.items():
            meant = [row.id for row in every if is_meant(row)][::-1]
            seen: list[UUID] = []
            while page := records(connection, wanted, limit=5, before=seen[-1] if seen else None):
                seen += [row.id for row in page]
            assert seen == meant, wanted
            all_found = matching(connection, wanted)
            assert (all_found.count, all_found.newest) == (len(meant), meant[0] if meant else None), wanted


@pytest.mark.parametrize(
    "given", [{"status": "failed"}, {"status": "x' OR true --"}, {"http_status": "600"}, {"http_status": "5x"}]
)
def test_a_filter_that_can_match_nothing_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(Refused):
        NotificationFilter(**given)
