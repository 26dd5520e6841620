"""The notifier's rows on real PostgreSQL under a clock that the test turns: rules to the microsecond, turns, breaker, leases."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from consumers.notification.control import pause, resend, resume, set_rule
from consumers.notification.notifier import claims
from consumers.notification.notifier.lanes import PostponedFor, Result, Room
from consumers.notification.receivers import rotate_secret
from outbox.errors import Refused
from outbox.settings import Settings
from tests.notifier import PATIENT, Desk, desks, ended
from tests.pipeline import engine_of
from tests.unit.test_rules import PUBLISHED

MICROSECOND = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
FAILED, ALMOST, SUCCESS = Result.HTTP_REQUEST_FAILED, Result.HTTP_REQUEST_SUCCESS, Result.SUCCESS


@pytest.fixture
def open_desk(settings: Settings, prefix: str) -> Iterator[Callable[..., Desk]]:
    with desks(settings, prefix) as opened:
        yield opened


def play(desk: Desk, results: list[Result]) -> list[datetime]:
    """Return when each attempt was claimed: not a microsecond before it was planned, and then at once."""
    times = []
    for result in results:
        planned = desk.record().planned_at
        assert desk.claim(planned - MICROSECOND) == []
        [claimed] = desk.claim(planned)
        assert (claimed.planned_at, claimed.postponed) == (planned, False)
        assert desk.claim(planned) == [], "it is under way"
        desk.finish([ended(claimed, planned, result)], planned + 10_000 * MICROSECOND)
        times.append(planned)
    return times


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_schedule_is_kept_to_the_microsecond(open_desk: Any, prefix: str, name: str) -> None:
    rule, seconds = PUBLISHED[name]
    desk = open_desk(rule=rule, breaker_failures=PATIENT)
    desk.write()
    times = play(desk, [FAILED] * len(seconds))
    assert [(at - times[0]).total_seconds() for at in times] == seconds
    record = desk.record()
    assert (record.status, record.attempts, record.finished_at) == (
        "FAILED",
        len(seconds),
        times[-1] + 10_000 * MICROSECOND,
    )
    assert [(row.attempt, row.planned_at, row.started_at, row.counted) for row in desk.log()] == [
        (number, at, at, True) for number, at in enumerate(times, 1)
    ]
    assert desk.claim(times[-1] + timedelta(days=365)) == []
    assert desk.postponements() == []


@examples(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=6), st.data())
def test_every_rule_is_kept_attempt_by_attempt(open_desk: Any, prefix: str, delays: list[int], data: Any) -> None:
    """Counted from the start of the attempt before, however late that began and however long it took."""
    rule = json.dumps({str(number): f"{delay / 1000:.3f}s" for number, delay in enumerate(delays, 1)})
    desk = open_desk(f"{prefix}{uuid4()}", rule=rule, breaker_failures=PATIENT)
    desk.write()
    record = desk.record()
    planned = record.planned_at
    assert planned == record.created_at + timedelta(milliseconds=delays[0])
    for number in range(1, len(delays) + 1):
        late, took = data.draw(st.integers(0, 10**6)) * MICROSECOND, data.draw(st.integers(0, 10**9)) * MICROSECOND
        assert desk.claim(planned - MICROSECOND) == []
        [claimed] = desk.claim(planned + late)
        started = planned + late
        desk.finish([ended(claimed, started, data.draw(st.sampled_from([FAILED, ALMOST])), took=took)], started + took)
        if number < len(delays):
            planned = max(started + timedelta(milliseconds=delays[number]), started + took)
            assert desk.record().planned_at == planned
            assert desk.forgotten(started + took) == []
    assert (desk.record().status, desk.record().attempts) == ("FAILED", len(delays))


def test_states_are_as_the_answers_were(open_desk: Any, prefix: str) -> None:
    desk = open_desk(rule='{"1":0,"2":1,"3":2,"4":5,"5":15}')
    desk.write()
    seen = [desk.record().status]
    for result in (FAILED, ALMOST, FAILED, SUCCESS):
        play(desk, [result])
        seen.append(desk.record().status)
    assert seen == ["CREATED", "HTTP_REQUEST_FAILED", "HTTP_REQUEST_SUCCESS", "HTTP_REQUEST_FAILED", "SUCCESS"]
    assert desk.record().attempts == 4


@pytest.mark.parametrize("change", [
    "status = 'CREATED', finished_at = NULL", "status = 'FAILED'", "status = 'HTTP_REQUEST_FAILED', finished_at = NULL",
    "attempts = attempts + 1", "attempts = attempts - 1", "status = 'SENT'", "body = 'other'", "rule = '{}'",
    "rule_begin = 0, attempts = 9", "leased_until = now()", "finished_at = NULL", "id = uuidv7()",
])  # fmt: skip
def test_the_table_refuses_what_cannot_be(open_desk: Any, prefix: str, change: str) -> None:
    desk = open_desk()
    desk.write()
    play(desk, [SUCCESS])
    with pytest.raises(DBAPIError, match="notify_record"), desk.engine.begin() as connection:
        connection.execute(text(f"UPDATE notify_record SET {change} WHERE queue = :queue"), {"queue": prefix})


@pytest.mark.parametrize("change", [
    "status = 'SUCCESS', finished_at = now()", "status = 'FAILED', finished_at = now(), attempts = 2",
    "status = 'HTTP_REQUEST_SUCCESS'", "rule_begin = 1", "finished_at = now()",
])  # fmt: skip
def test_a_record_does_not_change_its_state_without_an_attempt(open_desk: Any, prefix: str, change: str) -> None:
    desk = open_desk()
    desk.write()
    with pytest.raises(DBAPIError, match="notify_record"), desk.engine.begin() as connection:
        connection.execute(text(f"UPDATE notify_record SET {change} WHERE queue = :queue"), {"queue": prefix})


def test_a_record_keeps_the_rule_it_was_made_with(settings: Settings, open_desk: Any, prefix: str) -> None:
    desk = open_desk(rule='{"1":0,"2":1}')
    desk.write()
    with pytest.raises(Refused, match="each once"), desk.engine.begin() as connection:
        set_rule(connection, prefix, '{"2":0}', reason="", actor="test")
    with desk.engine.begin() as connection:
        set_rule(connection, prefix, '{"1":0,"2":7,"3":7}', reason="slower", actor="test")
    desk.write()
    assert [record.rule for record in desk.records()] == ['{"1":0,"2":1}', '{"1":0,"2":7,"3":7}']
    [audit] = desk.audit()
    assert (audit.action, audit.reason, audit.actor, audit.role) == ("RULE", "slower", "test", "notification")
    for role, says in (("notification", "denied"), ("owner", "never changed")):
        with pytest.raises(DBAPIError, match=says), engine_of(settings, role).begin() as connection:
            connection.execute(text("DELETE FROM notification.notify_audit"))


def test_resending_begins_the_rule_anew_under_the_same_id(open_desk: Any, prefix: str) -> None:
    desk = open_desk()
    [event] = desk.write()
    play(desk, [FAILED, FAILED])
    assert desk.record().status == "FAILED"
    assert desk.resend([event]) == [desk.record().id]
    record = desk.record()
    assert (record.status, record.attempts, record.rule_begin, record.finished_at) == ("CREATED", 2, 2, None)
    [claimed] = desk.claim(record.planned_at)
    assert (claimed.id, claimed.attempt) == (record.id, 3)
    assert desk.resend([event]) == [], "it is just being sent"
    desk.finish([ended(claimed, record.planned_at)], record.planned_at)
    assert desk.record().planned_at == record.planned_at + MINUTE
    play(desk, [SUCCESS])
    assert desk.resend([event, event]) == [record.id]
    assert desk.record().status == "CREATED"
    assert [row.cause for row in desk.postponements()] == ["RESEND", "RESEND"]
    assert [(row.action, row.outcome, row.actor) for row in desk.audit()] == [
        ("RESEND", outcome, "test") for outcome in ("DUE", "UNDER_WAY", "DUE")
    ]


def test_redelivered_events_are_told_once_more_where_they_were_told_or_given_up(open_desk: Any) -> None:
    desk = open_desk()
    events = desk.write(3)
    now = max(record.planned_at for record in desk.records())
    first, second, third = desk.claim(now)
    desk.finish([ended(first, now, SUCCESS), ended(second, now), ended(third, now)], now)
    [again] = desk.claim(now + MINUTE, limit=1)
    desk.finish([ended(again, now + MINUTE)], now + MINUTE)
    assert sorted(record.status for record in desk.records()) == ["FAILED", "HTTP_REQUEST_FAILED", "SUCCESS"]
    for expected in (2, 0):
        with desk.engine.begin() as connection:
            assert resend(connection, events) == expected
    assert len(desk.claim(now + MINUTE)) == 3


def test_a_lost_lease_costs_no_attempt_and_its_late_end_changes_nothing(open_desk: Any, prefix: str) -> None:
    desk = open_desk()
    desk.write()
    planned = desk.record().planned_at
    [first] = desk.claim(planned)
    assert desk.release(first.leased_until) == 0
    later = first.leased_until + MICROSECOND
    assert desk.release(later) == 1
    assert desk.release(later) == 0
    [second] = desk.claim(later)
    assert (second.id, second.attempt, second.planned_at, second.postponed) == (first.id, 1, later, True)
    desk.finish([ended(first, planned)], later)
    assert (desk.record().status, desk.record().attempts) == ("CREATED", 0)
    desk.finish([ended(second, later)], later + SECOND)
    assert (desk.record().status, desk.record().attempts) == ("HTTP_REQUEST_FAILED", 1)
    desk.finish([ended(second, later)], later + SECOND)
    assert [row.counted for row in desk.log()] == [False, True, False]
    assert desk.record().attempts == 1
    assert [(row.cause, row.planned_at, row.postponed_to) for row in desk.postponements()] == [
        ("LEASE", planned, later)
    ]


@pytest.mark.parametrize("meanwhile", ["released", "claimed", "failed", "given up"])
def test_a_success_that_is_written_down_late_counts_whatever_became_of_its_record(
    open_desk: Any, prefix: str, meanwhile: str
) -> None:
    """Its sender could not reach the database for longer than the lease."""
    desk = open_desk(rule='{"1":0}' if meanwhile == "given up" else '{"1":0,"2":1}')
    desk.write()
    planned = desk.record().planned_at
    [first] = desk.claim(planned)
    later = first.leased_until + SECOND
    desk.release(later)
    second = desk.claim(later) if meanwhile != "released" else []
    if meanwhile in ("failed", "given up"):
        desk.finish([ended(claim, later) for claim in second], later + SECOND)
    desk.finish([ended(first, planned, SUCCESS)], later + 2 * SECOND)
    record = desk.record()
    assert (record.status, record.leased_until) == ("SUCCESS", None)
    desk.finish([ended(claim, later) for claim in second], later + 3 * SECOND)
    desk.finish([ended(first, planned, SUCCESS)], later + 3 * SECOND)
    assert desk.record().status == "SUCCESS"
    counted = [row.attempt for row in desk.log() if row.counted]
    assert counted == list(range(1, desk.record().attempts + 1)), "each attempt counts once"
    assert desk.claim(later + timedelta(days=1)) == []


def test_a_late_success_does_not_undo_that_its_record_is_sent_again(open_desk: Any, prefix: str) -> None:
    desk = open_desk(rule='{"1":0}')
    [event] = desk.write()
    planned = desk.record().planned_at
    [first] = desk.claim(planned)
    later = first.leased_until + SECOND
    desk.release(later)
    desk.finish([ended(claim, later) for claim in desk.claim(later)], later)
    desk.resend([event])
    desk.finish([ended(first, planned, SUCCESS)], later + SECOND)
    assert (desk.record().status, desk.record().attempts, desk.record().rule_begin) == ("CREATED", 1, 1)


def test_a_records_success_and_a_later_failure_may_end_in_one_turn(open_desk: Any, prefix: str) -> None:
    desk = open_desk()
    desk.write()
    planned = desk.record().planned_at
    [first] = desk.claim(planned)
    later = first.leased_until + SECOND
    desk.release(later)
    [second] = desk.claim(later)
    desk.finish([ended(second, later), ended(first, planned, SUCCESS)], later + SECOND)
    assert (desk.record().status, desk.record().attempts) == ("SUCCESS", 1)
    assert sorted((row.result, row.counted) for row in desk.log()) == [
        ("HTTP_REQUEST_FAILED", False),
        ("SUCCESS", True),
    ]


def test_receivers_that_are_not_known_to_answer_take_no_more_than_their_places(open_desk: Any, prefix: str) -> None:
    """One each, as many as there is room; prompt ones have theirs whatever those hold."""
    desk = open_desk(are_prompt=False)
    for number in range(8):
        desk.write(10, number)
    now = max(record.planned_at for record in desk.records())
    with desk.engine.begin() as connection:
        claims.take_wakes(connection, prefix)
        held = claims.turn(connection, desk.queue, room=Room(prompt=10, other=5), now=now)
    assert [claim.prompt for claim in held] == [False] * 5
    assert max(Counter(claim.merchant_no for claim in held).values()) == 1
    desk.finish([ended(held[0], now, SUCCESS)], now + SECOND)
    with desk.engine.begin() as connection:
        more = claims.turn(connection, desk.queue, room=Room(prompt=100, other=0), now=now + SECOND)
    assert {claim.merchant_no for claim in more} == {held[0].merchant_no}
    assert (len(more), more[0].prompt) == (9, True)
    with desk.engine.begin() as connection:
        slow = {held[0].merchant_no}
        claims.turn(
            connection, desk.queue, room=Room(prompt=100, other=0), now=now + SECOND, slow=slow, newly_slow=slow
        )
    lanes = desk.rows("SELECT merchant_no, pace FROM notify_lane WHERE queue = :queue AND pace IS NOT NULL")
    assert [tuple(row) for row in lanes] == [(held[0].merchant_no, "SLOW")]
    took = timedelta(seconds=15)
    desk.finish([ended(claim, now, took=took) for claim in more], now + took)
    assert desk.rows("SELECT FROM notify_lane WHERE queue = :queue AND pace IS NOT NULL") == []
    assert desk.forgotten(now + took) == []


def test_retry_after_puts_the_whole_receiver_off_within_limits(open_desk: Any, prefix: str) -> None:
    desk = open_desk(rule='{"1":0,"2":"1s"}', retry_after_cap_s=60)
    desk.write(2)
    planned = desk.records()[1].planned_at
    [first] = desk.claim(planned, limit=1)
    end = planned + 10_000 * MICROSECOND
    desk.finish([ended(first, planned, retry_after=timedelta(hours=9))], end)
    until = end + MINUTE
    assert desk.claim(until - MICROSECOND) == []
    claimed = desk.claim(until)
    assert [(claim.planned_at, claim.postponed) for claim in claimed] == [(until, True)] * 2
    assert [(row.cause, row.postponed_to) for row in desk.postponements()] == [(PostponedFor.RETRY_AFTER, until)] * 2
    desk.finish([ended(claim, until, SUCCESS) for claim in claimed], until)
    assert {record.status for record in desk.records()} == {"SUCCESS"}


def test_the_breaker_opens_probes_doubles_and_closes(open_desk: Any, prefix: str) -> None:
    rule = json.dumps({str(number): 0 for number in range(1, 21)})
    desk = open_desk(rule=rule, breaker_failures=3, breaker_first_s=10, breaker_cap_s=15)
    desk.write(8)
    now = desk.records()[-1].planned_at
    claimed = desk.claim(now)
    assert len(claimed) == 8
    desk.finish([ended(claim, now) for claim in claimed], now)  # all under way at once: opened once, not six times
    for open_s in (10, 15, 15):
        until = now + timedelta(seconds=open_s) + 10_000 * MICROSECOND
        assert desk.claim(until - MICROSECOND) == []
        [probe] = desk.claim(until)
        assert desk.claim(until + SECOND) == [], "one at a time"
        now = until
        if open_s != 15 or len(desk.log()) < 10:
            desk.finish([ended(probe, now)], now)
    desk.finish([ended(probe, now, SUCCESS)], now)
    assert len(desk.claim(now + SECOND)) == 7
    assert {row.cause for row in desk.postponements()} == {"BREAKER"}


def test_a_paused_receivers_records_wait_and_go_on(open_desk: Any, prefix: str) -> None:
    desk = open_desk()
    desk.write(2)
    now = desk.records()[-1].planned_at
    [first] = desk.claim(now, limit=1)
    act: Any = {"reason": "moving", "actor": "test"}
    with desk.engine.begin() as connection:
        assert pause(connection, prefix, desk.merchant(), now=now, **act)
        assert not pause(connection, prefix, desk.merchant(), now=now, **act)
    desk.finish([ended(first, now)], now)
    desk.write(1)
    desk.resend([record.event_id for record in desk.records()])
    for ahead in (SECOND, timedelta(days=3)):
        assert desk.claim(now + ahead) == []
    back = now + timedelta(days=3)
    with desk.engine.begin() as connection:
        assert resume(connection, prefix, desk.merchant(), now=back, **act)
        assert not resume(connection, prefix, desk.merchant(), now=back, **act)
    claimed = desk.claim(back)
    assert [(claim.planned_at, claim.postponed) for claim in claimed] == [(back, True)] * 3
    assert [row.cause for row in desk.postponements()].count("PAUSE") == 3
    actions = [row.action for row in desk.audit()]
    assert [action for action in actions if action != "RESEND"] == ["PAUSE", "PAUSE", "RESUME", "RESUME"]


def test_a_merchant_that_nobody_knows_is_neither_paused_nor_resumed(open_desk: Any, prefix: str) -> None:
    desk = open_desk()
    desk.write()
    act: Any = {"reason": "moving", "actor": "test", "now": desk.record().planned_at}
    for change in (pause, resume):
        with pytest.raises(Refused, match="no merchant 'TYPO'"), desk.engine.begin() as connection:
            change(connection, prefix, "TYPO", **act)
    with desk.engine.begin() as connection:
        assert pause(connection, prefix, desk.merchant(), **act), "it has notifications, and no receiver yet"
    assert [row.merchant_no for row in desk.audit()] == [desk.merchant()]


@pytest.mark.parametrize(
    "url",
    ["ftp://nowhere", "nowhere", "https://", "https://user:word@shop.example", "https://x:99999", "file:///etc/passwd"],
)
def test_a_receiver_has_an_address_that_can_be_sent_to(open_desk: Any, url: str) -> None:
    with pytest.raises(Refused, match="cannot be a receiver's address"):
        open_desk().register(url)


@pytest.mark.parametrize("secret", ["hello", "", "whsec_hello", "whsec_a2tr", "a2tr" * 8, "whsec_" + "a2tr" * 30])
def test_a_receiver_has_a_secret_that_can_be_signed_with(open_desk: Any, secret: str) -> None:
    desk = open_desk()
    with pytest.raises(Refused, match="whsec_ and 24 to 64 bytes"):
        desk.register("https://shop.example", secret=secret)
    desk.register("https://shop.example")
    with pytest.raises(Refused, match="whsec_ and 24 to 64 bytes"), desk.engine.begin() as connection:
        rotate_secret(connection, desk.merchant(), secret=secret, old_until=datetime(2030, 1, 1, tzinfo=UTC))


def test_a_receivers_bound_holds_across_senders_and_what_it_holds_back_says_so(open_desk: Any, prefix: str) -> None:
    desk = open_desk(receiver_in_flight_max=3)
    desk.write(5)
    now = desk.records()[-1].planned_at
    claimed = [*desk.claim(now, limit=2), *desk.claim(now), *desk.claim(now)]
    assert len(claimed) == 3
    assert desk.forgotten(now) == []
    later = now + SECOND
    desk.finish([ended(claimed[0], now, SUCCESS)], later)
    [fourth] = desk.claim(later)
    assert (fourth.planned_at, fourth.postponed) == (later, True)
    assert [(row.cause, row.postponed_to) for row in desk.postponements()] == [("BOUND", later)]


def test_what_becomes_due_while_its_receiver_is_full_was_held_back_by_the_bound(open_desk: Any, prefix: str) -> None:
    desk = open_desk(receiver_in_flight_max=2)
    desk.write(3)
    now = desk.records()[-1].planned_at
    soon, later = now + SECOND, now + 9 * SECOND
    with desk.engine.begin() as connection:
        last = "UPDATE notify_record SET planned_at = :soon WHERE id = :id"
        connection.execute(text(last), {"soon": soon, "id": desk.records()[-1].id})
    [first, _] = desk.claim(now)
    desk.finish([ended(first, now, SUCCESS)], later)
    [third] = desk.claim(later)
    assert (third.planned_at, third.postponed) == (later, True)
    assert [(row.cause, row.planned_at, row.postponed_to) for row in desk.postponements()] == [("BOUND", soon, later)]


def test_a_claim_looks_at_the_bound_once_more_when_it_has_the_lane(open_desk: Any, prefix: str) -> None:
    """Another sender may have claimed after the lane's attempts were counted and before it was locked."""
    desk = open_desk(receiver_in_flight_max=2)
    desk.write(5)
    now = desk.records()[-1].planned_at
    assert len(desk.claim(now, limit=1)) == 1
    order = {"merchant_no": desk.merchant(), "share": 2, "bound": 2, "held_until": None, "cause": None}
    given = {"queue": prefix, "now": now, "until": now + SECOND, "orders": json.dumps([order])}
    with desk.engine.begin() as connection:
        assert len(connection.execute(claims._CLAIM, given).all()) == 1


