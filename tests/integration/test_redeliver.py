"""Events redelivered on real PostgreSQL: each outcome, and each step at which a redelivery can meet the live stream or a retry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from consumers.accounting.agent import PROCESSOR
from consumers.delivery.loop import Delivered, Delivery
from consumers.delivery.redeliver import FROM_OUTBOX, PastMessage, Redelivered, redeliver
from consumers.delivery.retry import Drained
from outbox.clock import utc_now
from outbox.inbox import Log, move_to
from outbox.settings import Settings
from schemas.codec import Envelope
from tests.applied import applied, apply, make_applied
from tests.factories import settled
from tests.integration.test_delivery import record_of
from tests.integration.test_parking import AGES_AGO, Lot, waiters, waits_for
from tests.pipeline import engine_of
from tests.waiting import eventually


class Holes(Lot):
    """A lot whose stream has passed over events: what is handed over again, and what came of it."""

    def again(
        self, records: Sequence[Any], *, log: Log | None = None, handle: Callable[..., Any] | None = None, **how: Any
    ) -> Redelivered:
        processor = replace(self.delivery.processor, handle=handle) if handle else self.delivery.processor
        delivery = Delivery(processor, self.engine, consumer=self.consumer, clock=utc_now)
        return redeliver(self.engine, delivery, [self.past(record, log) for record in records], **how)

    def past(self, record: Any, log: Log | None = None) -> PastMessage:
        return PastMessage(
            log=log or self.logs[0], offset=record.offset, key=record.key, headers=record.headers, value=record.value
        )

    def pass_over(self, stop: int, partition: int = 0) -> None:
        with self.engine.begin() as connection:
            move_to(connection, self.consumer, self.logs[partition], stop)

    def progress(self) -> list[Any]:
        return self.rows(
            "SELECT partition, next_offset, has_parked FROM progress WHERE consumer = :consumer ORDER BY 1"
        )

    @property
    def outbox(self) -> Log:
        return Log(cluster_id="", topic=self.logs[0].topic, topic_id="", partition=FROM_OUTBOX)


@pytest.fixture
def holes(settings: Settings, prefix: str) -> Generator[Holes]:
    made = Holes(settings, prefix)
    made.settings = settings
    yield made
    made.goes_on.set()


@pytest.fixture
def pool() -> Generator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_what_the_stream_has_passed_over_is_applied_once_and_progress_stays(holes: Holes) -> None:
    records = [holes.event(number, 1, number) for number in range(6)]
    assert holes.deliver(holes.slice_of(records[:2])) == [Delivered()]
    holes.pass_over(4)
    before = holes.progress()
    assert holes.again(records) == Redelivered(applied=2, known=2, waiting=2)
    assert holes.again(records) == Redelivered(known=4, waiting=2)
    assert holes.progress() == before
    assert holes.deliver(holes.slice_of(records[4:])) == [Delivered()]
    assert holes.again(records) == Redelivered(known=6)
    assert holes.applied == [(holes.key(number), 1) for number in range(6)]


def test_of_the_outbox_an_event_has_no_place(holes: Holes) -> None:
    records = [replaced(holes.event(0, 1, number), offset=FROM_OUTBOX) for number in range(3)]
    for expected in (Redelivered(applied=3), Redelivered(known=3)):
        assert holes.again(records, log=holes.outbox) == expected
    rows = holes.rows('SELECT topic, partition, "offset" FROM inbox WHERE consumer = :consumer')
    assert {tuple(row) for row in rows} == {(holes.logs[0].topic, -1, -1)}
    # Should they come by the topic after all, they are known.
    assert holes.deliver(holes.slice_of([replaced(message, offset=n) for n, message in enumerate(records)])) == [
        Delivered()
    ]
    assert len(holes.applied) == 3


def test_a_log_that_the_consumer_has_not_begun_is_left_to_its_worker(holes: Holes) -> None:
    new = replace(holes.logs[0], topic_id="another")
    assert holes.again([holes.event(0, 1)], log=new) == Redelivered(waiting=1)
    assert holes.applied == []


def test_behind_a_parked_event_nothing_is_applied_and_before_it_what_it_may_want(holes: Holes) -> None:
    first, second, third = (holes.event(version - 1, version) for version in (1, 2, 3))
    holes.pass_over(1)
    holes.rejected = {holes.key()}
    assert holes.deliver(holes.slice_of([second, holes.event(2, 1, 2)])) == [Delivered(parked=1)]
    holes.pass_over(4)
    holes.rejected, holes.applied = set(), []
    expected = Redelivered(applied=1, parked=2)
    assert holes.again([first, second, third, second, first][:3]) == expected
    assert holes.again([first, second, third]) == Redelivered(known=1, parked=2)
    assert holes.drain() == Drained(applied=1)
    assert holes.again([first, second, third]) == Redelivered(known=2, applied=1)
    assert holes.applied == [(holes.key(), version) for version in (1, 2, 3)]


def test_a_parked_event_that_shows_no_version_holds_back_all_of_its_key(holes: Holes) -> None:
    unreadable = record_of(1, settled(prefix=holes.prefix), value=b"{}")
    holes.pass_over(1)
    assert holes.deliver(holes.slice_of([unreadable, holes.event(2, 1, 2)])) == [Delivered(parked=1)]
    assert holes.again([holes.event(0, 1), unreadable]) == Redelivered(parked=1, unreadable=1)


def test_what_fails_is_told_and_its_key_waits_and_nothing_else_is_lost(holes: Holes) -> None:
    records = [holes.event(number, 1, number) for number in range(40)]
    records += [holes.event(40, 2, 7), holes.event(41, 2, 8)]
    holes.pass_over(len(records))
    holes.rejected = {holes.key(7)}
    for expected in (Redelivered(applied=40), Redelivered(known=40)):
        outcome = holes.again(records)
        assert list(outcome.failed.values()) == [
            "DivisionByZero: division by zero",
            f"an earlier event of its key has failed: {next(iter(outcome.failed))}",
        ]
        assert replaced_outcome(outcome, failed={}) == expected
        assert not outcome.is_whole
    assert not holes.parked()
    holes.rejected = set()
    assert holes.again(records) == Redelivered(applied=2, known=40)
    assert len(set(holes.applied)) == 42
    for key in (7, 8):
        assert [effect for effect in holes.applied if effect[0] == holes.key(key)][-2:] == [
            (holes.key(key), 1),
            (holes.key(key), 2),
        ]


def test_known_events_of_a_key_that_fails_are_known_however_often_they_come(holes: Holes) -> None:
    known = holes.event(1, 2)
    records = [holes.event(0, 1), known, replaced(known, offset=2), replaced(known, offset=3)]
    holes.pass_over(1)
    assert holes.deliver(holes.slice_of(records[1:])) == [Delivered()]
    holes.rejected = {holes.key()}
    for _ in range(2):
        outcome = holes.again([records[0], replaced(records[0], offset=1), *records[1:]])
        assert (outcome.known, list(outcome.failed.values())) == (3, ["DivisionByZero: division by zero"])


def test_a_broken_handler_ends_the_run(holes: Holes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.delivery.redeliver.SET_MAX", 50)
    monkeypatch.setattr("consumers.delivery.redeliver.FAILURES_MAX", 10)
    records = [holes.event(number, 1, number) for number in range(120)]
    holes.pass_over(len(records))
    holes.rejected = {holes.key(number) for number in range(11)}
    outcome = holes.again(records)
    assert (len(outcome.failed), outcome.applied, outcome.cut_short) == (11, 39, True)
    holes.rejected = set()
    assert holes.again(records) == Redelivered(applied=81, known=39)


def test_an_event_behind_the_horizon_or_ahead_of_the_clock_is_refused(holes: Holes) -> None:
    ahead = str(UUID(int=UUID(int=0x7 << 76 | 2 << 62 | int(utc_now().timestamp() * 1000 + 86_400_000) << 80).int))
    old = record_of(0, settled(prefix=holes.prefix), ce_id=AGES_AGO)
    records = [old, record_of(1, settled(prefix=holes.prefix, number=2), ce_id=ahead.encode()), holes.event(2, 1, 3)]
    holes.pass_over(3)
    for applied_, known in ((1, 0), (0, 1)):
        outcome = holes.again(records)
        assert (outcome.applied, outcome.known, len(outcome.refused)) == (applied_, known, 2)
        assert "would not be recognised" in outcome.refused[UUID(AGES_AGO.decode())]


def test_what_the_database_finds_wrong_at_commit_is_told_of_its_event(holes: Holes) -> None:
    def handle(connection: Connection, events: Sequence[Envelope]) -> None:
        PROCESSOR.handle(connection, events)
        for envelope in events:
            if envelope.event.key == holes.key(3):
                connection.execute(
                    text("""INSERT INTO voucher (business_no, kind, event_id, currency, occurred_at, lines)
                            VALUES (:no, 'settlement', gen_random_uuid(), 'CNY', now(), 2)"""),
                    {"no": f"{holes.prefix}half"},
                )

    holes.pass_over(6)
    records = [holes.event(number, 1, number) for number in range(6)]
    for expected in (Redelivered(applied=5), Redelivered(known=5)):
        outcome = holes.again(records, handle=handle)
        assert ["not balanced, or not whole" in error for error in outcome.failed.values()] == [True]
        assert replaced_outcome(outcome, failed={}) == expected
    assert holes.posted() == 5


def test_a_handler_that_keeps_the_latest_passes_over_what_is_older(holes: Holes, settings: Settings) -> None:
    """Its state is the version last applied; it compares under the row's lock, and says what it has passed over."""
    make_applied(settings)

    def handle(connection: Connection, events: Sequence[Envelope]) -> Collection[UUID]:
        older = set()
        for envelope in events:
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:key))"), {"key": envelope.event.key})
            statement = text("SELECT coalesce(max(version), 0) FROM applied WHERE key = :key")
            if connection.execute(statement, {"key": envelope.event.key}).scalar_one() > envelope.version:
                older.add(envelope.id)
            else:
                connection.execute(
                    text("INSERT INTO applied (key, version, event_id) VALUES (:key, :version, :id)"),
                    {"key": envelope.event.key, "version": envelope.version, "id": envelope.id},
                )
        return older

    holes.delivery = Delivery(replace(PROCESSOR, handle=handle), holes.engine, consumer=holes.consumer, clock=utc_now)
    records = [holes.event(0, 1), holes.event(1, 2), holes.event(2, 1, 2)]
    holes.pass_over(1)
    assert holes.deliver(holes.slice_of(records[1:2])) == [Delivered()]
    holes.pass_over(3)
    assert holes.again(records) == Redelivered(superseded=1, known=1, applied=1)
    assert holes.again(records) == Redelivered(known=3)
    with engine_of(settings, "ops").connect() as connection:
        assert applied(connection, holes.prefix) == [(holes.key(), 2), (holes.key(2), 1)]


