"""Several payrelay commands as one: all of them run, or all of them end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ops.stack.parts import tied

KILL_AFTER_S = 20.0
"""As long as the local stack gives a process to finish what it has in hand."""


def run_together(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> int:
    """Run each payrelay command as a process of its own until SIGTERM or Ctrl-C, or until one of them ends: then all have ended.

    Returns 0 if they were asked to end and did so in order; else the exit code of the first that ended or failed, at least 1.
    """
    processes: list[subprocess.Popen[bytes]] = []
    signals: list[int] = []

    def end(signum: int, _frame: Any) -> None:
        signals.append(signum)
        _terminate(processes)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end)
    for command, environment in zip(commands, environments, strict=True):
        processes.append(
            subprocess.Popen(
                tied([sys.executable, "-m", "ops.cli.main", *command], death_signal=signal.SIGTERM),
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C reaches them once, by this process
            )
        )
    if signals:  # before the last of them was there
        _terminate(processes)
    pid, status = os.wait()
    first = next(process for process in processes if process.pid == pid)
    first.returncode = os.waitstatus_to_exitcode(status)
    unasked = not signals
    if unasked:
        name = " ".join(commands[processes.index(first)])
        print(f"payrelay {name} ended with {first.returncode}: the others are stopped", file=sys.stderr, flush=True)
    _terminate(processes)
    codes = [first.returncode, *(_wait(process) for process in processes if process is not first)]
    if unasked:
        return max(1, first.returncode)
    failed = [
        code for code in codes if code not in (0, -signal.SIGTERM)
    ]  # the signal ends a process that has not begun yet
    return max(1, failed[0]) if failed else 0


def _terminate(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
