"""The brake: tells poison, which may be parked, from a broken handler, which must not park everything."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from consumers.delivery.messages import DecodedEvent, Place, Poison
from outbox.inbox import Log
from outbox.parking import Cause

PARKED_KEYS_MAX = 20
PARKED_WINDOW_S = 60.0
"""If more keys than this would be parked within this time, the handler is broken, not the events."""

PATIENCE = 6
"""After so many failures any event that passes counts as evidence, whatever its type; each delivery attempts twice."""

WAITING_MAX = 10_000
"""Failures remembered at most, by event: a broken handler fails on every event of a long log, and memory is bounded."""


class Braked(Exception):
    """The events wait where they are, and are not parked."""

    def __init__(self, message: str, logs: Collection[Log] = ()) -> None:
        super().__init__(message)
        self.logs = logs
        """Where they wait."""


class Brake:
    """Decides whether events that failed may be parked: only if others of their type have passed since, and they then failed again.

    - After six failures, some three seconds, an event of any type is evidence: a rare type may have no other for days. For a
      message that does not decode, any type is evidence at once. A pass counts even if its transaction was rolled back.
    - Until there is evidence the event waits, and its log with it. So a handler that is fixed half-way through a slice parks
      nothing.
    - If more than 20 keys would be parked within a minute, all of them wait.
    - A second event for a fact needs no evidence. An event that is ahead of the clocks needs none and is not counted: a clock was wrong.

    `holds=False`: parks at once whatever fails, for a shadow rebuild, where nothing is at stake.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, *, holds: bool = True) -> None:
        self.holds = holds
        self._now = now
        self._tick = 0
        """Orders passes and failures: counted up at each."""
        self._failures: dict[Place, tuple[int, int]] = {}
        """Of each event that waits: the tick of its first failure, and how often it has failed."""
        self._proven: set[Place] = set()
        """Events that failed again after others had passed."""
        self._last_pass: dict[str, int] = {}
        """Tick of the last pass, by event type."""
        self._parked: deque[tuple[float, object]] = deque()
        """When each key was parked, within the window."""

    def saw_pass(self, types: Collection[str]) -> None:
        """Events of these types went through the handler."""
        self._tick += 1
        self._last_pass.update(dict.fromkeys(types, self._tick))

    def saw_failure(self, poison: Poison) -> None:
        """The event failed, alone."""
        self._tick += 1
        first, times = self._failures.get(poison.place, (self._tick, 0))
        self._failures[poison.place] = (first, times + 1)
        if len(self._failures) > WAITING_MAX:  # the oldest starts again without a history
            self._failures.pop(next(iter(self._failures)))
        if poison.cause is Cause.REJECTED and poison.envelope is not None and times + 1 < PATIENCE:
            passes = [self._last_pass.get(poison.envelope.event.type, 0)]
        else:
            passes = list(self._last_pass.values())
        if any(passed > first for passed in passes):
            # Parking takes an event out, so most of these have passed since, after a fix: they are no loss.
            if len(self._proven) >= WAITING_MAX:
                self._proven.clear()
            self._proven.add(poison.place)

    def apart(self, events: Sequence[DecodedEvent]) -> list[list[DecodedEvent]]:
        """Return the events in order, in runs; an event that has failed before is a run of its own: no search is needed."""
        runs: list[list[DecodedEvent]] = [[]]
        for event in events:
            if event.place in self._failures:
                runs += [[event], []]
            else:
                runs[-1].append(event)
        return [run for run in runs if run]

    def unproven(self, poison: Sequence[Poison]) -> list[Poison]:
        """Return the poison for which there is no evidence yet: it is not known that others pass where it fails."""
        if not self.holds:
            return []
        doubtful = [failed for failed in poison if failed.cause is not Cause.DUPLICATE_FACT and not failed.is_ahead]
        return [failed for failed in doubtful if failed.place not in self._proven]

    def judge(self, poison: Sequence[Poison]) -> None:
        """The poison may be parked; raises Braked if it must wait."""
        if unproven := self.unproven(poison):
            first, logs = unproven[0], {failed.log for failed in unproven}
            raise Braked(
                f"no event has passed the handler since, so it is not known whether the event or the handler is at fault, and nothing is parked; the first failure is {first.cause} {first.error[:300]}",
                logs,
            )
        now = self._now()
        while self._parked and now - self._parked[0][0] > PARKED_WINDOW_S:
            self._parked.popleft()
        counted = [failed for failed in poison if not failed.is_ahead]
        keys = {key for _, key in self._parked} | {failed.parked_as for failed in counted}
        if counted and self.holds and len(keys) > PARKED_KEYS_MAX:
            logs = {failed.log for failed in counted}
            raise Braked(
                f"{len(keys)} keys would be parked within a minute, which points to a broken handler; the last failure is {counted[-1].error[:300]}",
                logs,
            )

    def saw_parked(self, poison: Sequence[Poison]) -> None:
        """The poison is parked, and counted."""
        now = self._now()
        for parked in poison:
            if not parked.is_ahead:
                self._parked.append((now, parked.parked_as))
            self._failures.pop(parked.place, None)
            self._proven.discard(parked.place)