# ---- where it meets the live stream and a retry -------------------------------------------------------------------


def test_the_live_stream_flows_past_a_redelivery_of_its_key(holes: Holes, pool: ThreadPoolExecutor) -> None:
    """It takes no lock for a key that is not parked: what comes out of its turn does so whoever commits first."""
    holes.pass_over(1)
    holes.stops_at = holes.key()
    redelivering = pool.submit(holes.again, [holes.event(0, 1)])
    assert holes.inside.wait(30)
    holes.stops_at = None
    assert holes.deliver(holes.slice_of([holes.event(1, 2)])) == [Delivered()]
    assert not redelivering.done()
    holes.goes_on.set()
    assert redelivering.result(30) == Redelivered(applied=1)
    assert sorted(holes.applied) == [(holes.key(), 1), (holes.key(), 2)]


@pytest.mark.parametrize("ends", ["commits", "cut off"])
def test_the_same_event_in_the_live_stream_waits_for_the_redelivery_and_is_applied_once(
    holes: Holes, pool: ThreadPoolExecutor, ends: str
) -> None:
    holes.pass_over(1)
    event = holes.event(0, 1)
    holes.stops_at = holes.key()
    held: list[int] = []

    def handle(connection: Connection, events: Sequence[Envelope]) -> None:
        held.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        holes.handle(connection, events)
        connection.execute(text("SELECT 1"))

    redelivering = pool.submit(holes.again, [event], handle=handle)
    assert holes.inside.wait(30)
    holes.stops_at = None
    live = pool.submit(holes.deliver, holes.slice_of([replaced(event, offset=1)]))  # emitted again
    eventually(lambda: waiters(holes.settings, "transactionid"), what="the live batch waits for the inbox row")
    assert not live.done()
    if ends == "cut off":
        with engine_of(holes.settings, "owner").begin() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": held[0]})
        assert live.result(30) == [Delivered()]
    holes.goes_on.set()
    outcome = redelivering.result(30)
    assert outcome == (Redelivered(applied=1) if ends == "commits" else Redelivered(known=1))
    assert live.result(30) == [Delivered()]
    assert len(holes.rows("SELECT FROM inbox WHERE consumer = :consumer")) == 1


