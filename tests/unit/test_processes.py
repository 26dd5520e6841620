"""The table of processes: nothing of this version is missing from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from typer.testing import CliRunner

from consumers.notification.queues import QUEUES
from consumers.processors import _CONSUMERS, PROCESSORS
from ops.cli.main import app
from ops.stack import together
from ops.stack.parts import parts_of
from ops.stack.processes import HTTP_SERVICES, INFRASTRUCTURE, processes
from ops.stack.programs import installed_programs
from ops.stack.state import ROOT, StackFolder
from outbox.errors import NotReady
from outbox.settings import Settings


def test_each_processor_and_each_queue_has_a_process_of_its_own() -> None:
    assert tuple(PROCESSORS) == tuple(processor.name for processor in PROCESSORS.values())
    workers = {process.name.partition(":")[2] for process in processes() if process.arguments[0] == "worker"}
    assert workers == {*PROCESSORS, *(f"notifier:{queue}" for queue in QUEUES)}
    assert not any("-" in process.name for process in processes()), "files are named after parts, ':' as '-'"


HEAVY = (
    "faust",
    "aiokafka",
    "sqlalchemy",
    "psycopg",
    "confluent_kafka",
    "starlette",
    "consumers.delivery",
    "consumers.funds",
)


def test_the_table_is_read_without_importing_what_the_processes_run() -> None:
    program = f"""
import sys
from ops.stack.processes import port_names, processes
assert processes() and port_names()
print([name for name in {HEAVY!r} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_worker_imports_its_own_consumers_only() -> None:
    program = "import sys; from consumers.processors import PROCESSORS; PROCESSORS['points']; print('consumers.funds' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_http_service_has_its_settings_and_its_application() -> None:
    for name, service in HTTP_SERVICES.items():
        assert f"{name}_port" in Settings.model_fields
        assert (f"{name}_url" in Settings.model_fields) == service.has_url
        assert callable(resolve_name(service.app))


def test_a_new_consumer_has_a_process_and_ports_by_its_line_in_the_table_of_consumers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_CONSUMERS, "loyalty", _CONSUMERS["points"])
    assert "worker:loyalty" in [process.name for process in processes()]
    folder = StackFolder(name="new", home=tmp_path)
    folder.make()
    parts = {
        part.name: part for part in parts_of(folder, installed_programs(tmp_path), folder.ports(), infrastructure=False)
    }
    assert parts["worker:loyalty"].command[-2:] == ["worker", "loyalty"]
    assert parts["worker:loyalty"].metrics_port
    assert list(parts) == [*INFRASTRUCTURE, *(process.name for process in processes())]


def test_a_process_without_a_port_is_named(tmp_path: Path) -> None:
    folder = StackFolder(name="old", home=tmp_path)
    folder.make()
    for missing in ("metrics:worker:points", "service:bank"):
        ports = {name: port for name, port in folder.ports().items() if name != missing}
        with pytest.raises(NotReady, match=rf"ports.json has no port for {missing}: payrelay down, payrelay up"):
            parts_of(folder, installed_programs(tmp_path), ports, infrastructure=False)


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
