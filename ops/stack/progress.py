"""Whether a part that is not ready yet makes progress, and for how long it may make none.

A recovery has no bound that is known in advance: PostgreSQL replays its WAL, a broker checks its logs. So a part is judged by the work
of its processes, and by what it says of its recovery itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

CPU_SHARE = 0.05
"""Of one core, and more than a Java process uses that has nothing to do."""
IO_PER_S = 10_000
"""Bytes a second; heartbeats and polls stay below."""
TAIL_BYTES = 16_384
LOOK_S_MAX = 5.0
"""A longer gap between two looks is not held against the part: the machine or this process stood still."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a part's processes have done since they were started."""

    cpu_s: float = 0.0
    io_bytes: int = 0
    said: str = ""
    """The last thing that the part said of its own progress."""


def work_of(pid: int, log: Path, *, begins_at: int, progress: re.Pattern[str] | None) -> Work:
    """Return the work of a process and those below it; `progress` finds in its log, from that byte on, what it says of its progress."""
    cpu_s, io_bytes = 0.0, 0
    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
    except psutil.Error:
        tree = []
    for member in tree:
        try:
            times = member.cpu_times()
            cpu_s += times.user + times.system
            counted = member.io_counters()
            io_bytes += counted.read_chars + counted.write_chars
        except (psutil.Error, AttributeError):  # it has ended, is not ours to look at, or the system does not count
            continue
    return Work(cpu_s=cpu_s, io_bytes=io_bytes, said=_last_said(log, begins_at, progress) if progress else "")


def _last_said(log: Path, begins_at: int, progress: re.Pattern[str]) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(begins_at, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((match[1] for line in reversed(lines) if (match := progress.search(line))), "")


class Patience:
    """How long a part has made no progress. Pure but for what it remembers.

    >>> patience = Patience(10.0, Work(), now=0.0)
    >>> [patience.look(Work(cpu_s=cpu_s), now=now) for now, cpu_s in ((1.0, 0.1), (2.0, 0.6), (3.0, 0.6))]
    [1.0, 0.0, 1.0]
    """

    def __init__(self, limit_s: float, work: Work, *, now: float) -> None:
        self._limit_s = limit_s
        self._mark = work
        self._looked_at = now
        self.idle_s = 0.0
        self.marks = 0
        """How often its time has begun again."""

    def look(self, work: Work, *, now: float) -> float:
        """Return for how many seconds the part has made no progress, by what its processes have done until now."""
        self.idle_s += min(now - self._looked_at, LOOK_S_MAX)
        self._looked_at = now
        if moves(self._mark, work, self._limit_s):
            self._mark, self.idle_s, self.marks = work, 0.0, self.marks + 1
        elif work.cpu_s < self._mark.cpu_s or work.io_bytes < self._mark.io_bytes:  # one of the processes has ended
            self._mark = work
        return self.idle_s

    @property
    def is_over(self) -> bool:
        return self.idle_s > self._limit_s


def moves(before: Work, after: Work, limit_s: float) -> bool:
    """Return whether the work between the two is progress for a part that may make none for so long.

    >>> moves(Work(), Work(cpu_s=0.9), 90.0), moves(Work(), Work(cpu_s=4.5), 90.0), moves(Work(), Work(said="redo in progress"), 90.0)
    (False, True, True)
    """
    return (
        after.cpu_s - before.cpu_s >= CPU_SHARE * limit_s
        or after.io_bytes - before.io_bytes >= IO_PER_S * limit_s
        or (after.said != before.said and after.said != "")
    )


def describe(age_s: float, work: Work, idle_s: float, limit_s: float) -> str:
    """Return how a part that is starting gets on.

    >>> describe(214.3, Work(cpu_s=180.0, said="redo in progress, elapsed time: 210.00 s"), 3.0, 90.0)
    '214 s, redo in progress, elapsed time: 210.00 s'
    >>> describe(30.0, Work(cpu_s=1.0), 28.0, 90.0)
    '30 s, 1 s of CPU; no progress for 28 s, ended at 90 s'
    """
    said = f"{age_s:.0f} s, {work.said or f'{work.cpu_s:.0f} s of CPU'}"
    return said if idle_s < limit_s / 5 else f"{said}; no progress for {idle_s:.0f} s, ended at {limit_s:.0f} s"
