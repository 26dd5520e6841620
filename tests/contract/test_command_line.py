"""The command line as a whole: version, completion, what is found as an entry point, errors of usage."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ops.cli.commands import COMMANDS
from ops.cli.main import app

ROOT = Path(__file__).resolve().parents[2]


def completed(words: str) -> list[str]:
    """Return what bash would be offered for the last word."""
    return subprocess.run(
        [sys.executable, "-m", "ops.cli.main"], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "_PAYRELAY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)},
    ).stdout.split()  # fmt: skip


def test_the_version_is_the_packages() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"payrelay {version('payrelay')}\n"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("payrelay to", ["tool", "topics"]), ("payrelay topics a", ["apply"]), ("payrelay topics apply --e", ["--execute"]),
    ],
)  # fmt: skip
def test_a_shell_completes_commands_and_options(words: str, offered: list[str]) -> None:
    assert sorted(completed(words)) == offered


def test_a_command_of_the_layer_above_is_an_entry_point() -> None:
    assert COMMANDS["bench"].module == "", "nothing here names where it is"
    assert CliRunner().invoke(app, ["bench", "nothing"]).exit_code == 2


@pytest.mark.parametrize(
    "arguments", [["topics", "aply"], ["topics", "apply", "--now"], ["stop"], ["status", "-o", "yaml"]]
)
def test_an_error_of_usage_is_one_line(arguments: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ops.cli.main", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
    assert ended.stderr.startswith("payrelay: ")
