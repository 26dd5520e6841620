"""The tutorial's files and edits fit this tree and its rules; that they run is tested in tests/e2e/test_tutorial.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tree import ROOT
from tests.tutorial import PAGE, Copy, write_code

CHANGED_MAX = 6
"""Existing files that a new event type, topic, table, business function and consumer may change, with a second service beside them."""


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    copy = Copy.of_this_checkout(tmp_path_factory.mktemp("tutorial") / "payrelay")
    write_code(copy, PAGE.read_text())
    for package in ("consumers/tips", "consumers/statements"):
        (copy.root / package / "__init__.py").touch()
    run(copy, [sys.executable, "-m", "schemas.export"])
    if (
        known := ROOT / ".mypy_cache"
    ).is_dir():  # of `make check`: then mypy looks at what the tutorial changes, in seconds
        shutil.copytree(known, copy.root / known.name)
    return copy


def run(copy: Copy, command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=copy.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_changes_few_existing_files(followed: Copy) -> None:
    changed = followed.changed()
    assert 0 < len(changed) <= CHANGED_MAX, changed
    assert f"changes {WORDS[len(changed)]} existing files" in PAGE.read_text().replace("\n", " ")


WORDS = ("no", "one", "two", "three", "four", "five", "six")


@pytest.mark.parametrize("command", ["ruff format --check .", "ruff check .", "lint-imports --no-cache", "mypy"])
def test_its_code_keeps_the_rules(followed: Copy, command: str) -> None:
    program, *arguments = command.split()
    run(followed, [str(Path(sys.executable).with_name(program)), *arguments])


def test_the_tests_of_form_hold_with_it(followed: Copy) -> None:
    """Events, effects, processes and sizes as the rest of the suite checks them, over the tutorial's code too."""
    files = ["tests/contract/test_events.py", "tests/contract/test_effects.py", "tests/unit/test_processes.py"]
    files += ["tests/contract/test_sizes.py", "tests/contract/test_words.py", "tests/unit/test_doctests.py"]
    run(followed, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files])


def test_its_migrations_follow_the_last_one(followed: Copy) -> None:
    """Else two would claim the same place: give the tutorial's the next numbers."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(followed.root / "outbox/migrations"))
    assert len(ScriptDirectory.from_config(config).get_heads()) == 1
