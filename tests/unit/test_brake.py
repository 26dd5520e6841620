"""Poison is alone in what it fails at; a broken handler is not. The brake tells them apart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from consumers.delivery.brake import PARKED_KEYS_MAX, Brake, Braked
from consumers.delivery.messages import Poison
from outbox.inbox import Log
from outbox.parking import Cause
from tests.factories import envelope, settled

LOG = Log(cluster_id="c", topic="t", topic_id="i", partition=0)


def poison(number: int = 1, cause: Cause = Cause.REJECTED) -> Poison:
    record = SimpleNamespace(key=f"k{number}".encode(), offset=number, value=b"", headers=[])
    return Poison(LOG, record, cause, "no", envelope(settled()) if cause is Cause.REJECTED else None)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


SETTLED, FAILED = {"payment.settled.v1"}, {"payment.failed.v1"}


def seen(brake: Brake, *items: Poison) -> list[Poison]:
    for item in items:
        brake.saw_failure(item)
    return list(items)


def test_a_lone_failure_waits_and_is_parked_once_an_event_of_its_type_passed_and_it_fails_again() -> None:
    brake = Brake()
    with pytest.raises(Braked):
        brake.judge(seen(brake, poison()))
    brake.saw_pass(FAILED)
    with pytest.raises(Braked):
        brake.judge(seen(brake, poison()))
    brake.saw_pass(SETTLED)
    brake.judge(seen(brake, poison()))


def test_what_passed_before_the_failure_proves_nothing() -> None:
    brake = Brake()
    brake.saw_pass(SETTLED)
    with pytest.raises(Braked):
        brake.judge(seen(brake, poison()))


def test_a_handler_mended_half_way_parks_nothing() -> None:
    brake = Brake()
    failed = seen(brake, poison(1), poison(2))
    brake.saw_pass(SETTLED)
    with pytest.raises(Braked):
        brake.judge(failed)


def test_an_unreadable_event_is_parked_once_any_event_has_passed() -> None:
    brake = Brake()
    with pytest.raises(Braked):
        brake.judge(seen(brake, poison(cause=Cause.UNDECODABLE)))
    brake.saw_pass(FAILED)
    brake.judge(seen(brake, poison(cause=Cause.UNDECODABLE)))


def test_a_second_event_for_a_fact_needs_no_witness() -> None:
    brake = Brake()
    brake.judge(seen(brake, poison(cause=Cause.DUPLICATE_FACT)))


def test_too_many_keys_within_a_minute_are_no_poison() -> None:
    clock = Clock()
    brake = Brake(clock)

    def twice(number: int) -> list[Poison]:
        seen(brake, poison(number))
        brake.saw_pass(SETTLED)
        return seen(brake, poison(number))

    for number in range(PARKED_KEYS_MAX):
        items = twice(number)
        brake.judge(items)
        brake.saw_parked(items)
    with pytest.raises(Braked, match="21 keys"):
        brake.judge(twice(99))
    clock.now += 61
    brake.judge(twice(99))
