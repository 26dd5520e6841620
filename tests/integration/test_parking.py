"""The parking lot on real PostgreSQL: each cause, the ways out, and every step at which they meet the live stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from threading import Event as Signal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from consumers.accounting.agent import PROCESSOR
from consumers.delivery.loop import Delivered, Delivery
from consumers.delivery.retry import Drained, retry_key, retry_keyless, settle_lot, skip
from ops.cli.main import app
from outbox.clock import utc_now
from outbox.errors import PayrelayError, Refused
from outbox.inbox import begin_log, claim_spans, move_to, note_lot
from outbox.parking import Act, Action, Cause, Parked, park, parked_keys
from outbox.settings import Settings
from schemas.codec import Envelope
from tests.factories import settled
from tests.integration.test_delivery import Stretch, good, record_of
from tests.pipeline import engine_of, environment
from tests.waiting import eventually

ACT = Act(action=Action.RETRY, actor="test")
AGES_AGO = b"016f6e9d-2400-7000-8000-000000000001"
"""January 2020."""
TOMORROW_MS = 86_400_000


class Lot(Stretch):
    """A stretch whose handler rejects the keys in `rejected`, notes what it applies, and can be stopped inside."""

    def __init__(self, settings: Settings, prefix: str) -> None:
        self.rejected: set[str] = set()
        self.applied: list[tuple[str, int]] = []
        self.stops_at: str | None = None
        self.inside, self.goes_on = Signal(), Signal()
        super().__init__(settings, prefix, replace(PROCESSOR, handle=self.handle))
        self.prefix = prefix

    def handle(self, connection: Connection, events: Sequence[Envelope]) -> None:
        if any(event.event.key in self.rejected for event in events):
            connection.execute(text("SELECT 1 / 0"))
        if any(event.event.key == self.stops_at for event in events):
            self.inside.set()
            assert self.goes_on.wait(30)
        self.applied += [(event.event.key, event.version) for event in events]

    def event(self, offset: int, version: int, number: int = 1) -> Any:
        return record_of(offset, settled(prefix=self.prefix, number=number), aggregate_version=str(version).encode())

    def key(self, number: int = 1) -> str:
        return settled(prefix=self.prefix, number=number).key

    def park(self, count: int = 1) -> None:
        """Versions 1 to `count` of key 1 are parked; key 2 flows."""
        self.rejected = {self.key()}
        records = [*(self.event(version - 1, version) for version in range(1, count + 1)), self.event(count, 1, 2)]
        assert self.deliver(self.slice_of(records)) == [Delivered(parked=count)]
        self.rejected, self.applied = set(), []

    def drain(self) -> Drained:
        delivery = Delivery(self.delivery.processor, self.engine, consumer=self.consumer, clock=utc_now)
        return retry_key(self.engine, delivery, self.key().encode(), ACT)

    def parked(self) -> list[Any]:
        return self.rows("SELECT * FROM parked WHERE consumer = :consumer ORDER BY id")

    def looks(self) -> set[bool]:
        """Return whether the stream's claims look into the lot."""
        return {row.has_parked for row in self.rows("SELECT has_parked FROM progress WHERE consumer = :consumer")}

    def audit(self) -> list[Any]:
        with engine_of(self.settings, "ops").connect() as connection:
            statement = "SELECT * FROM accounting.parked_audit WHERE event ->> 'consumer' = :consumer ORDER BY id"
            return list(connection.execute(text(statement), {"consumer": self.consumer}))


@pytest.fixture
def lot(settings: Settings, prefix: str) -> Generator[Lot]:
    made = Lot(settings, prefix)
    made.settings = settings
    yield made
    made.goes_on.set()


@pytest.fixture
def pool() -> Generator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def waiters(settings: Settings, wait: str) -> list[int]:
    with engine_of(settings, "owner").connect() as connection:
        statement = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event = :wait"
        return list(connection.execute(text(statement), {"wait": wait}).scalars())


def waits_for(lot: Lot, wait: str, *others: Future[Any]) -> None:
    """Somebody waits for a lock of that kind, and none of the others has come through."""
    eventually(lambda: waiters(lot.settings, wait), what=f"a wait for {wait}")
    assert not any(other.done() for other in others)


