"""The class archives of the Java programs: classes that one run has loaded and verified, for the next run to begin with.

A part's first run writes its archive when it ends, into its stack's folder; `keep` moves it beside the programs, and every later
start reads it there. A JVM that cannot use an archive starts without it. How it works: "Class Data Sharing" in the manual of `java`.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from ops.stack.programs import LOCK, Programs, java

FOLDER = "classes"
"""In the stack's folder: archives that were written. Beside the programs: those that are read."""


def reading(programs: Programs, cwd: Path, part: str) -> list[str]:
    """Return the options with which a JVM reads a part's archive; none if there is no archive yet."""
    archive = _kept(programs, part)
    return [f"-XX:SharedArchiveFile={os.path.relpath(archive, cwd)}"] if archive.exists() else []


def reading_or_writing(programs: Programs, cwd: Path, part: str) -> list[str]:
    """Return the options with which a part's JVM reads its archive, or writes it when it ends if there is none yet."""
    if options := reading(programs, cwd, part):
        return options
    if not _has_own_archive():
        return []
    written = cwd / FOLDER / _kept(programs, part).name
    written.parent.mkdir(parents=True, exist_ok=True)
    written.unlink(missing_ok=True)
    # It names each class that cannot be archived, which are hundreds.
    return [f"-XX:ArchiveClassesAtExit={os.path.relpath(written, cwd)}", "-Xlog:cds=error", "-Xlog:cds+dynamic=error"]


def keep(programs: Programs, stack: Path) -> None:
    """The whole archives that a stack's JVMs have written are beside the programs, instead of those of another Java.

    To be called once the JVMs have ended. May be repeated.
    """
    for written in (stack / FOLDER).glob("*.jsa"):
        part = written.name.rpartition("-")[0]
        if not _is_whole(written):
            continue
        kept = _kept(programs, part)
        kept.parent.mkdir(parents=True, exist_ok=True)
        for other in kept.parent.glob(f"{part}-*.jsa"):
            other.unlink(missing_ok=True)
        written.replace(kept.parent / written.name)


def _is_whole(archive: Path) -> bool:
    """Return whether an archive was written to its end: its head, which JVMs check, is written last."""
    with archive.open("rb") as file:
        return any(file.read(4))


def _kept(programs: Programs, part: str) -> Path:
    """Return where a part's archive is kept: another Java, or other programs, have another one."""
    program = Path(java()).resolve()
    of = f"{program} {program.stat().st_mtime_ns} {LOCK.read_text()}"
    return programs.folder / FOLDER / f"{part}-{hashlib.sha256(of.encode()).hexdigest()[:12]}.jsa"


@cache
def _has_own_archive() -> bool:
    """Return whether Java comes with an archive of its own classes, to which others can be added; the wheel's does not."""
    return (Path(java()).resolve().parents[1] / "lib" / "server" / "classes.jsa").exists()
