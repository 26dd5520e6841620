"""Waiting for parts of the local stack, which a supervisor starts and stops in its own time. No stack."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ops.stack import control
from ops.stack.state import PartState, StackFolder
from outbox.errors import NotReady


class Told(StackFolder):
    """A stack whose one part is in these states, one look after the other; the last one stays."""

    def __init__(self, states: Sequence[str]) -> None:
        super().__init__(name="told")
        self._left = list(states)

    def states(self) -> list[PartState]:
        now = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        return [PartState(name="worker:points", state=now)]


@pytest.mark.parametrize(
    ("states", "wanted"),
    [
        (("failed", "failed", "stopped"), "stopped"),
        (("failed", "starting", "running"), "running"),
        (("stopped", "starting", "restarting", "running"), "running"),
    ],
)
def test_a_part_that_had_failed_can_be_stopped_and_started(states: Sequence[str], wanted: str) -> None:
    control._wait_for(Told(states), ["worker:points"], wanted)


def test_a_part_that_fails_while_it_is_waited_for_is_not_waited_for_any_longer() -> None:
    with pytest.raises(NotReady, match="worker:points is failed, not running: payrelay status"):
        control._wait_for(Told(("starting", "failed")), ["worker:points"], "running")