def test_each_cause_has_its_own_event_in_one_stream_and_the_others_flow(settings: Settings, prefix: str) -> None:
    stretch = Stretch(settings, prefix)
    ahead = UUID(int=UUID(good(prefix, 1, 1, 0)[0].headers[0][1].decode()).int + (TOMORROW_MS << 80))
    of = [settled(prefix=prefix, number=number) for number in range(20)]
    records = [
        record_of(0, of[0]),
        record_of(1, of[1], value=b"\xff\x00 no JSON"),
        record_of(2, of[2], ce_type=b"parcel.sent.v1"),
        record_of(3, of[3], ce_type=b"payment.settled.v9"),
        record_of(4, of[4], ce_id=str(ahead).encode()),
        record_of(5, of[5], ce_id=AGES_AGO),
        record_of(6, of[0], aggregate_version=b"2"),
        record_of(7, settled(prefix=prefix, number=7, amount_fen=100, fee_fen=500)),
        record_of(8, of[7], aggregate_version=b"2"),
        *(record_of(offset, of[offset]) for offset in range(9, 20)),
    ]
    assert stretch.deliver(stretch.slice_of(records)) == [Delivered(parked=8)]
    assert stretch.deliver(stretch.slice_of(records)) == [Delivered()]
    rows = stretch.rows('SELECT "offset", cause FROM parked WHERE consumer = :consumer ORDER BY id')
    assert [tuple(row) for row in rows] == [
        (1, Cause.UNDECODABLE),
        (2, Cause.UNKNOWN_TYPE),
        (3, Cause.UNKNOWN_VERSION),
        (4, Cause.AHEAD_OF_CLOCK),
        (5, Cause.BEHIND_HORIZON),
        (6, Cause.DUPLICATE_FACT),
        (7, Cause.REJECTED),
        (8, Cause.BEHIND_PARKED),
    ]
    assert stretch.posted() == 12


def test_an_event_before_an_unreadable_one_of_its_key_flows_and_one_after_it_does_not(lot: Lot) -> None:
    lot.rejected = {lot.key(3)}
    unreadable = record_of(1, settled(prefix=lot.prefix), value=b"{}")
    records = [lot.event(0, 1), unreadable, lot.event(2, 3), lot.event(3, 1, 3), lot.event(4, 1, 2)]
    assert lot.deliver(lot.slice_of(records)) == [Delivered(parked=3)]
    assert {(lot.key(), 1), (lot.key(2), 1)} == set(lot.applied[-2:])
    assert [row.cause for row in lot.parked()] == [Cause.UNDECODABLE, Cause.BEHIND_PARKED, Cause.REJECTED]


def test_a_retried_key_is_drained_in_order_and_flows_again_and_nobody_looks_into_an_empty_lot(lot: Lot) -> None:
    lot.park(3)
    assert lot.deliver(lot.slice_of([lot.event(4, 4)])) == [Delivered(parked=1)]
    assert lot.looks() == {True, False}
    assert lot.drain() == Drained(applied=4)
    assert lot.drain() == Drained()
    settle_lot(lot.engine, lot.consumer)
    assert lot.looks() == {False}
    assert lot.deliver(lot.slice_of([lot.event(5, 5)])) == [Delivered()]
    assert lot.applied == [(lot.key(), version) for version in (1, 2, 3, 4, 5)]
    assert not lot.parked()
    assert [(row.action, row.outcome, row.actor, row.role) for row in lot.audit()] == [
        ("RETRY", "APPLIED", "test", "accounting")
    ] * 4


def test_what_still_fails_stays_at_the_head_with_one_attempt_more_and_its_key_behind_it(lot: Lot) -> None:
    lot.park(3)
    lot.rejected = {lot.key()}
    for attempts in (2, 3):
        drained = lot.drain()
        assert (drained.applied, drained.cause) == (0, Cause.REJECTED)
        assert "division by zero" in drained.error
        assert [(row.version, row.cause, row.attempts) for row in lot.parked()] == [
            (1, "REJECTED", attempts), (2, "BEHIND_PARKED", 0), (3, "BEHIND_PARKED", 0)]  # fmt: skip
    settle_lot(lot.engine, lot.consumer)
    assert lot.looks() == {True, False}
    assert lot.deliver(lot.slice_of([lot.event(4, 4)])) == [Delivered(parked=1)]
    assert not lot.applied
    assert [row.outcome for row in lot.audit()] == ["REJECTED"] * 2
    assert "value" not in lot.audit()[0].event


