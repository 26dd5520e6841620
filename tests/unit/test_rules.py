"""A queue's rule: what it allows, what it says when it does not, and published schedules reproduced exactly."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.notification.rules import ATTEMPTS_MAX, DELAY_MAX, parse_rule, timetable
from outbox.errors import Refused

AT = datetime(2026, 11, 25, 8, 0, tzinfo=UTC)
S, M, H = 1, 60, 3_600

PUBLISHED = {
    "seed": ('{"1":0,"2":1,"3":2,"4":5,"5":15}', [0, M, 3 * M, 8 * M, 23 * M]),
    "seed, first form": ('{"1":0,"2":1,"3":2,"4":3,"5":4}', [0, M, 3 * M, 6 * M, 10 * M]),
    "Svix": (
        '{"1":0,"2":"5s","3":5,"4":30,"5":"2h","6":"5h","7":"10h","8":"10h"}',
        [0, 5, 305, 2_105, 9_305, 27_305, 63_305, 99_305],
    ),
    "Standard Webhooks": (
        '{"1":0,"2":"5s","3":"5m","4":"30m","5":"2h","6":"5h","7":"10h","8":"14h","9":"20h","10":"24h"}',
        [0, 5, 305, 2_105, 9_305, 27_305, 63_305, 113_705, 185_705, 272_105],
    ),
    "Alipay": (
        '{"1":0,"2":2,"3":10,"4":10,"5":60,"6":"2h","7":"6h","8":"15h"}',
        [0, 2 * M, 12 * M, 22 * M, 82 * M, 202 * M, 562 * M, 1_462 * M],
    ),
}
"""Seconds from the making of the record to each attempt, as published."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_schedule_is_a_rule(name: str) -> None:
    text, seconds = PUBLISHED[name]
    assert [turn.since_made.total_seconds() for turn in timetable(parse_rule(text))] == seconds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 3_000, "not JSON"),
        ("[0, 1]", "not a JSON object"),
        ("3", "not a JSON object"),
        ("{}", "0 attempts"),
        ('{"1":0,"3":1}', "each once"),
        ('{"0":0}', "each once"),
        ('{"01":0}', "each once"),
        ('{"1":0,"1":1}', "each once"),
        ('{"1":0,"2":1,"2":2}', "each once"),
        ('{"1":-1}', "not within 0"),
        ('{"1":1e9}', "not within 0"),
        ('{"1":1e999999}', "not within 0"),
        ('{"1":"31d"}', "not within 0"),
        ('{"1":NaN}', "neither minutes"),
        ('{"1":Infinity}', "neither minutes"),
        ('{"1":true}', "neither minutes"),
        ('{"1":null}', "neither minutes"),
        ('{"1":{"1":0}}', "neither minutes"),
        ('{"1":"5 s"}', "neither minutes"),
        ('{"1":"5"}', "neither minutes"),
        ('{"1":"٥s"}', "neither minutes"),
        ('{"1":"-5s"}', "neither minutes"),
        ('{"1":0.00001}', "whole number of milliseconds"),
        ('{"1":0.08333}', "whole number of milliseconds"),
        (json.dumps({str(n): 0 for n in range(1, ATTEMPTS_MAX + 2)}), "101 attempts"),
        ('{"1":' + " " * 5_000 + "0}", "characters"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        parse_rule(text)


delays = st.lists(st.integers(0, int(DELAY_MAX.total_seconds() * 1_000)), min_size=1, max_size=ATTEMPTS_MAX)


@given(delays, st.lists(st.integers(0, 10**8), min_size=ATTEMPTS_MAX, max_size=ATTEMPTS_MAX))
def test_each_attempt_is_planned_to_the_microsecond_from_the_start_of_the_one_before(
    milliseconds: list[int], durations: list[int]
) -> None:
    rule = parse_rule(json.dumps({str(n): f"{wait_ms / 1_000:.3f}s" for n, wait_ms in enumerate(milliseconds, 1)}))
    planned = rule.first_at(AT)
    assert planned == AT + timedelta(milliseconds=milliseconds[0])
    for attempt, (delay, took) in enumerate(zip(milliseconds[1:], durations, strict=False), 1):
        ended = planned + timedelta(microseconds=took)
        following = rule.next_at(attempt, started_at=planned, ended_at=ended)
        assert following == max(planned + timedelta(milliseconds=delay), ended)
        planned = following
    assert rule.next_at(len(milliseconds), started_at=planned, ended_at=planned) is None


@given(st.integers(0, 43_200 * 10_000))
def test_minutes_with_fractions_are_exact(parts: int) -> None:
    """Ten thousandths of a minute are 6 ms."""
    rule = parse_rule(f'{{"1": 0, "2": {parts // 10_000}.{parts % 10_000:04d}}}')
    assert rule.delays[1] == timedelta(milliseconds=6 * parts)


@given(st.text(max_size=200))
def test_no_text_raises_anything_else(text: str) -> None:
    with suppress(Refused):
        parse_rule(text)
