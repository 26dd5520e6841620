"""Whose turn it is, under a clock that the test turns: what a receiver that hangs can hold, of places and of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from consumers.notification.notifier.lanes import (
    OTHERS_PER_SLOT,
    OTHERS_PER_TURN,
    PROMPT_WITHIN,
    Evidence,
    Lane,
    Pace,
    Queue,
    Result,
    after,
    bound,
    hanging,
    room_of,
    shares,
    slots,
)

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
TICK = timedelta(milliseconds=50)
TIME_OUT = timedelta(seconds=15)
"""Of an attempt: the sender's."""


@dataclass
class Attempt:
    receiver: str
    began_at: datetime
    has_slot: bool


@dataclass
class House:
    """A sender's decisions without database and network: receivers answer after the time they have, or not at all."""

    queue: Queue
    takes: Mapping[str, timedelta | None]
    now: datetime = BEGIN
    lanes: dict[str, Lane] = field(default_factory=dict)
    due: Counter[str] = field(default_factory=Counter)
    under_way: list[Attempt] = field(default_factory=list)
    began: dict[str, list[datetime]] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    """Receivers, the longest waiting first."""

    def make_due(self, receiver: str, count: int = 1) -> None:
        self.lanes.setdefault(receiver, Lane())
        self.due[receiver] += count
        if receiver not in self.waiting:
            self.waiting.append(receiver)

    def holds(self, receiver: str) -> int:
        return sum(attempt.receiver == receiver for attempt in self.under_way)

    def turn(self) -> None:
        """What has ended is counted, what takes long moves, and what is due begins where there is room."""
        self.now += TICK
        ended = [attempt for attempt in self.under_way if self._is_over(attempt)]
        self.under_way = [attempt for attempt in self.under_way if not self._is_over(attempt)]
        for attempt in ended:
            took = self.now - attempt.began_at
            answered = took < TIME_OUT
            evidence = Evidence(
                started_at=attempt.began_at, ended_at=self.now, answered=answered,
                result=Result.SUCCESS if answered else Result.HTTP_REQUEST_FAILED,
            )  # fmt: skip
            self.lanes[attempt.receiver] = after(self.lanes[attempt.receiver], [evidence], self.queue, now=self.now)
        for attempt in self.under_way:
            if self.now - attempt.began_at > PROMPT_WITHIN:
                attempt.has_slot = False
                self.lanes[attempt.receiver] = hanging(self.lanes[attempt.receiver])
        self._begin()
        self._check()

    def _is_over(self, attempt: Attempt) -> bool:
        takes = self.takes[attempt.receiver]
        return self.now - attempt.began_at >= (TIME_OUT if takes is None else takes)

    def _begin(self) -> None:
        in_slots = sum(attempt.has_slot for attempt in self.under_way)
        room = room_of(self.queue, prompt=in_slots, other=len(self.under_way) - in_slots)
        for kind, left, kept in ((True, room.prompt, room.prompt_kept), (False, room.other, room.other_kept)):
            mine = [name for name in self.waiting if (self.lanes[name].pace == Pace.PROMPT) is kind and self.due[name]]
            holds = [self.holds(name) for name in mine]
            free = [
                min(self.due[name], slots(self.lanes[name], held, self.queue, now=self.now))
                for name, held in zip(mine, holds, strict=True)
            ]
            for name, share in zip(mine, shares(free, left, holds=holds, kept=kept), strict=True):
                for _ in range(share):
                    self.due[name] -= 1
                    self.under_way.append(Attempt(name, self.now, kind))
                    self.began.setdefault(name, []).append(self.now)
                if share:
                    self.waiting.remove(name)
                    self.waiting.append(name)

    def _check(self) -> None:
        most = self.queue.in_flight_max
        in_slots = [attempt for attempt in self.under_way if attempt.has_slot]
        assert len(in_slots) <= most
        assert len(self.under_way) <= (1 + OTHERS_PER_SLOT) * most
        assert all(self.now - attempt.began_at <= PROMPT_WITHIN for attempt in in_slots), "nobody has a slot for longer"
        for name in self.lanes:
            assert self.holds(name) <= self.queue.receiver_in_flight_max


def test_a_receiver_that_never_answered_holds_one_place_until_its_time_is_out() -> None:
    house = House(Queue(queue="q"), {"silent": None})
    house.make_due("silent", 10)
    for _ in range(int(TIME_OUT / TICK) - 1):
        house.turn()
        assert house.holds("silent") == 1
        assert not any(attempt.has_slot for attempt in house.under_way)