def test_a_repeat_parked_behind_its_key_is_just_taken_out(lot: Lot) -> None:
    lot.park()
    with lot.engine.begin() as connection:  # applied beside the lot, as after a restore
        connection.execute(
            text("INSERT INTO inbox SELECT consumer, event_id, topic, partition, \"offset\" FROM parked "
                 "WHERE consumer = :consumer"), {"consumer": lot.consumer})  # fmt: skip
    assert lot.drain() == Drained(known=1)
    assert not lot.parked()
    assert not lot.applied


def test_behind_the_horizon_nothing_is_retried_and_it_can_be_skipped_with_a_reason(lot: Lot) -> None:
    old = record_of(0, settled(prefix=lot.prefix), ce_id=AGES_AGO)
    assert lot.deliver(lot.slice_of([old, lot.event(1, 2), lot.event(2, 1, 2)])) == [Delivered(parked=2)]
    drained = lot.drain()
    assert drained.cause is Cause.BEHIND_HORIZON
    assert "skipped, not retried" in drained.error
    [first, _] = lot.parked()
    act = Act(action=Action.SKIP, actor="test", reason="settled by hand")
    assert skip(lot.engine, lot.consumer, first.id, act)
    assert not skip(lot.engine, lot.consumer, first.id, act)
    assert lot.drain() == Drained(applied=1)
    _, skipped, _ = lot.audit()
    assert (skipped.action, skipped.reason, skipped.outcome) == ("SKIP", "settled by hand", "SKIPPED")
    assert skipped.event == json.loads(json.dumps(skipped.event)) | {
        "id": first.id, "key": "\\x" + bytes(first.key).hex(), "value": "\\x" + bytes(first.value).hex(),
        "headers": first.headers, "offset": 0, "cause": "BEHIND_HORIZON", "attempts": 2}  # fmt: skip


def test_a_record_without_a_key_is_retried_by_itself(lot: Lot) -> None:
    keyless = record_of(0, settled(prefix=lot.prefix), key=None)
    assert lot.deliver(lot.slice_of([keyless, lot.event(1, 1, 2)])) == [Delivered(parked=1)]
    [row] = lot.parked()
    drained = retry_keyless(lot.engine, lot.delivery, row.id, ACT)
    assert (drained.applied, drained.cause) == (0, Cause.UNDECODABLE)
    assert lot.parked()[0].attempts == 2


@pytest.mark.parametrize("role", ["accounting", "owner"])
@pytest.mark.parametrize("change", ["UPDATE {} SET reason = 'x'", "DELETE FROM {}", "TRUNCATE {}"])
def test_audit_rows_are_changed_by_nobody(lot: Lot, role: str, change: str) -> None:
    lot.park()
    lot.drain()
    with (
        engine_of(lot.settings, role).connect() as connection,
        pytest.raises(DBAPIError, match=r"denied|never changed"),
    ):
        connection.execute(text(change.format("accounting.parked_audit")))
    assert lot.audit()


def test_a_service_cannot_forge_who_acted_and_when(lot: Lot) -> None:
    for column, value in (("role", "'postgres'"), ("acted_at", "now()")):
        with lot.engine.connect() as connection, pytest.raises(DBAPIError, match="permission denied"):
            connection.execute(text(f"INSERT INTO parked_audit (action, outcome, error, reason, actor, event, {column}) "
                                    f"VALUES ('RETRY', '', '', '', '', '{{}}', {value})"))  # fmt: skip


# ---- where the ways out and the live stream meet ------------------------------------------------------------------


def test_a_retry_inside_its_transaction_holds_the_key_and_once_it_has_emptied_it_the_live_event_flows(
    lot: Lot, pool: ThreadPoolExecutor
) -> None:
    lot.park()
    lot.stops_at = lot.key()
    retrying = pool.submit(lot.drain)
    assert lot.inside.wait(30)
    live = pool.submit(lot.deliver, lot.slice_of([lot.event(2, 2)]))
    waits_for(lot, "advisory", live, retrying)
    lot.goes_on.set()
    assert retrying.result(30) == Drained(applied=1)
    assert live.result(30) == [Delivered()]
    assert lot.applied == [(lot.key(), 1), (lot.key(), 2)]
    assert not lot.parked()


