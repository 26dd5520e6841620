"""Slices delivered on real PostgreSQL: what no test of a whole worker reaches. Every slice is delivered twice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from consumers.accounting.agent import PROCESSOR
from consumers.delivery.brake import PATIENCE, Braked
from consumers.delivery.loop import Delivered, Delivery, OffsetGap
from consumers.delivery.messages import Slice
from consumers.delivery.processor import Processor
from ops.delivery.parked import ParkedFilter, counts, event, events
from ops.pipeline.checks import examine
from ops.pipeline.upkeep import upkeep
from outbox.clock import first_id_at, utc_now
from outbox.errors import Refused
from outbox.inbox import Log, begin_log
from outbox.settings import Settings
from schemas.codec import Envelope, encode
from schemas.events import Event, PaymentSettled
from tests.factories import settled, suspense
from tests.pipeline import engine_of, fresh_id


def record_of(offset: int, event: Event, **different: Any) -> Any:
    """Return a record as the client hands it over, with something different about it."""
    headers = {
        "ce_id": str(fresh_id()).encode(),
        "ce_type": event.type.encode(),
        "aggregate_version": b"1",
        "correlation": b"c",
    }
    headers |= {name: value for name, value in different.items() if name in headers}
    return SimpleNamespace(
        offset=offset,
        key=different.get("key", event.key.encode()),
        value=different.get("value", encode(event).encode()),
        headers=list(headers.items()),
    )


class Stretch:
    """A consumer of a log of the test's own."""

    def __init__(self, settings: Settings, prefix: str, processor: Processor = PROCESSOR) -> None:
        self.engine = engine_of(settings, "accounting")
        self.consumer = prefix + PROCESSOR.name
        self.delivery = Delivery(processor, self.engine, consumer=self.consumer, clock=utc_now)
        self.logs = [Log(cluster_id="c", topic=prefix, topic_id="i", partition=number) for number in range(3)]
        with self.engine.begin() as connection:
            for log in self.logs:
                begin_log(connection, self.consumer, log, next_offset=0)

    def slice_of(self, records: Sequence[Any], partition: int = 0) -> Slice:
        return Slice(log=self.logs[partition], start=records[0].offset, end=records[-1].offset + 1, messages=records)

    def deliver(self, *slices: Slice) -> list[Delivered | Braked | OffsetGap]:
        return list(self.delivery.deliver(slices).values())

    def rows(self, statement: str) -> list[Any]:
        with self.engine.connect() as connection:
            parameters = {"consumer": self.consumer, "like": f"{self.logs[0].topic}%"}
            return list(connection.execute(text(statement), parameters))

    def posted(self) -> int:
        return len(self.rows("SELECT FROM voucher WHERE business_no LIKE :like"))


def good(prefix: str, first: int, count: int, offset: int) -> list[Any]:
    return [record_of(offset + number, settled(prefix=prefix, number=first + number)) for number in range(count)]


def test_slices_of_several_partitions_are_one_transaction_and_come_twice_without_effect(
    settings: Settings, prefix: str
) -> None:
    stretch = Stretch(settings, prefix)
    slices = [stretch.slice_of(good(prefix, 10 * number, 5, 0), number) for number in range(3)]
    for _ in range(2):
        assert stretch.deliver(*slices) == [Delivered()] * 3
    assert stretch.posted() == 15
    assert len(stretch.rows("SELECT DISTINCT xmin FROM inbox WHERE consumer = :consumer")) == 1


def test_a_slice_ahead_of_progress_and_a_poisoned_one_do_not_hold_up_the_others(
    settings: Settings, prefix: str
) -> None:
    stretch = Stretch(settings, prefix)
    ahead = stretch.slice_of(good(prefix, 0, 3, 7), 0)
    poisoned = stretch.slice_of([record_of(0, settled(), value=b"{}"), *good(prefix, 10, 3, 1)], 1)
    plain = stretch.slice_of(good(prefix, 20, 3, 0), 2)
    first, second, third = stretch.deliver(ahead, poisoned, plain)
    assert isinstance(first, OffsetGap)
    assert (second, third) == (Delivered(parked=1), Delivered())
    assert stretch.posted() == 6