def test_what_is_handed_back_is_due_as_it_was(open_desk: Any, prefix: str) -> None:
    desk = open_desk()
    desk.write(3)
    now = desk.records()[-1].planned_at
    before = desk.records()
    first, second, third = desk.claim(now)
    desk.finish([ended(third, now, SUCCESS)], now)
    for _ in range(2):
        with desk.engine.begin() as connection:
            claims.hand_back(connection, prefix, [second, first, third])
    assert [row.planned_at for row in desk.records()] == [row.planned_at for row in before]
    assert desk.forgotten(now) == []
    again = desk.claim(now)
    assert [(claim.id, claim.attempt, claim.postponed) for claim in again] == [
        (first.id, 1, False),
        (second.id, 1, False),
    ]
    with desk.engine.begin() as connection:
        later = now + timedelta(minutes=1)
        claims.release_expired(connection, prefix, now=later)
    [taken] = desk.claim(later, limit=1)
    with desk.engine.begin() as connection:
        claims.hand_back(connection, prefix, again)
    held = desk.rows("SELECT id FROM notify_record WHERE queue = :queue AND leased_until IS NOT NULL")
    assert [row.id for row in held] == [taken.id], "a lease that is somebody else's by now stays"


def test_slots_are_shared_out_evenly_and_the_longest_due_go_first(open_desk: Any, prefix: str) -> None:
    desk = open_desk(receiver_in_flight_max=50)
    desk.write(60, number=0)
    desk.write(2, number=1)
    desk.write(60, number=2)
    now = max(record.planned_at for record in desk.records())
    claimed = desk.claim(now, limit=12)
    of = [sum(claim.merchant_no == desk.merchant(number) for claim in claimed) for number in range(3)]
    assert of == [4, 2, 4]
    for number in range(3):
        times = sorted(record.planned_at for record in desk.records() if record.merchant_no == desk.merchant(number))
        mine = [claim.planned_at for claim in claimed if claim.merchant_no == desk.merchant(number)]
        assert mine == times[: len(mine)]
    # One at a time: nobody is served twice while another waits.
    turns = [desk.claim(now + MICROSECOND * turn, limit=1)[0].merchant_no for turn in range(1, 9)]
    assert all(merchant_no != other for merchant_no, other in pairwise(turns))