@pytest.mark.parametrize("ends", ["rejected", "cut off"])
def test_a_retry_that_ends_without_emptying_the_key_leaves_the_live_event_behind_it(
    lot: Lot, pool: ThreadPoolExecutor, ends: str
) -> None:
    lot.park()
    lot.stops_at = lot.key()
    holding: list[int] = []

    def handle(connection: Connection, events: Sequence[Envelope]) -> None:
        holding.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        lot.handle(connection, events)
        raise ValueError("rejected, late")

    delivery = Delivery(replace(PROCESSOR, handle=handle), lot.engine, consumer=lot.consumer, clock=utc_now)
    retrying = pool.submit(retry_key, lot.engine, delivery, lot.key().encode(), ACT)
    assert lot.inside.wait(30)
    live = pool.submit(lot.deliver, lot.slice_of([lot.event(2, 2)]))
    waits_for(lot, "advisory", live, retrying)
    if ends == "cut off":
        with engine_of(lot.settings, "owner").begin() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": holding[0]})
        assert live.result(30) == [Delivered(parked=1)]
    lot.goes_on.set()
    assert retrying.result(30).cause is Cause.REJECTED
    assert live.result(30) == [Delivered(parked=1)]
    assert [row.version for row in lot.parked()] == [1, 2]
    lot.applied = []
    assert lot.drain() == Drained(applied=2)
    assert lot.applied == [(lot.key(), 1), (lot.key(), 2)]


@pytest.mark.parametrize("commits", [True, False])
def test_a_live_batch_holds_the_key_until_it_commits_and_the_retry_sees_what_it_parked(
    lot: Lot, pool: ThreadPoolExecutor, commits: bool
) -> None:
    lot.park()
    lot.stops_at = lot.key(2)  # the live batch stops in its handler, after its look into the lot
    slice_ = lot.slice_of([lot.event(2, 2), lot.event(3, 2, 2)])
    live = pool.submit(lot.deliver, slice_)
    assert lot.inside.wait(30)
    retrying = pool.submit(lot.drain)
    waits_for(lot, "advisory", live, retrying)
    if not commits:
        with engine_of(lot.settings, "owner").begin() as connection:
            statement = """SELECT pg_terminate_backend(pid) FROM pg_locks
                           WHERE locktype = 'advisory' AND granted AND pid = ANY
                                 (SELECT unnest(pg_blocking_pids(waiter.pid)) FROM pg_locks AS waiter
                                  WHERE NOT waiter.granted AND waiter.locktype = 'advisory')"""
            connection.execute(text(statement))
    lot.goes_on.set()
    if commits:
        assert live.result(30) == [Delivered(parked=1)]
        assert retrying.result(30) == Drained(applied=2)
    else:
        with suppress(DBAPIError):
            live.result(30)
        assert retrying.result(30) == Drained(applied=1)
        assert lot.deliver(slice_) == [Delivered()]
    assert [version for key, version in lot.applied if key == lot.key()] == [1, 2]
    assert not lot.parked()


def test_two_retries_of_a_key_apply_each_event_once(lot: Lot, pool: ThreadPoolExecutor) -> None:
    lot.park(3)
    lot.stops_at = lot.key()
    first = pool.submit(lot.drain)
    assert lot.inside.wait(30)
    second = pool.submit(lot.drain)
    waits_for(lot, "advisory", first, second)
    lot.goes_on.set()
    assert first.result(30).applied + second.result(30).applied == 3
    assert lot.applied == [(lot.key(), version) for version in (1, 2, 3)]


def test_the_hint_waits_for_a_batch_that_parks_and_stays(lot: Lot, pool: ThreadPoolExecutor) -> None:
    lot.park()
    assert lot.drain() == Drained(applied=1)
    lot.rejected, lot.stops_at = {lot.key()}, lot.key(2)
    live = pool.submit(lot.deliver, lot.slice_of([lot.event(2, 2), lot.event(3, 2, 2)]))
    assert lot.inside.wait(30)  # its claim has found the hint set
    settling = pool.submit(settle_lot, lot.engine, lot.consumer)
    eventually(lambda: waiters(lot.settings, "transactionid") or waiters(lot.settings, "tuple"), what="the hint waits")
    assert not settling.done()
    lot.goes_on.set()
    assert live.result(30) == [Delivered(parked=1)]
    settling.result(30)
    assert lot.looks() == {True, False}, "something is parked: claims look"