@pytest.mark.parametrize(
    "different",
    [
        {"ce_id": b"ffffffff-ffff-7fff-bfff-ffffffffffff"},
        {"aggregate_version": b"1" + b"0" * 20, "key": b"other"},
        {"aggregate_version": b"0"},
        {"aggregate_version": b"1" + b"0" * 400},
        {"key": os.urandom(3_000)},
        {"ce_type": b"payment\0settled"},
        {"correlation": b"nul \0"},
        {"value": b'{"a": "\xff"}'},
        {"value": None},
        {"key": None},
    ],
    ids=["id beyond 9999", "huge version", "version 0", "version of 400 digits", "long key", "NUL in type", "NUL in correlation", "no UTF-8", "no body", "no key"],
)  # fmt: skip
def test_whatever_a_record_holds_it_is_parked_and_the_others_flow(
    settings: Settings, prefix: str, different: dict[str, Any]
) -> None:
    def handle(connection: Connection, events: Sequence[Envelope]) -> None:
        connection.execute(text("SELECT CAST(:told AS text[])"), {"told": [event.correlation for event in events]})
        PROCESSOR.handle(connection, events)

    stretch = Stretch(settings, prefix, replace(PROCESSOR, handle=handle))
    records = [record_of(0, settled(prefix=prefix, number=0), **different), *good(prefix, 1, 5, 1)]
    assert stretch.deliver(stretch.slice_of(records)) == [Delivered(parked=1)]
    assert stretch.deliver(stretch.slice_of(records)) == [Delivered()]
    assert stretch.posted() == 5
    with engine_of(settings, "ops").connect() as connection:
        [count] = counts(connection, ParkedFilter(consumer=stretch.consumer))
        [row] = events(
            connection, ParkedFilter(consumer=stretch.consumer, cause=count.cause, type=count.type), limit=10
        )
        whole = event(connection, row.id)
        assert not events(connection, ParkedFilter(consumer=stretch.consumer, begin=utc_now()), limit=10)
        with pytest.raises(Refused, match="no event accounting:0 is parked"):
            event(connection, "accounting:0")
    assert (count.events, whole["offset"], whole["cause"]) == (1, 0, row.cause)


def ahead_of_the_clock(prefix: str, count: int, days: int = 1) -> list[Any]:
    """Return records of events that were recorded while the clock was so far ahead."""
    at = utc_now() + timedelta(days=days)
    ids = [first_id_at(at).int | 7 << 76 | 2 << 62 | number for number in range(1, count + 1)]
    return [
        record_of(number, settled(prefix=prefix, number=number), ce_id=str(UUID(int=identity)).encode())
        for number, identity in enumerate(ids)
    ]


def test_events_ahead_of_the_clock_are_parked_without_the_brake_and_upkeep_applies_them_once_their_day_exists(
    settings: Settings, prefix: str
) -> None:
    stretch = Stretch(settings, prefix)
    records = [*ahead_of_the_clock(prefix, 30), *good(prefix, 50, 3, 30)]
    later = ahead_of_the_clock(f"{prefix}later", 1, days=40)
    for _ in range(2):
        outcomes = stretch.deliver(stretch.slice_of(records), stretch.slice_of(later, 1))
        stretch.deliver(*(stretch.slice_of(ahead_of_the_clock(f"{prefix}2", 1), 2),))
    assert outcomes == [Delivered(), Delivered()]
    assert stretch.posted() == 3
    own = settings.model_copy(update={"group_prefix": prefix})
    [finding] = [check for check in examine(own, now=utc_now()) if check.check == "clocks"]
    assert (finding.ok, finding.fix) == (False, "payrelay upkeep")
    for retried in ({stretch.consumer: 31}, {}):
        report = upkeep(own, now=utc_now())
        assert report.retried == retried
    assert stretch.posted() == 34
    [left] = stretch.rows("SELECT cause, attempts FROM parked WHERE consumer = :consumer")
    assert tuple(left) == ("AHEAD_OF_CLOCK", 1), "its day is not there: nothing is tried"
    with stretch.engine.begin() as connection:
        connection.execute(text("DELETE FROM parked WHERE consumer = :consumer"), {"consumer": stretch.consumer})