def test_a_secret_that_rotates_signs_beside_the_new_one_until_its_end(open_desk: Any, prefix: str) -> None:
    desk = open_desk()
    desk.register("https://receiver.example")
    desk.write(2)
    now = desk.records()[-1].planned_at
    new = "whsec_" + "bmV3" * 8
    with desk.engine.begin() as connection:
        with pytest.raises(Refused, match="has no receiver"):
            rotate_secret(connection, "nobody", secret=new, old_until=now)
        for _ in range(2):
            rotate_secret(connection, desk.merchant(), secret=new, old_until=now + SECOND)
    old = desk.claim(now, limit=1)[0]
    late = desk.claim(now + SECOND, limit=1)[0]
    assert (old.secret, old.old_secret is not None) == (new, True)
    assert (late.secret, late.old_secret) == (new, None)


UNDER_WAY = """SELECT merchant_no, count(*) AS under_way FROM notify_record WHERE queue = :queue AND leased_until IS NOT NULL
               GROUP BY merchant_no"""
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["write", "claim", "finish", "lose", "wait", "pause", "resume", "resend"]),
        st.integers(0, 2),
        st.integers(0, 5),
    ),
    max_size=40,
)


@examples(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTS)
def test_whatever_happens_no_record_is_forgotten_and_each_goes_on_by_its_rule(
    open_desk: Any, prefix: str, acts: list[tuple[str, int, int]]
) -> None:
    """Two merchants, random acts; then everything is sent on until nothing waits."""
    desk = open_desk(
        f"{prefix}{uuid4()}", rule='{"1":0,"2":"10s","3":"20s"}', receiver_in_flight_max=3, breaker_failures=4,
        breaker_first_s=7, breaker_cap_s=15,
    )  # fmt: skip
    for number in range(2):
        desk.register("https://receiver.example", number)
    desk.write(1, 0)
    now, held = desk.record().created_at + SECOND, []
    who: Any = {"reason": "test", "actor": "test"}
    for act, number, many in acts:
        merchant = desk.merchant(number % 2)
        if act == "write":
            desk.write(many + 1, number % 2)
            now = max(now, *(record.created_at for record in desk.records()))
        elif act == "claim":
            held += desk.claim(now, limit=many + 1)
        elif act == "finish":
            done, held = held[: many + 1], held[many + 1 :]
            desk.finish([ended(claim, now, (FAILED, ALMOST, SUCCESS)[number]) for claim in done], now)
        elif act == "lose":
            now, held = now + timedelta(seconds=claims.LEASE_S + 1), []
            desk.release(now)
        elif act == "wait":
            now += timedelta(seconds=3 * many)
        elif act == "resend":
            desk.resend([record.event_id for record in desk.records()[: many + 1]])
            now = max(now, *(record.planned_at for record in desk.records() if record.status == "CREATED"), now)
        else:
            with desk.engine.begin() as connection:
                (pause if act == "pause" else resume)(connection, desk.queue.queue, merchant, now=now, **who)
        assert desk.forgotten(now) == [], act
        for number_of in range(2):
            under_way = [
                row for row in desk.records() if row.leased_until and row.merchant_no == desk.merchant(number_of)
            ]
            assert len(under_way) <= 3
    for number in range(2):
        with desk.engine.begin() as connection:
            resume(connection, desk.queue.queue, desk.merchant(number), now=now, **who)
    for _ in range(300):
        if all(record.finished_at for record in desk.records()):
            break
        now += timedelta(seconds=8)
        desk.release(now)
        desk.finish([ended(claim, now) for claim in desk.claim(now)], now)
    for record in desk.records():
        counted = [row for row in desk.log() if row.record_id == record.id and row.counted]
        assert [row.attempt for row in counted] == list(range(1, record.attempts + 1))
        assert record.status == "SUCCESS" or record.attempts - record.rule_begin == 3, record