def test_a_receiver_that_stops_answering_holds_ten_slots_for_a_second_and_then_begins_nothing() -> None:
    house = House(Queue(queue="q"), {"once": None})
    house.make_due("once", 30)
    house.lanes["once"] = Lane(pace=Pace.PROMPT)
    house.turn()
    assert sum(attempt.has_slot for attempt in house.under_way) == 10
    for _ in range(int(PROMPT_WITHIN / TICK) + 1):
        house.turn()
    assert not any(attempt.has_slot for attempt in house.under_way)
    assert house.holds("once") == len(house.began["once"]) == 10
    while house.under_way[0].began_at == BEGIN + TICK and house.now < BEGIN + timedelta(seconds=14):
        house.turn()
    assert len(house.began["once"]) == 10


@pytest.mark.parametrize("many", [1, 12, 100, 150])
@pytest.mark.parametrize("were_prompt", [False, True])
def test_the_others_begin_at_once_beside_receivers_that_hang(many: int, were_prompt: bool) -> None:
    """New ones too, that are as little known as those that hang; all that is due at once, ten of each."""
    silent = [f"silent{number}" for number in range(many)]
    good = [f"good{number}" for number in range(20)]
    house = House(Queue(queue="q"), dict.fromkeys(silent) | dict.fromkeys([*good, "new"], timedelta(milliseconds=20)))
    for name in silent:
        house.make_due(name, 10)
        house.lanes[name] = Lane(pace=Pace.PROMPT if were_prompt else None)
    for name in good:
        house.lanes[name] = Lane(pace=Pace.PROMPT)
    late: list[timedelta] = []
    for turn in range(400):
        name = [*good, "new"][turn % 21]
        house.make_due(name)
        asked_at = house.now
        house.turn()
        if house.due[name]:
            late.append(house.now - asked_at)
    if were_prompt and many >= 100:
        assert len(late) * TICK <= PROMPT_WITHIN + 2 * TICK, "only until they are known to hang"
    else:
        assert late == []


def test_half_of_the_other_places_are_for_receivers_that_hold_none() -> None:
    queue = Queue(queue="q")
    slow = [f"slow{number}" for number in range(60)]
    house = House(queue, dict.fromkeys(slow, timedelta(seconds=5)) | {"new": timedelta(milliseconds=20)})
    for name in slow:
        house.make_due(name, 100)
        house.lanes[name] = Lane(pace=Pace.SLOW)
    for began in range(1, 1 + queue.in_flight_max // OTHERS_PER_TURN):
        house.turn()
        assert len(house.under_way) == began * OTHERS_PER_TURN, "a turn begins no more of them"
    house.turn()
    assert len(house.under_way) == queue.in_flight_max
    assert max(Counter(attempt.receiver for attempt in house.under_way).values()) == 2
    house.make_due("new")
    house.turn()
    assert house.began["new"] == [house.now]


@examples(max_examples=60, deadline=None)
@given(
    in_flight_max=st.integers(1, 30), most=st.integers(1, 12),
    takes=st.lists(st.sampled_from([None, 0.01, 0.5, 0.99, 1.2, 4.0, 14.9]), min_size=1, max_size=40),
    demand=st.lists(st.tuples(st.integers(0, 39), st.integers(1, 12)), max_size=60), turns=st.integers(1, 80),
)  # fmt: skip
def test_whatever_receivers_do_slots_are_free_within_a_second_and_all_places_are_bounded(
    in_flight_max: int, most: int, takes: list[float | None], demand: list[tuple[int, int]], turns: int
) -> None:
    names = {
        f"r{number}": None if seconds is None else timedelta(seconds=seconds) for number, seconds in enumerate(takes)
    }
    house = House(Queue(queue="q", in_flight_max=in_flight_max, receiver_in_flight_max=most), names)
    for number, count in demand:
        house.make_due(f"r{number % len(takes)}", count)
        house.turn()
    for _ in range(turns):
        house.turn()


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40), st.integers(0, 120), st.integers(0, 60)
)
def test_the_last_places_go_to_those_that_hold_none(lanes: list[tuple[int, int]], limit: int, kept: int) -> None:
    free, holds = [free_places for free_places, _ in lanes], [other for _, other in lanes]
    given_ = shares(free, limit, holds=holds, kept=kept)
    assert sum(given_) <= limit
    assert all(0 <= more <= most for more, most in zip(given_, free, strict=True))
    extra = sum(more - (more > 0 and not held) for more, held in zip(given_, holds, strict=True))
    assert extra <= max(0, limit - kept)
    firsts = [lane for lane in range(len(lanes)) if free[lane] and not holds[lane]]
    assert sum(given_[lane] > 0 for lane in firsts) == min(len(firsts), limit)


def test_a_lane_has_what_its_pace_allows() -> None:
    queue = Queue(queue="q", receiver_in_flight_max=10)
    paces = {Pace.PROMPT: 10, Pace.SLOW: 5, None: 1}
    assert {pace: bound(Lane(pace=pace), queue) for pace in paces} == paces
    assert bound(Lane(pace=Pace.PROMPT, failures=5), queue) == 1
    assert bound(Lane(pace=Pace.PROMPT, paused_at=BEGIN), queue) == 0
