"""Cold start: the whole stack to its first heartbeat, a command to its last line, a worker to its first row.

Commands and the worker are also started from the code as it was at `BEFORE`, in turn with this version's, if that commit is there.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import create_engine, text

from benchmarks.delivery import filled
from benchmarks.machine import result, target
from ops.stack.control import down, up
from ops.stack.parts import tied
from ops.stack.state import StackFolder
from outbox.database import driver_url
from outbox.settings import Settings

RUNS = 3
COMMANDS = {"help": ("--help",), "status": ("status",)}
COMMAND_RUNS = 9
WORKER_RUNS = 7
BEFORE = "7cb0fb9"
"""The last version whose workers imported the operator's commands."""
ROOT = Path(__file__).parents[1]
ROW_S = 60.0
POLL_S = 0.005


def run() -> dict[str, Any]:
    """Start stacks, commands and workers several times; report the medians."""
    stacks = _stack_starts()
    with _checkouts() as checkouts:
        commands = {name: _command_cpu_s(arguments, checkouts) for name, arguments in COMMANDS.items()}
        rows = _first_rows(checkouts)
    medians = {name: median(values) for name, values in stacks.items()}
    figures = [
        target("infrastructure_s", medians["infrastructure_s"], at_most=15),
        target("whole_stack_s", medians["whole_stack_s"]),
        *(target(f"{name}_cpu_s", median(taken["now"]), at_most=0.25) for name, taken in commands.items()),
        target("worker_first_row_s", median(rows["now"])),
    ]
    if BEFORE in checkouts:
        figures += [
            *(target(f"{name}_cpu_s_at_{BEFORE}", median(taken[BEFORE])) for name, taken in commands.items()),
            target(f"worker_first_row_s_at_{BEFORE}", median(rows[BEFORE])),
            target(f"worker_first_row_ratio_to_{BEFORE}", median(rows["now"]) / median(rows[BEFORE]), at_most=0.6),
        ]
    measured = stacks | {f"{name}_cpu_s": taken["now"] for name, taken in commands.items()}
    measured |= {f"worker_first_row_s {version}": values for version, values in rows.items()}
    return result(
        "startup", figures, runs={name: [round(value, 2) for value in values] for name, values in measured.items()}
    )


def _stack_starts() -> dict[str, list[float]]:
    """Return how long new stacks took, infrastructure alone and whole."""
    figures: dict[str, list[float]] = {"infrastructure_s": [], "whole_stack_s": []}
    for number in range(RUNS):
        for name, infrastructure in (("infrastructure_s", True), ("whole_stack_s", False)):
            folder = StackFolder(name=f"bench-{os.getpid()}-{number}")
            begun = time.monotonic()
            try:
                up(folder, infrastructure=infrastructure, with_parent=True)
                figures[name].append(time.monotonic() - begun)
            finally:
                down(folder, wipe=True)
    return figures


@contextmanager
def _checkouts() -> Generator[dict[str, Path]]:
    """Give this version's code, and meanwhile that of `BEFORE` where git has it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / BEFORE
        made = subprocess.run(
            ["/usr/bin/env", "git", "worktree", "add", "--detach", str(folder), BEFORE],
            cwd=ROOT, capture_output=True, check=False,
        )  # fmt: skip
        try:
            yield {"now": ROOT} | ({BEFORE: folder} if made.returncode == 0 else {})
        finally:
            if made.returncode == 0:
                subprocess.run(
                    ["/usr/bin/env", "git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=False
                )


def _command_cpu_s(arguments: Sequence[str], checkouts: Mapping[str, Path]) -> dict[str, list[float]]:
    """Return the CPU seconds of a command on a stack that is down, of each version in turn; the first round warms the caches."""
    taken: dict[str, list[float]] = {version: [] for version in checkouts}
    for _ in range(COMMAND_RUNS + 1):
        for version, folder in checkouts.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, "-m", "ops.cli.main", *arguments], cwd=folder, check=False,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, "PAYRELAY_STACK": f"bench-{os.getpid()}-none"},
            )  # fmt: skip
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken[version].append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return {version: values[1:] for version, values in taken.items()}


def _first_rows(checkouts: Mapping[str, Path]) -> dict[str, list[float]]:
    """Return the seconds from the start of an accounting worker to its first voucher, of each version in turn."""
    folder = StackFolder(name=f"bench-{os.getpid()}-row")
    taken: dict[str, list[float]] = {version: [] for version in checkouts}
    try:
        up(folder, infrastructure=True, with_parent=True)
        for _ in range(WORKER_RUNS + 1):
            for version, code in checkouts.items():
                taken[version].append(_first_row_s(folder.settings(), code))
    finally:
        down(folder, wipe=True)
    return {version: values[1:] for version, values in taken.items()}


def _first_row_s(settings: Settings, code: Path) -> float:
    prefix = filled(settings, 1)
    own = {"KAFKA_BOOTSTRAP": settings.kafka_bootstrap, "TOPIC_PREFIX": prefix, "GROUP_PREFIX": prefix}
    own["DSN__ACCOUNTING"] = settings.dsn_of("accounting")
    engine = create_engine(driver_url(settings.dsn_of("ops")), isolation_level="AUTOCOMMIT")
    posted = text("SELECT 1 FROM accounting.voucher WHERE business_no LIKE :like")
    with engine.connect() as connection:
        begun = time.monotonic()
        worker = subprocess.Popen(
            tied([sys.executable, "-m", "ops.cli.main", "worker", "accounting"]), cwd=code,
            env={**os.environ, **{f"PAYRELAY_{name}": value for name, value in own.items()}},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while connection.execute(posted, {"like": f"{prefix}%"}).first() is None:
                if time.monotonic() - begun > ROW_S or worker.poll() is not None:
                    raise RuntimeError(f"no row from the worker of {code}")
                time.sleep(POLL_S)
            return time.monotonic() - begun
        finally:
            worker.kill()
            worker.wait()
            engine.dispose()


if __name__ == "__main__":
    with _checkouts() as both:
        print({name: _command_cpu_s(arguments, both) for name, arguments in COMMANDS.items()}, flush=True)
        print(_first_rows(both))