# ---- what a claim costs ------------------------------------------------------------------------------------------------


def plans(desk: Desk, now: datetime) -> dict[str, Any]:
    """Return the plan of each statement of a claim, as it was carried out."""
    plan_of = {}
    with desk.engine.connect() as connection:
        given = {
            "queue": desk.queue.queue,
            "now": now,
            "until": now + SECOND,
            "limit": 100,
            "others": 100,
            "last": False,
            "known": [desk.merchant(0)],
        }
        lanes = connection.execute(claims._READY, given).all()
        orders = [
            {"merchant_no": row.merchant_no, "share": 5, "bound": 10, "held_until": None, "cause": None}
            for row in lanes
        ]
        given["orders"] = json.dumps(orders)
        for name, statement in (("ready", claims._READY), ("claim", claims._CLAIM)):
            explain = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.text}")
            plan_of[name] = connection.execute(explain, given).scalar_one()[0]["Plan"]
        connection.rollback()
    return plan_of


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(inner for child in plan.get("Plans", []) for inner in nodes(child))]


def test_a_claim_costs_the_same_whatever_is_blocked_and_reads_nothing_but_indexes(open_desk: Any, prefix: str) -> None:
    desk = open_desk()
    for number in range(10):
        desk.write(20, number=number)
    now = max(record.planned_at for record in desk.records())
    with desk.engine.begin() as connection:
        claims.take_wakes(connection, prefix)
    before = plans(desk, now)
    fill = """INSERT INTO notify_record (queue, rule, planned_at, event_id, merchant_no, payment_no, order_no, body)
              SELECT :queue, '{}', CAST(:now AS timestamptz) - make_interval(secs => number), uuidv7(),
                     :queue || 'dead' || number % 500, 'P', 'O', '{}' FROM generate_series(1, 30000) AS number"""
    block = """INSERT INTO notify_lane (queue, merchant_no, ready_at, paused_at, blocked_until, blocked_cause)
               SELECT :queue, :queue || 'dead' || number,
                      CASE WHEN number % 2 = 0 THEN CAST(:now AS timestamptz) + interval '1 hour' END,
                      CASE WHEN number % 2 = 1 THEN :now END, CASE WHEN number % 2 = 0 THEN CAST(:now AS timestamptz) + interval '1 hour' END,
                      CASE WHEN number % 2 = 0 THEN 'BREAKER' END FROM generate_series(0, 499) AS number"""
    with desk.engine.begin() as connection:
        for statement in (fill, block):
            connection.execute(text(statement), {"queue": prefix, "now": now})
    after = plans(desk, now)
    for name, plan in after.items():
        scans = [node for node in nodes(plan) if node.get("Relation Name") in ("notify_record", "notify_lane")]
        kinds = {node["Node Type"] for node in scans if node["Node Type"] != "ModifyTable"}
        assert kinds <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}, f"{name}: {kinds}"
        assert not {"Merge Join", "Hash Join"} & {node["Node Type"] for node in nodes(plan)}, name
        assert sum(node.get("Rows Removed by Filter", 0) for node in scans) <= 20, f"{name}: {scans}"
        touched = [
            explained["Shared Hit Blocks"] + explained["Shared Read Blocks"] for explained in (before[name], plan)
        ]
        assert touched[1] <= 1.5 * touched[0] + 50, f"{name}: {touched} blocks"
    assert "notify_lane_ready" in json.dumps(after["ready"])
    assert "notify_record_waiting" in json.dumps(after["claim"])
    assert len(desk.claim(now)) == 100
