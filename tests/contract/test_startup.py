"""A process imports only what it needs; and the table that stands for modules which are not imported agrees with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ops.cli.app import Payrelay
from ops.cli.commands import COMMANDS
from ops.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$")
EDGE = {"ops", "ops.cli", "ops.cli.main"}
SERVERS = {
    "sqlalchemy",
    "psycopg",
    "confluent_kafka",
    "aiokafka",
    "faust",
    "requests",
    "aiohttp",
    "uvicorn",
    "starlette",
}
WAITS = "about=kafka does not answer"


def imports(arguments: list[str], tmp_path: Path, *, until: str = "") -> set[str]:
    """Return the modules that a command has imported by its end, or by a line of its standard error."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PAYRELAY_")}
    own = {"PAYRELAY_HOME": str(tmp_path), "PAYRELAY_DSN__ACCOUNTING": "postgresql://a:b@127.0.0.1:1/c"}
    if until:
        own["PAYRELAY_KAFKA_BOOTSTRAP"] = "127.0.0.1:1"
    command = [sys.executable, "-X", "importtime", "-m", "ops.cli.main", *arguments]
    names = {"ops.cli.main"}  # run as __main__
    with subprocess.Popen(
        command, cwd=ROOT, env=kept | own, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if (match := IMPORTED.match(line)) is not None:
                names.add(match[1])
            if until and until in line:
                process.kill()
                return names
    assert not until, f"{arguments} ended without: {until}"
    return names


def ours(names: Collection[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def packages(names: Collection[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_help_imports_no_command(tmp_path: Path) -> None:
    names = imports(["--help"], tmp_path)
    assert ours(names, "ops") == EDGE | {
        "ops.cli.app",
        "ops.cli.commands",
        "ops.cli.failures",
        "ops.cli.output",
        "ops.cli.table",
    }
    assert (
        packages(names) & {"consumers", "producers", "connect", "benchmarks", "pydantic", "markdown_it", *SERVERS}
        == set()
    )


def test_status_imports_what_reads_files(tmp_path: Path) -> None:
    names = imports(["status"], tmp_path)
    state = {"ops.stack", "ops.stack.state", "ops.stack.processes"}
    cli = {"failures", "output", "table", "status", "context", "options"}
    assert ours(names, "ops") == EDGE | state | {f"ops.cli.{name}" for name in cli}
    assert packages(names) & {"producers", "connect", "benchmarks", "pydantic", "rich", *SERVERS} == set()


def test_a_worker_imports_no_operators_code(tmp_path: Path) -> None:
    names = imports(["worker", "accounting"], tmp_path, until=WAITS)
    assert "faust" in names
    state = {"ops.stack", "ops.stack.state", "ops.stack.processes"}
    assert ours(names, "ops") == EDGE | state | {
        f"ops.cli.{name}" for name in ("failures", "output", "table", "worker", "context")
    }
    unused = {
        "producers",
        "connect",
        "benchmarks",
        "typer",
        "rich",
        "alembic",
        "requests",
        "uvicorn",
        "starlette",
        "fastapi",
    }
    assert packages(names) & unused == set()
    others = ("funds", "points", "settlement", "notification.agent", "notification.notifier")
    assert [name for other in others for name in ours(names, f"consumers.{other}")] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_of_a_command_what_the_command_says(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert " ".join((command.help or "").split("\n\n")[0].split()) == COMMANDS[name].summary


@pytest.mark.parametrize("width", ["80", "200"])
def test_help_is_the_same_as_with_every_command_imported(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    by_table = CliRunner().invoke(app, ["--help"]).stdout
    monkeypatch.setattr(Payrelay, "get_command", lambda self, _, name: self.commands.get(name))
    assert CliRunner().invoke(app, ["--help"]).stdout == by_table
    assert all(f" {name} " in by_table for name in COMMANDS)
