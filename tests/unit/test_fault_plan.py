"""A fault run is reproducible from its seed, and its verdict finds each thing that can go wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.applied import Verdict, judge
from tests.faults.plan import OPEN_KEYS, TO_A_WORKER, VERSIONS, Kind, plan_of, records_of
from tests.faults.test_random_faults import SHORT


@pytest.mark.parametrize("seed", range(1, 11))
def test_a_seed_tells_a_run_and_a_short_run_is_the_beginning_of_the_long_one(seed: int) -> None:
    long, short = plan_of(seed, duration_s=120), plan_of(seed, duration_s=30)
    assert short
    assert long == plan_of(seed, duration_s=120)
    assert short == long[: len(short)]
    assert long != plan_of(seed + 1, duration_s=120)
    assert set(Counter(act.kind for act in long)) == set(Kind), "each kind has its turn within two minutes"


def test_the_short_run_of_the_suite_has_acts_of_every_kind() -> None:
    assert {act.kind for act in plan_of(SHORT, duration_s=30)} == set(Kind)


@pytest.mark.parametrize("seed", range(1, 11))
def test_nothing_is_done_to_a_worker_that_is_away_nor_to_a_part_while_another_is(seed: int) -> None:
    away_until: dict[int | None, float] = {}
    for act in plan_of(seed, duration_s=600):
        if act.kind is Kind.JOIN:
            continue
        assert (act.kind in TO_A_WORKER) == (act.worker is not None)
        assert act.at_s >= away_until.get(act.worker, 0.0), act
        away_until[act.worker] = act.at_s + act.lasts_s


def test_records_are_told_by_the_seed_with_repeats_and_each_key_in_order() -> None:
    records = list(records_of(5, events=5_000))
    assert records == list(records_of(5, events=5_000))
    assert len(set(records)) == 5_000
    assert 5_100 < len(records) < 5_400
    first_times = list(dict.fromkeys(records))
    for key in range(5_000 // VERSIONS):
        assert [version for owner, version in first_times if owner == key] == list(range(1, VERSIONS + 1))
    between = [first_times.index((key, 2)) - first_times.index((key, 1)) for key in range(OPEN_KEYS)]
    assert max(between) > OPEN_KEYS, "keys come in turns"


GOOD = [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        (GOOD, Verdict(lost=0, doubled=0, unknown=0, order_breaks=0)),
        (GOOD[1:], Verdict(lost=1, doubled=0, unknown=0, order_breaks=0)),
        (GOOD[:2], Verdict(lost=2, doubled=0, unknown=0, order_breaks=0)),
        ([*GOOD, ("b", 2)], Verdict(lost=0, doubled=1, unknown=0, order_breaks=0)),
        ([*GOOD, ("c", 1)], Verdict(lost=0, doubled=0, unknown=1, order_breaks=0)),
        ([GOOD[2], GOOD[0], *GOOD[1:2], GOOD[3]], Verdict(lost=0, doubled=0, unknown=0, order_breaks=1)),
    ],
    ids=["good", "one lost", "two lost", "doubled", "unknown", "order broken"],
)
def test_the_verdict_names_what_is_wrong(rows: list[tuple[str, int]], verdict: Verdict) -> None:
    assert judge({"a": 2, "b": 2}, rows) == verdict
    assert verdict.holds == (rows == GOOD)
