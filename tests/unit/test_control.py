"""Waiting for parts of the local stack, which a supervisor starts and stops in its own time. No stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ops.stack import control
from ops.stack.state import PartState, StackFolder
from outbox.errors import NotReady


class ScriptedStack(StackFolder):
    """A stack whose one part is in these states, one look after the other; the last one stays."""

    def __init__(self, states: Sequence[str]) -> None:
        super().__init__(name="scripted")
        self._left = list(states)

    def states(self) -> list[PartState]:
        now = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        return [PartState(name="worker:points", state=now)]


class Crashing(StackFolder):
    """A stack whose one part starts, works, ends and begins again."""

    def __init__(self) -> None:
        super().__init__(name="crashing")
        self._looks = 0

    def states(self) -> list[PartState]:
        self._looks += 1
        return [PartState(name="worker:points", state="starting", restarts=self._looks // 2)]

    def read(self, _: str) -> dict[str, Any]:
        return {"progress": {"worker:points": self._looks}}


def test_a_part_that_keeps_ending_is_not_waited_for_though_it_works_in_between() -> None:
    with pytest.raises(NotReady, match="worker:points is starting, not running"):
        control._wait_for(Crashing(), ["worker:points"], "running", limit_s=0.2)


@pytest.mark.parametrize(
    ("states", "wanted"),
    [
        (("failed", "failed", "stopped"), "stopped"),
        (("failed", "starting", "running"), "running"),
        (("stopped", "starting", "restarting", "running"), "running"),
    ],
)
def test_a_part_that_had_failed_can_be_stopped_and_started(states: Sequence[str], wanted: str) -> None:
    control._wait_for(ScriptedStack(states), ["worker:points"], wanted)


def test_a_part_that_fails_while_it_is_waited_for_is_not_waited_for_any_longer() -> None:
    with pytest.raises(NotReady, match="worker:points is failed, not running: payrelay status"):
        control._wait_for(ScriptedStack(("starting", "failed")), ["worker:points"], "running")
