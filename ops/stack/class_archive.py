"""The class archives of the Java programs: classes that one run has loaded and verified, for the next run to begin with.

A part's first run writes its archive when it ends, into its stack's folder; `keep` moves it beside the programs, and every later
start reads it there. Without an archive a start only takes longer. How it works: "Class Data Sharing" in the manual of `java`.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from ops.stack.programs import LOCK, Programs, java

FOLDER = "classes"
"""In the stack's folder: archives that were written. Beside the programs: those that are read."""


def reading(programs: Programs, cwd: Path, part: str) -> list[str]:
    """Return the options with which a JVM reads a part's archive; none if there is no whole archive."""
    # A JVM refuses a foreign archive and a damaged head, but it crashes on one that was cut off.
    for archive in (programs.folder / FOLDER).glob(f"{_name(programs, part)}-*.jsa"):
        if archive.stem.endswith(f"-{archive.stat().st_size}"):
            return [f"-XX:SharedArchiveFile={os.path.relpath(archive, cwd)}"]
    return []


def reading_or_writing(programs: Programs, cwd: Path, part: str) -> list[str]:
    """Return the options with which a part's JVM reads its archive, or writes it when it ends if there is none yet.

    It writes into `FOLDER`, which must be there once it ends.
    """
    if options := reading(programs, cwd, part):
        return options
    if not _has_own_archive():
        return []
    written = cwd / FOLDER / f"{_name(programs, part)}.jsa"
    # It names each class that cannot be archived, which are hundreds.
    return [f"-XX:ArchiveClassesAtExit={os.path.relpath(written, cwd)}", "-Xlog:cds=error", "-Xlog:cds+dynamic=error"]


def keep(programs: Programs, stack: Path) -> None:
    """The whole archives that a stack's JVMs have written are beside the programs, instead of older ones.

    To be called once the JVMs have ended. May be repeated, and run beside itself. Where it is not possible to keep an archive,
    nothing is raised: the next start takes its usual time.
    """
    for written in (stack / FOLDER).glob("*.jsa"):
        with suppress(OSError):
            _keep(written, programs.folder / FOLDER)


def _keep(written: Path, folder: Path) -> None:
    with written.open("rb") as file:
        if not any(file.read(4)):
            return  # its head is written last: its JVM was killed meanwhile
        os.fsync(file)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{written.stem}-{written.stat().st_size}.jsa"
    written.replace(kept)
    part = written.stem.rpartition("-")[0]
    for other in folder.glob(f"{part}-*.jsa"):
        if other != kept:
            other.unlink(missing_ok=True)


def _name(programs: Programs, part: str) -> str:
    """Return the name of a part's archive: another Java, or other programs, have another one."""
    program = Path(java()).resolve()
    of = [program, *programs.jars()]
    times = [path.stat().st_mtime_ns for path in of if path.exists()]
    return f"{part}-{hashlib.sha256(f'{program} {times} {LOCK.read_text()}'.encode()).hexdigest()[:12]}"


@cache
def _has_own_archive() -> bool:
    """Return whether Java comes with an archive of its own classes, to which others can be added; the wheel's does not."""
    return (Path(java()).resolve().parent.parent / "lib" / "server" / "classes.jsa").exists()
