"""The supervisor in want: a full disk, parts that take their time, parts that never come up. Small parts, real processes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from ops.pipeline.upkeep_report import REPORT
from ops.stack import control
from ops.stack.control import start, stop, up
from ops.stack.state import ROOT, PartState, StackFolder
from outbox.errors import NotReady
from tests.waiting import eventually

AT_ONCE = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
NEVER = "import time; time.sleep(600)"
BUSY = """
import pathlib, sys, time
until = time.monotonic() + 4
while time.monotonic() < until: pass
pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"""
READING = BUSY.replace("pass", "pathlib.Path('/dev/zero').open('rb').read(200_000); time.sleep(0.1)")

Run = Callable[..., "SmallStack"]


class SmallStack:
    """A supervisor of small parts, in a process of its own."""

    def __init__(self, folder: StackFolder, ready_s: float, parts: dict[str, str]) -> None:
        folder.make()
        self.folder = folder
        command = [sys.executable, "-m", "tests.faults.small_stack", folder.name, str(ready_s)]
        command += [f"{name}={program}" for name, program in parts.items()]
        self.log = folder.logs / "supervisor.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        eventually(lambda: folder.states(), within_s=30, what="the supervisor supervises")

    def part(self, name: str) -> PartState:
        return next(state for state in self.folder.states() if state.name == name)

    def running(self, name: str) -> PartState | None:
        state = self.part(name)
        return state if state.state == "running" else None

    def fill_disk(self, full: bool) -> None:
        """No file of the supervisor's may grow any more, as on a full disk; or they may again."""
        limits = (0 if full else resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, limits)

    def children(self) -> set[int]:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return {int(child) for task in tasks for child in task.read_text().split()}

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def run(spare_stack: StackFolder) -> Generator[Run]:
    running: list[SmallStack] = []

    def begin(*, ready_s: float, **parts: str) -> SmallStack:
        running.append(SmallStack(spare_stack, ready_s, parts))
        return running[-1]

    yield begin
    for stack in running:
        stack.end()


def test_a_full_disk_ends_no_task_of_the_supervisor_and_nothing_dead_is_shown_as_running(run: Run) -> None:
    stack = run(ready_s=60, first=AT_ONCE)
    pid = eventually(lambda: stack.running("first")).pid
    assert pid is not None
    reported = eventually(lambda: stack.folder.read(REPORT).get("at"), what="upkeep has reported")
    stack.fill_disk(True)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), what="the part is dead, and reaped")
    dead = stack.part("first")
    assert (dead.state, dead.pid) != ("running", pid), "status shows a dead process as running"
    eventually(lambda: stack.children() - {pid}, within_s=10, what="the part was started again on the full disk")
    stack.fill_disk(False)
    again = eventually(lambda: stack.running("first"), within_s=20, what="the state file is written again")
    assert again.pid in stack.children()
    eventually(lambda: stack.folder.read(REPORT)["at"] > reported, within_s=20, what="upkeep goes on and reports")


@pytest.mark.parametrize("program", [BUSY, READING], ids=["by its CPU time", "by what it reads"])
def test_a_part_that_makes_progress_is_waited_for_however_long_it_takes(
    program: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("UP_S", "PART_S"):
        monkeypatch.setattr(control, limit, 2.5, raising=False)
    monkeypatch.setattr(control, "_heart_beats", lambda *_: True)  # there is no connector
    stack = run(ready_s=1.5, slow=program, first=AT_ONCE)
    shown: list[str] = []
    up(stack.folder, watch=lambda states: shown.extend(state.condition for state in states))
    slow = stack.part("slow")
    assert (slow.state, slow.restarts) == ("running", 0)
    assert any("s of CPU" in condition for condition in shown), "status shows how it gets on"
    stop(stack.folder, ["slow"])
    (stack.folder.path / "slow.ready").unlink()
    start(stack.folder, ["slow"])
    assert stack.part("slow").restarts == 0


def test_a_part_that_makes_no_progress_is_started_again_and_not_waited_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "UP_S", 3.0)
    stack = run(ready_s=1, stuck=NEVER)
    with pytest.raises(NotReady, match=r"stuck: .*no progress for 1 s"):
        up(stack.folder)
    assert stack.part("stuck").restarts >= 1


def test_a_supervisor_that_dies_while_up_waits_is_reported_with_the_reason(spare_stack: StackFolder) -> None:
    def kill(_: list[PartState]) -> None:
        pid = spare_stack.read("state.json").get("supervisor")
        if isinstance(pid, int):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(NotReady) as raised:
        up(spare_stack, infrastructure=True, with_parent=True, watch=kill)
    assert "SIGKILL" in str(raised.value)
