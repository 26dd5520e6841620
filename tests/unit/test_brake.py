"""Poison is alone in what it fails at; a broken handler is not. The brake tells them apart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from consumers.delivery import PARKED_KEYS_MAX, Brake, Braked, _Poison
from outbox.parking import Cause
from tests.factories import envelope, settled


def poison(number: int = 1, cause: Cause = Cause.REJECTED) -> _Poison:
    record = SimpleNamespace(key=f"k{number}".encode(), offset=number, value=b"", headers=[])
    return _Poison(record, cause, "no", envelope(settled()) if cause is Cause.REJECTED else None)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lone_failure_waits_and_is_parked_once_another_event_of_its_type_has_passed() -> None:
    clock = Clock()
    brake = Brake(clock)
    with pytest.raises(Braked):
        brake.judge([poison()], set())
    clock.now += 1
    brake.passed([], {"payment.failed.v1"})
    with pytest.raises(Braked):
        brake.judge([poison()], set())
    clock.now += 1
    brake.passed([], {"payment.settled.v1"})
    brake.judge([poison()], set())


def test_what_passed_before_the_failure_proves_nothing() -> None:
    clock = Clock()
    brake = Brake(clock)
    brake.passed([], {"payment.settled.v1"})
    clock.now += 1
    with pytest.raises(Braked):
        brake.judge([poison()], set())


def test_an_unreadable_event_is_parked_once_any_event_has_passed() -> None:
    brake = Brake(Clock())
    with pytest.raises(Braked):
        brake.judge([poison(cause=Cause.UNDECODABLE)], set())
    brake.judge([poison(cause=Cause.UNDECODABLE)], {"payment.failed.v1"})


def test_a_second_event_for_a_fact_needs_no_witness() -> None:
    Brake(Clock()).judge([poison(cause=Cause.DUPLICATE_FACT)], set())


def test_too_many_keys_within_a_minute_are_no_poison() -> None:
    clock = Clock()
    brake = Brake(clock)
    for number in range(PARKED_KEYS_MAX):
        brake.judge([poison(number)], {"payment.settled.v1"})
        brake.passed([poison(number)], {"payment.settled.v1"})
    with pytest.raises(Braked, match="21 keys"):
        brake.judge([poison(99)], {"payment.settled.v1"})
    clock.now += 61
    brake.judge([poison(99)], {"payment.settled.v1"})