def test_a_live_batch_of_a_parked_key_waits_for_a_redelivery_that_holds_it(
    holes: Holes, pool: ThreadPoolExecutor
) -> None:
    holes.pass_over(1)
    holes.rejected = {holes.key()}
    assert holes.deliver(holes.slice_of([holes.event(1, 2), holes.event(2, 1, 2)])) == [Delivered(parked=1)]
    holes.rejected, holes.applied, holes.stops_at = set(), [], holes.key()
    redelivering = pool.submit(holes.again, [holes.event(0, 1)])
    assert holes.inside.wait(30)
    live = pool.submit(holes.deliver, holes.slice_of([holes.event(3, 3)]))
    waits_for(holes, "advisory", live, redelivering)
    retrying = pool.submit(holes.drain)
    eventually(lambda: len(waiters(holes.settings, "advisory")) == 2, what="the retry waits too")
    holes.goes_on.set()
    assert redelivering.result(30) == Redelivered(applied=1)
    assert live.result(30) in ([Delivered(parked=1)], [Delivered()])  # whichever of the two came first
    retrying.result(30)
    assert holes.applied == [(holes.key(), version) for version in (1, 2, 3)]


def test_a_redelivery_waits_for_a_retry_of_its_key_and_sees_what_it_left(
    holes: Holes, pool: ThreadPoolExecutor
) -> None:
    holes.park()
    holes.pass_over(3)
    holes.stops_at = holes.key()
    retrying = pool.submit(holes.drain)
    assert holes.inside.wait(30)
    redelivering = pool.submit(holes.again, [holes.event(2, 2)])
    waits_for(holes, "advisory", redelivering, retrying)
    holes.goes_on.set()
    assert retrying.result(30) == Drained(applied=1)
    assert redelivering.result(30) == Redelivered(applied=1)
    assert holes.applied == [(holes.key(), 1), (holes.key(), 2)]


