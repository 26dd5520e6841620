"""A Java program's class archive: written by one run, read by the next, and never in the way."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from ops.stack import class_archive
from ops.stack.programs import Programs, installed_programs, java
from ops.stack.state import StackFolder
from tests.providers import Stack

TOOL = ["kafka.tools.StorageTool", "random-uuid"]


@pytest.fixture
def programs(stack: Stack, tmp_path: Path) -> Programs:
    """The stack's own programs, with no archives beside them yet."""
    installed = installed_programs(stack.embedded.home)
    made = Programs(folder=tmp_path / "programs")
    made.folder.mkdir()
    made.repository.symlink_to(installed.repository)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = StackFolder(name="archived", home=tmp_path).path
    (made / class_archive.FOLDER).mkdir(parents=True)
    return made


def run(programs: Programs, folder: Path, options: Sequence[str]) -> str:
    """Return the log of the classes that the tool has loaded from archives of others."""
    command = [java(), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *options, "-Xlog:class+load"]
    done = subprocess.run(
        [*command, "-cp", programs.class_path(folder), *TOOL], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return "\n".join(line for line in done.stdout.splitlines() if "shared objects file (top)" in line)


def test_the_next_run_begins_with_the_classes_of_the_first(programs: Programs, folder: Path) -> None:
    if not class_archive.reading_or_writing(programs, folder, "kafka"):
        pytest.skip("this Java comes without an archive of its own classes")
    assert not run(programs, folder, class_archive.reading_or_writing(programs, folder, "kafka"))
    assert class_archive.reading(programs, folder, "kafka") == [], "not before the stack is down"
    older = programs.folder / class_archive.FOLDER / "kafka-0123456789ab.jsa"
    older.parent.mkdir()
    older.touch()
    class_archive.keep(programs, folder)
    class_archive.keep(programs, folder)
    [kept] = older.parent.iterdir()
    assert "org.apache.kafka.common.Uuid " in run(
        programs, folder, class_archive.reading_or_writing(programs, folder, "kafka")
    )
    kept.chmod(0o600)
    content = kept.read_bytes()
    kept.write_bytes(bytes(4) + content[4:])
    assert not run(programs, folder, class_archive.reading(programs, folder, "kafka")), "a damaged one is left alone"
    kept.write_bytes(content[: len(content) // 2])
    assert class_archive.reading(programs, folder, "kafka") == [], "a JVM would crash on one that was cut off"


def test_an_archive_that_cannot_be_kept_is_in_nobodys_way(programs: Programs, folder: Path) -> None:
    written = folder / class_archive.FOLDER / "kafka-0123456789ab.jsa"
    written.write_bytes(b"content")
    (programs.folder / class_archive.FOLDER).write_text("no folder")
    class_archive.keep(programs, folder)
    assert written.exists()


def test_what_was_cut_off_while_it_was_written_is_not_kept(programs: Programs, folder: Path) -> None:
    written = folder / class_archive.FOLDER / "kafka-0123456789ab.jsa"
    written.write_bytes(bytes(100))
    class_archive.keep(programs, folder)
    assert not (programs.folder / class_archive.FOLDER).exists()