def test_events_of_now_whose_day_is_not_made_wait_for_it(settings: Settings, prefix: str) -> None:
    stretch = Stretch(settings, prefix)
    days = first_id_at(utc_now() - timedelta(days=9)), first_id_at(utc_now() - timedelta(hours=1))
    late = Delivery(
        PROCESSOR, stretch.engine, consumer=stretch.consumer, clock=utc_now, horizon=lambda _connection, _service: days
    )
    [outcome] = late.deliver([stretch.slice_of(good(prefix, 0, 30, 0))]).values()
    assert isinstance(outcome, Braked)
    assert "its day is not made: payrelay upkeep" in str(outcome)


def test_a_worker_whose_own_clock_is_slow_parks_nothing(settings: Settings, prefix: str) -> None:
    stretch = Stretch(settings, prefix)
    slow = Delivery(PROCESSOR, stretch.engine, consumer=stretch.consumer, clock=lambda: utc_now() - timedelta(hours=2))
    records = stretch.slice_of(good(prefix, 0, 3, 0))
    assert slow.deliver([records]) == {stretch.logs[0]: Delivered()}
    assert stretch.posted() == 3


def test_a_repeat_inside_a_slice_does_not_change_the_order(settings: Settings, prefix: str) -> None:
    seen: list[int] = []
    stretch = Stretch(
        settings,
        prefix,
        replace(PROCESSOR, handle=lambda _, events: seen.extend(event.version for event in events)),
    )
    event, first = settled(prefix=prefix), str(fresh_id()).encode()
    records = [
        record_of(0, event, ce_id=first),
        record_of(1, event, aggregate_version=b"2"),
        record_of(2, event, ce_id=first),
    ]
    for _ in range(2):
        stretch.deliver(stretch.slice_of(records))
    assert seen == [1, 2]


def test_a_rejected_event_of_a_rare_type_does_not_hold_its_partition_for_ever(settings: Settings, prefix: str) -> None:
    def handle(connection: Connection, events: Sequence[Envelope]) -> None:
        if not all(isinstance(event.event, PaymentSettled) for event in events):
            raise ValueError("rejected")
        PROCESSOR.handle(connection, events)

    stretch = Stretch(settings, prefix, replace(PROCESSOR, handle=handle))
    rare = suspense(payment_no=f"{prefix}S", bank_transaction_no=f"{prefix}S")
    slice_ = stretch.slice_of([record_of(0, rare), *good(prefix, 1, 50, 1)])
    outcomes = [stretch.deliver(slice_)[0] for _ in range(PATIENCE // 2)]
    assert all(isinstance(outcome, Braked) for outcome in outcomes[:-1])
    assert outcomes[-1] == Delivered(parked=1)
    assert stretch.posted() == 50


def test_what_the_database_finds_wrong_at_commit_is_parked_alone(settings: Settings, prefix: str) -> None:
    """Vouchers are judged whole at commit, which names no event."""
    half = settled(prefix=prefix, number=3).key

    def handle(connection: Connection, events: Sequence[Envelope]) -> None:
        PROCESSOR.handle(connection, events)
        for envelope in events:
            if envelope.event.key == half:
                connection.execute(
                    text("""INSERT INTO voucher (business_no, kind, event_id, currency, occurred_at, lines)
                            VALUES (:no, 'settlement', gen_random_uuid(), 'CNY', now(), 2)"""),
                    {"no": f"{prefix}half"},
                )

    stretch = Stretch(settings, prefix, replace(PROCESSOR, handle=handle))
    records = good(prefix, 0, 6, 0)
    for expected in (Delivered(parked=1), Delivered()):
        assert stretch.deliver(stretch.slice_of(records)) == [expected]
    [parked] = stretch.rows("SELECT key, cause, error FROM parked WHERE consumer = :consumer")
    assert (parked.key, parked.cause) == (half.encode(), "REJECTED")
    assert "not balanced, or not whole" in parked.error
    assert stretch.posted() == 5


def test_records_without_a_key_are_braked_one_by_one(settings: Settings, prefix: str) -> None:
    """Else a producer deployed without keys would park all it sends."""
    stretch = Stretch(settings, prefix)
    keyless = [record_of(number, settled(prefix=prefix, number=number), key=None) for number in range(21)]
    [outcome] = stretch.deliver(stretch.slice_of([*keyless, *good(prefix, 100, 3, 21)]))
    assert isinstance(outcome, Braked)
    assert not stretch.rows("SELECT FROM parked WHERE consumer = :consumer")
