"""The earliest clock decides what may go, and doctor says how the clocks are."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.pipeline.clocks import AheadKey, judge_clocks
from outbox.clock import EPOCH, Clocks

TIMES = st.integers(0, 36_500 * 86_400).map(lambda s: EPOCH + timedelta(seconds=s))


@given(TIMES, TIMES, st.none() | TIMES, st.floats(0, 10_000))
def test_what_is_kept_begins_before_today_by_every_clock(
    host: datetime, database: datetime, newest: datetime | None, days: float
) -> None:
    keep_from = Clocks(host=host, database=database, newest_row=newest).keep_from(days)
    for clock in (host, database, newest or host):
        assert keep_from.date() < clock.date()
        assert keep_from <= clock - timedelta(days=days)


@pytest.mark.parametrize(
    ("apart", "ahead", "has_day", "ok", "explanation", "fix"),
    [
        (0, 0, [], True, "agree within 0 s", ""),
        (3600, 0, [], False, "the host's clock is 1.0 h ahead of the database's", "set the wrong clock right"),
        (-86_400, 0, [], False, "the host's clock is 1.0 days behind the database's", "set the wrong clock right"),
        (0, 7200, [], True, "events were recorded up to 2.0 h ahead of the clock", ""),
        (0, 7200, [True, False], False, "2 parked keys wait", "payrelay upkeep"),
        (0, 0, [False], False, "0 of them can be applied", "upkeep retries"),
    ],
)
def test_doctor_explains_a_step_of_the_clock(
    apart: int, ahead: int, has_day: list[bool], ok: bool, explanation: str, fix: str
) -> None:
    waiting = [AheadKey(id="points:1", consumer="points", key=b"k", has_day=flag) for flag in has_day]
    finding = judge_clocks(apart=timedelta(seconds=apart), recorded_ahead=timedelta(seconds=ahead), waiting=waiting)
    assert (finding.ok, explanation in finding.found, fix in finding.fix) == (ok, True, True)