def test_a_topic_made_again_while_its_last_records_are_parked_looks_into_the_lot(
    lot: Lot, pool: ThreadPoolExecutor
) -> None:
    again = replace(lot.logs[0], topic_id="made again")
    lot.rejected, lot.stops_at = {lot.key()}, lot.key(2)

    def begin() -> None:
        with lot.engine.begin() as connection:
            begin_log(connection, lot.consumer, again, next_offset=0)

    def old() -> list[Any]:
        return lot.deliver(lot.slice_of([lot.event(0, 1), lot.event(1, 1, 2)]))

    parking = pool.submit(old)
    assert lot.inside.wait(30)
    beginning = pool.submit(begin)
    eventually(lambda: waiters(lot.settings, "transactionid") or waiters(lot.settings, "tuple"), what="begin waits")
    lot.goes_on.set()
    assert parking.result(30) == [Delivered(parked=1)]
    beginning.result(30)
    lot.rejected = set()
    slice_ = replace(lot.slice_of([lot.event(0, 2)]), log=again)
    assert lot.deliver(slice_) == [Delivered(parked=1)], "the key is parked, whatever the log"


def test_what_the_old_log_parks_later_is_known_to_the_new_one(lot: Lot) -> None:
    again = replace(lot.logs[0], topic_id="made again")
    with lot.engine.begin() as connection:
        begin_log(connection, lot.consumer, again, next_offset=0)
    lot.park()
    with lot.engine.begin() as connection:
        [claim] = claim_spans(connection, lot.consumer, {again: range(1)}).values()
    assert claim.has_parked


# ---- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command(lot: Lot, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any, str]]:
    """Run `payrelay parked …` as the stretch's operator; gives exit code, rows and what was said."""
    for name, value in environment(lot.settings.model_copy(update={"group_prefix": lot.prefix})).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, Any, str]:
        result = CliRunner().invoke(app, ["parked", *arguments])
        if isinstance(result.exception, PayrelayError):
            raise result.exception
        return result.exit_code, json.loads(result.stdout) if result.stdout else None, result.stderr

    return run


def test_parked_retry_and_skip_as_an_operator_types_them(lot: Lot, command: Any) -> None:
    """The stretch's second facts are rejected by accounting's own handler; what waits behind them is not."""
    first, bad = settled(prefix=lot.prefix), {"amount_fen": 100, "fee_fen": 500}
    lot.rejected = {first.key, settled(prefix=lot.prefix, number=3).key}
    records = [
        record_of(0, settled(prefix=lot.prefix, number=1, **bad)),
        record_of(1, first, aggregate_version=b"2"),
        record_of(2, settled(prefix=lot.prefix, number=3)),
        lot.event(3, 1, 2),
    ]
    assert lot.deliver(lot.slice_of(records)) == [Delivered(parked=3)]

    code, rows, said = command("retry", "--consumer", lot.consumer, "-o", "json")
    assert (code, [row["events"] for row in rows]) == (0, [2, 1])
    assert "nothing was done" in said
    assert not lot.audit()

    code, rows, said = command("retry", "--consumer", lot.consumer, "--execute", "--yes", "-o", "json")
    assert (code, [(row["applied"], row["cause"]) for row in rows]) == (1, [(0, "REJECTED"), (1, None)])
    assert "1 applied; 1 queues still fail" in said

    identity = rows[0]["id"]
    assert command("skip", identity, "--execute", "--yes")[0] == 2, "a reason is needed"
    assert command("skip", "--reason", "all of it", "--execute", "--yes")[0] == 2, "and a choice"
    code, rows, said = command("skip", identity, "--reason", "fee above amount", "-o", "json")
    assert (code, len(rows), len(lot.parked())) == (0, 1, 2)
    code, rows, said = command("skip", identity, "--reason", "fee above amount", "--execute", "--yes", "-o", "json")
    assert (code, len(lot.parked())) == (0, 1)
    assert "1 other events of the same keys are parked: payrelay parked retry" in said

    code, rows, _ = command("retry", "--key", first.key, "--execute", "--yes", "-o", "json")
    assert (code, rows[0]["applied"]) == (0, 1)
    assert lot.posted() == 2
    assert lot.looks() == {False}
    assert [(row.action, row.outcome) for row in lot.audit()] == [
        ("RETRY", "REJECTED"), ("RETRY", "APPLIED"), ("SKIP", "SKIPPED"), ("RETRY", "APPLIED")]  # fmt: skip
    assert all("@" in row.actor for row in lot.audit())


def test_a_consumer_that_is_none_of_ours_is_refused_before_anything_is_done(lot: Lot, command: Any) -> None:
    lot.park()
    with lot.engine.begin() as connection:
        statement = """INSERT INTO parked (consumer, topic, topic_id, partition, "offset", key, headers, cause, error, attempts)
                       SELECT consumer || '-gone', topic, 'gone', 0, 0, key, headers, cause, error, 1 FROM parked
                       WHERE consumer = :consumer"""
        connection.execute(text(statement), {"consumer": lot.consumer})
    with pytest.raises(Refused, match="no processor here for consumer"):
        command("retry", "--key", lot.key(), "--execute", "--yes")
    assert not lot.audit()
    with pytest.raises(Refused, match="is no id of a parked event"):
        command("retry", "accounting:x")


