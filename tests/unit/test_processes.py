"""The table of processes: nothing of this version is missing from it."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from consumers.notification.queues import QUEUES
from consumers.processors import PROCESSORS
from ops.cli.main import app
from ops.stack import together
from ops.stack.processes import PROCESSES
from ops.stack.processes import PROCESSORS as LISTED


def test_each_processor_and_each_queue_has_a_process_of_its_own() -> None:
    assert tuple(PROCESSORS) == LISTED
    workers = {process.name.partition(":")[2] for process in PROCESSES if process.arguments[0] == "worker"}
    assert workers == {*PROCESSORS, *(f"notifier:{queue}" for queue in QUEUES)}
    assert not any("-" in process.name for process in PROCESSES), "files are named after parts, ':' as '-'"


def test_a_worker_without_names_runs_every_processor_and_every_notifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which processes it starts, and on which ports they serve metrics; starting them is tested on the real stack."""
    ran: list[Any] = []
    monkeypatch.setattr(together, "run_together", lambda *given: ran.append(given) or 0)
    monkeypatch.setenv("PAYRELAY_KAFKA_BOOTSTRAP", "127.0.0.1:9")
    monkeypatch.setenv("PAYRELAY_METRICS_PORT", "9700")
    assert CliRunner().invoke(app, ["worker"]).exit_code == 0
    commands, environments = ran[0]
    assert {name for command in commands for name in command[1:]} == {
        *PROCESSORS,
        *(f"notifier:{queue}" for queue in QUEUES),
    }
    assert [given["PAYRELAY_METRICS_PORT"] for given in environments] == ["9700", "9701", "9702"]


def test_processors_and_notifiers_named_together_are_refused() -> None:
    result = CliRunner().invoke(app, ["worker", "funds", "notifier:bank"])
    assert result.exit_code == 2
    assert "processes of their own" in result.output


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    for command in (["worker", "nonsense"], ["serve", "nonsense"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert "there are:" in result.output
