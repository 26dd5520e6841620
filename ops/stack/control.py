"""Start, watch and stop a stack from outside; the supervisor does the work."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ops.stack.parts import PostgresPlace, tied
from ops.stack.state import PartState, StackFolder
from outbox.errors import NotReady

UP_S = 120.0
DOWN_S = 60.0
POLL_S = 0.05

_started: dict[Path, subprocess.Popen[bytes]] = {}
"""Supervisors that this process has started, to be waited for when they end."""


def up(
    folder: StackFolder,
    *,
    infrastructure: bool = False,
    with_parent: bool = False,
    watch: Callable[[list[PartState]], None] = lambda _: None,
) -> bool:
    """Every part of the stack runs and the connector has passed its first heartbeat; returns whether it was down before.

    May be repeated: parts that failed are tried again, running ones left alone. With `with_parent` the stack ends when the
    calling thread does. Raises NotReady with the parts that do not come up; they are left for `status` and `logs`.
    """
    folder.make()
    started = not folder.is_up()
    if started:
        _start_supervisor(folder, infrastructure=infrastructure, with_parent=with_parent)
    else:
        _signal_supervisor(folder, signal.SIGHUP)
    deadline = time.monotonic() + UP_S
    while time.monotonic() < deadline:
        content = folder.read("state.json")
        if "error" in content or not folder.is_up():
            break
        states = folder.states()
        watch(states)
        if states and all(state.state == "running" for state in states) and _heart_beats(folder, content["started_at"]):
            return started
        if any(state.state == "failed" for state in states):
            break
        time.sleep(POLL_S)
    raise NotReady(_why(folder))


def down(folder: StackFolder, *, wipe: bool = False) -> bool:
    """Nothing of the stack runs; returns whether it did. Data stays unless wiped. May be repeated."""
    was_up = folder.is_up()
    if was_up:
        _signal_supervisor(folder, signal.SIGTERM)
        deadline = time.monotonic() + DOWN_S
        while folder.is_up():
            if time.monotonic() > deadline:
                _signal_supervisor(folder, signal.SIGKILL)  # the parts die with it
                deadline = time.monotonic() + DOWN_S
            time.sleep(POLL_S)
    if (supervisor := _started.pop(folder.path, None)) is not None:
        supervisor.wait()
    if wipe:
        place = PostgresPlace.of(folder)
        shutil.rmtree(place.data.parent if place.mode == "nobody" else place.data, ignore_errors=True)
        shutil.rmtree(folder.path, ignore_errors=True)
    return was_up


def supervisor_pid(folder: StackFolder) -> int | None:
    """Return the process number of the running supervisor."""
    pid = folder.read("state.json").get("supervisor")
    return pid if folder.is_up() and isinstance(pid, int) else None


def log_path(folder: StackFolder, part: str) -> Path:
    """Return a part's log file."""
    return folder.logs / f"{part.replace(':', '-')}.log"


def _start_supervisor(folder: StackFolder, *, infrastructure: bool, with_parent: bool) -> None:
    if (earlier := _started.pop(folder.path, None)) is not None:
        earlier.wait()
    (folder.path / "state.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "ops.stack.supervisor", folder.name]
    if infrastructure:
        command.append("--infrastructure")
    if with_parent:
        command = tied(command, death_signal=signal.SIGTERM)
    with log_path(folder, "supervisor").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PAYRELAY_HOME": str(folder.home)},
            start_new_session=True,
        )
    _started[folder.path] = process
    deadline = time.monotonic() + UP_S
    while not folder.read("state.json"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotReady(f"the supervisor did not start: {_tail(log_path(folder, 'supervisor'))}")
        time.sleep(POLL_S)


def _signal_supervisor(folder: StackFolder, signum: int) -> None:
    pid = supervisor_pid(folder)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def _heart_beats(folder: StackFolder, since: float) -> bool:
    """Return whether the connector has written a heartbeat since then."""
    from ops.health import last_heartbeat  # SQLAlchemy, only once all parts run

    beat_at = last_heartbeat(folder.settings())
    return beat_at is not None and beat_at.timestamp() > since


def _why(folder: StackFolder) -> str:
    content = folder.read("state.json")
    if "error" in content or not folder.is_up():
        return f"the supervisor ended: {content.get('error') or _tail(log_path(folder, 'supervisor'))}"
    lines = [
        f"  {state.name}: {state.state} {state.last_exit}".rstrip() + f"\n{_tail(log_path(folder, state.name))}"
        for state in folder.states()
        if state.state != "running"
    ]
    return "not everything is up; payrelay status and payrelay logs PART tell more:\n" + (
        "\n".join(lines) or "  the connector has written no heartbeat: payrelay doctor"
    )


def _tail(path: Path, lines: int = 5) -> str:
    try:
        return "\n".join(f"    {line[:300]}" for line in path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