def test_a_skipped_event_is_not_applied_if_it_comes_again(lot: Lot) -> None:
    """Whoever skipped it has made it good by hand."""
    records = [lot.event(0, 1), lot.event(1, 1, 2)]
    lot.rejected = {lot.key()}
    assert lot.deliver(lot.slice_of(records)) == [Delivered(parked=1)]
    lot.rejected = set()
    [parked] = lot.parked()
    for was_there in (True, False):
        assert skip(lot.engine, lot.consumer, parked.id, ACT) is was_there
    again = [replaced(record, offset=record.offset + 2) for record in records]
    assert lot.deliver(lot.slice_of(again)) == [Delivered()]
    assert lot.deliver(lot.slice_of([lot.event(4, 2)])) == [Delivered()]
    assert lot.applied == [(lot.key(2), 1), (lot.key(), 2)]


def test_a_copy_under_a_wrong_key_does_not_stand_in_for_its_event(lot: Lot) -> None:
    """Both are parked: the copy, which nobody can apply, and the event itself, which waits behind its key."""
    records = [lot.event(0, 1), lot.event(2, 2)]
    copy = replaced(records[1], offset=1, key=None)
    lot.rejected = {lot.key()}
    parked = lot.slice_of([records[0], copy, records[1], lot.event(3, 1, 2)])
    assert lot.deliver(parked) == [Delivered(parked=3)]
    assert [(row.offset, row.cause) for row in lot.parked()] == [
        (0, "REJECTED"), (1, "UNDECODABLE"), (2, "BEHIND_PARKED")]  # fmt: skip
    lot.rejected = set()
    assert lot.drain() == Drained(applied=2)


def test_of_a_log_that_was_cut_off_and_grew_again_both_events_of_a_place_are_parked_and_a_repeat_is_one_row(
    lot: Lot,
) -> None:
    lot.rejected = {lot.key(1), lot.key(3)}
    grown = [
        [lot.event(0, 1, 1), replaced(lot.event(1, 1, 4), value=b"{"), lot.event(2, 1, 2)],
        [lot.event(0, 1, 3), replaced(lot.event(1, 1, 4), value=b"}"), lot.event(2, 2, 2)],
    ]
    for _ in range(2):
        for records in grown:
            with lot.engine.begin() as connection:
                move_to(connection, lot.consumer, lot.logs[0], 0)
            lot.deliver(lot.slice_of(records))
    rows = [(row.offset, row.cause, bytes(row.key).decode()) for row in lot.parked()]
    assert rows == [
        (0, "REJECTED", lot.key(1)), (1, "UNDECODABLE", lot.key(4)),
        (0, "REJECTED", lot.key(3)), (1, "UNDECODABLE", lot.key(4))]  # fmt: skip
    lot.rejected = set()
    assert lot.drain() == Drained(applied=1)


def replaced(record: Any, **different: Any) -> Any:
    return SimpleNamespace(**vars(record) | different)


def test_note_lot_says_whether_claims_look_no_longer(lot: Lot) -> None:
    lot.park()
    for emptied, expected in ((False, [False]), (True, [True, False])):
        if emptied:
            lot.drain()
        for outcome in expected:
            with lot.engine.begin() as connection:
                assert note_lot(connection, lot.consumer) is outcome


@pytest.mark.parametrize("count", [1, 3, 40])
def test_parked_keys_are_found_from_whichever_side_has_fewer(lot: Lot, count: int) -> None:
    keys = [lot.key(number).encode() for number in range(20)]
    lot.rejected = {key.decode() for key in keys}
    with lot.engine.begin() as connection:
        event = {"event_id": None, "type": None, "version": None, "headers": {}, "value": None, "cause": Cause.REJECTED}
        held = [Parked(offset=n, key=key, error="", **event) for n, key in enumerate([None, *keys, *keys[:5]])]
        park(connection, lot.consumer, {lot.logs[1]: held})
        wanted = [lot.key(number).encode() for number in range(19, 19 + count)]
        assert parked_keys(connection, lot.consumer, wanted) == {keys[19]}
        assert parked_keys(connection, f"{lot.consumer}-other", wanted) == set()
