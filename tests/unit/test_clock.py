"""The earliest clock decides what may go."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

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
