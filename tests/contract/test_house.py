"""The house: layers hold and break when violated, docs and commands are in step, nothing leaks in."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ops.cli.main import app
from ops.stack.tools import KAFKA, POSTGRES
from tests.tree import PACKAGES, ROOT

VIOLATIONS = {
    "an upper layer": ("outbox/clock.py", "import consumers.delivery.loop"),
    "a scene another": ("producers/bank/tables.py", "import producers.payments.tables"),
    "a processor another": ("consumers/funds/tables.py", "import consumers.points.tables"),
    "faust below consumers": ("outbox/inbox.py", "import faust"),
    "faust in a consumer": ("consumers/delivery/loop.py", "import faust"),
    "faust in ops": ("ops/pipeline/health.py", "from faust.types import TP"),
    "mode beside the runtime": ("consumers/processors.py", "from mode import Service"),
    "aiokafka in the notifier": ("consumers/notification/notifier/sender.py", "from aiokafka.errors import KafkaError"),
    "I/O in a pure module": ("consumers/accounting/entries.py", "import requests"),
    "I/O where a consumer states its effects": ("consumers/points/effects.py", "import sqlalchemy"),
    "effects in the proof": ("ops/demo/proof.py", "import consumers.points.effects"),
}


def lint_imports(folder: Path) -> int:
    lint = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([lint, "--no-cache"], cwd=folder, capture_output=True, check=False).returncode


def copied(to: Path) -> Path:
    for name in PACKAGES:
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_an_import_contract_breaks_when_one_imports(violation: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    file, line = VIOLATIONS[violation]
    (folder / file).write_text((folder / file).read_text() + f"\n{line}\n")
    assert lint_imports(folder) == 1


def test_every_command_has_help_and_is_in_the_reference() -> None:
    reference = (ROOT / "docs/reference/cli.md").read_text()
    runner = CliRunner()
    for command in commands():
        result = runner.invoke(app, [*command, "--help"])
        assert result.exit_code == 0
        assert f"payrelay {' '.join(command)}" in reference, f"{command}: run python -m ops.cli.reference"


def commands() -> list[list[str]]:
    return list(paths(typer.main.get_command(app), []))


def paths(command: Any, path: list[str]) -> Iterator[list[str]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path
    for name, child in (children or {}).items():
        yield from paths(child, [*path, name])


def test_make_help_lists_every_target() -> None:
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "check", "bench", "faults"):
        assert f"make {target}" in printed


def test_no_registry_host_and_no_path_of_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    hosts = re.compile(r"(repo1?\.maven|repo\.maven|pypi\.org|files\.pythonhosted|registry\.npmjs)")
    for name in tracked:
        if name == "tests/contract/test_house.py" or not (ROOT / name).is_file():
            continue
        content = (ROOT / name).read_text(errors="replace")
        assert not hosts.search(content), name
        assert str(ROOT) not in content, name


def test_the_packages_are_ours_alone() -> None:
    from importlib.metadata import packages_distributions

    for name in PACKAGES:
        assert Path(__import__(name).__file__ or "").is_relative_to(ROOT)
        assert set(packages_distributions().get(name, ["payrelay"])) == {"payrelay"}


def test_every_on_conflict_names_its_conflict() -> None:
    """Without a target it also passes over conflicts that nobody has thought of."""
    bare = re.compile(r"ON\s+CONFLICT\s+DO\b|on_conflict_do_(nothing|update)\(\s*\)", re.IGNORECASE)
    places = [
        f"{path.relative_to(ROOT)}:{content.count(chr(10), 0, match.start()) + 1}"
        for name in [*PACKAGES, "docs"]
        for path in (ROOT / name).rglob("*.py")
        if (content := path.read_text())
        for match in bare.finditer(content)
    ]
    assert not places


def test_pages_run_programs_of_others_in_the_servers_version() -> None:
    """By `payrelay tool`: an older pg_dump or pg_basebackup on the PATH refuses a newer server."""
    bare = re.compile(rf"(?<!payrelay tool )\b({'|'.join((*POSTGRES, *KAFKA))}) +-")
    bare_calls = {
        f"{page.relative_to(ROOT)}: {match[0]}"
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for match in bare.finditer(page.read_text())
    }
    assert bare_calls == set()


def test_generated_reference_pages_are_in_step() -> None:
    from ops.cli import metrics_reference, reference, settings_reference

    for page in (metrics_reference, reference, settings_reference):
        assert page.TARGET.read_text() == page.rendered(), f"run: python -m {page.__name__}"