def test_beside_a_busy_stream_each_event_is_applied_once_and_nobody_deadlocks(
    settings: Settings, prefix: str, pool: ThreadPoolExecutor
) -> None:
    """Two redeliveries of the same holes and three live partitions, all on the same accounts."""
    make_applied(settings)
    holes = Holes(settings, prefix)
    processor = replace(PROCESSOR, handle=apply)
    holes.delivery = Delivery(processor, holes.engine, consumer=holes.consumer, clock=utc_now)
    count, kept = 900, 300
    records = [[record_of(n, settled(prefix=prefix, number=3 * n + p)) for n in range(count)] for p in range(3)]
    for partition in range(3):
        holes.pass_over(kept, partition)

    def live(partition: int) -> None:
        delivery = Delivery(holes.delivery.processor, holes.engine, consumer=holes.consumer, clock=utc_now)
        for first in range(kept, count, 100):
            part = holes.slice_of(records[partition][first : first + 100], partition)
            assert list(delivery.deliver([part]).values()) == [Delivered()]

    def again() -> Redelivered:
        total = Redelivered()
        for partition in range(3):
            total.add(holes.again(records[partition][:kept], log=holes.logs[partition]))
        return total

    before = deadlocks(settings)
    streams = [pool.submit(live, partition) for partition in range(3)]
    outcomes = list(ThreadPoolExecutor(2).map(lambda _: again(), range(2)))
    for stream in streams:
        stream.result(60)
    assert outcomes[0].applied + outcomes[1].applied == 3 * kept
    assert outcomes[0].known + outcomes[1].known == 3 * kept
    with engine_of(settings, "ops").connect() as connection:
        done = applied(connection, prefix)
    assert len(done) == len(set(done)) == 3 * count
    assert deadlocks(settings) == before


def deadlocks(settings: Settings) -> int:
    with engine_of(settings, "ops").connect() as connection:
        statement = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        return int(connection.execute(text(statement)).scalar_one())


def replaced(record: Any, **different: Any) -> Any:
    return type(record)(**vars(record) | different)


def replaced_outcome(outcome: Redelivered, **different: Any) -> Redelivered:
    return Redelivered(**vars(outcome) | different)
