"""The local stack survives what machines do to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner

from consumers.notification.queues import QUEUES
from ops.cli.main import app
from ops.stack.code import CODE
from ops.stack.control import down, supervisor_pid, up
from ops.stack.programs import Programs, installed_programs, locked
from ops.stack.state import ROOT, StackFolder
from outbox.errors import Unreachable
from outbox.settings import SERVICES
from tests.waiting import eventually


@pytest.fixture
def spare_stack(tmp_path: Path) -> Generator[StackFolder]:
    """A stack whose path holds what class paths, properties, lists and references to secrets have other uses for."""
    home = tmp_path / r"Läufe 支付 =:, \u0041${x} #'"
    home.mkdir()
    (home / "programs").symlink_to(ROOT / ".payrelay" / "programs")
    folder = StackFolder(name=f"spare-{os.getpid()}", home=home)
    yield folder
    down(folder, wipe=True)


def processes_of(folder: StackFolder) -> list[str]:
    """Return the command lines of processes that work in the stack's folder."""
    commands = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().decode(errors="replace").replace("\0", " ")
            cwd = str(entry.with_name("cwd").readlink())
        except OSError:
            continue
        if cwd == str(folder.path) or str(folder.path) in command:
            commands.append(command)
    return commands


def is_bound(to_bind: socket.socket, port: int) -> bool:
    try:
        to_bind.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def test_a_second_up_a_killed_supervisor_a_taken_port_and_a_stale_state_file(spare_stack: StackFolder) -> None:
    assert up(spare_stack, infrastructure=True, with_parent=True)
    assert not up(spare_stack, infrastructure=True), "a second up does nothing"
    assert {state.name: state.state for state in spare_stack.states()} == dict.fromkeys(
        ["postgres", "kafka", "connect"], "running"
    )
    assert all(state.port for state in spare_stack.states())
    assert (spare_stack.path / "kafka/data/meta.properties").exists(), "the broker's data is in the stack's folder"
    ports = spare_stack.read("ports.json")
    pid = supervisor_pid(spare_stack)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not spare_stack.is_up() and not processes_of(spare_stack), within_s=20, what="no orphan stays")
    assert {state.state for state in spare_stack.states()} == {"stopped"}, "a stale state file misleads nobody"
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A process that was killed is nameless some time before its sockets are closed.
        eventually(lambda: is_bound(taken, ports["kafka"]), within_s=20, what="Kafka's port is free")
        taken.listen()
        assert up(spare_stack, infrastructure=True, with_parent=True)
        assert spare_stack.read("ports.json")["kafka"] != ports["kafka"]
        assert spare_stack.read("ports.json")["postgres"] == ports["postgres"]
    replaced_by_up(spare_stack)
    assert down(spare_stack)
    assert not processes_of(spare_stack)


def replaced_by_up(folder: StackFolder) -> None:
    """`payrelay up` replaces a supervisor that has loaded code which is another now, once, and the stack's data stays."""
    older, cluster = supervisor_pid(folder), (folder.path / "kafka/data/meta.properties").read_text()
    code = folder.read(CODE)
    assert "ops/stack/supervisor.py" in code["supervisor"]
    folder.write(CODE, {**code, "supervisor": {**code["supervisor"], "ops/stack/supervisor.py": "older"}})
    command = CliRunner(env={"PAYRELAY_HOME": str(folder.home), "PAYRELAY_STACK": folder.name})
    shown = command.invoke(app, ["status"])
    assert (
        "the supervisor runs older code (ops/stack/supervisor.py); to start the whole stack again: payrelay up\n"
        in shown.stderr
    )
    ran = command.invoke(app, ["up", "--infrastructure"])
    assert ran.exit_code == 0, ran.stderr
    assert "the whole stack is started again: its supervisor ran older code (ops/stack/supervisor.py)\n" in ran.stderr
    assert "the stack is up\n" in ran.stderr
    newer = supervisor_pid(folder)
    assert newer not in (None, older)
    assert {state.state for state in folder.states()} == {"running"}
    assert (folder.path / "kafka/data/meta.properties").read_text() == cluster
    assert "older code" not in command.invoke(app, ["status"]).stderr
    again = command.invoke(app, ["up", "--infrastructure"])
    assert "the stack was up already\n" in again.stderr
    assert supervisor_pid(folder) == newer


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """A Maven repository on the loopback that hands out what was fetched before."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    folder = installed_programs(ROOT / ".payrelay").repository
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MAVEN_REPO_URL", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


@pytest.mark.usefixtures("repository")
def test_a_damaged_download_is_fetched_again(tmp_path: Path) -> None:
    programs = Programs(folder=tmp_path)
    small = min(locked(), key=lambda program: program.size)
    for program in locked():  # all but one are linked to the good ones
        path, good = program.path(programs.repository), program.path(installed_programs(ROOT / ".payrelay").repository)
        path.parent.mkdir(parents=True, exist_ok=True)
        if program == small:
            path.write_bytes(b"damaged".ljust(program.size))
        else:
            path.symlink_to(good)
    assert programs.install(lambda *_: None) == 1
    assert programs.install(lambda *_: None) == 0


def test_without_a_network_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAVEN_REPO_URL", "http://127.0.0.1:9/none")
    with pytest.raises(Unreachable, match=r"programs \(\d+ MB\) are still to be fetched.*MAVEN_REPO_URL"):
        Programs(folder=tmp_path).install(lambda *_: None)


def test_status_of_a_stack_that_never_was_and_an_unknown_log(tmp_path: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAYRELAY_")}
    environment = {**inherited, "PAYRELAY_HOME": str(tmp_path)}

    def payrelay(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ops.cli.main", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    status = payrelay("status", "-o", "json")
    assert (status.returncode, status.stdout.strip()) == (1, "[]")
    logs = payrelay("logs", "nonsense")
    assert logs.returncode == 2
    assert "the stack was never up" in logs.stderr
    assert payrelay("worker", "nonsense").returncode == 2
    connect = payrelay("connect", "status")
    assert connect.returncode == 2
    assert "payrelay up" in connect.stderr


def children_of(pid: int) -> list[str]:
    """Return the command lines of a process's children."""
    commands = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            with contextlib.suppress(OSError):
                commands.append(Path(f"/proc/{child}/cmdline").read_bytes().decode().replace("\0", " ").strip())
    return commands


@pytest.fixture
def all_workers() -> Generator[subprocess.Popen[bytes]]:
    """`payrelay worker`, with nothing there to work on."""
    database = "postgresql://nobody@127.0.0.1:9/none"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PAYRELAY_")},
        **{f"PAYRELAY_DSN__{name.upper()}": database for name in SERVICES},
        "PAYRELAY_KAFKA_BOOTSTRAP": "127.0.0.1:9",
        "PAYRELAY_BANK_NOTIFY_SECRET": "whsec_" + "A" * 32,
    }
    command = [sys.executable, "-m", "ops.cli.main", "worker"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_a_worker_without_names_runs_the_notifiers_too(all_workers: subprocess.Popen[bytes]) -> None:
    def notifiers() -> bool:
        running = children_of(all_workers.pid)
        return all(any(command.endswith(f"notifier:{queue}") for command in running) for queue in QUEUES)

    eventually(notifiers, within_s=20, what="each queue's notifier runs beside the processors")
    all_workers.terminate()
    assert all_workers.wait(30) == 0


def test_when_one_of_all_workers_ends_they_all_end(all_workers: subprocess.Popen[bytes]) -> None:
    eventually(lambda: len(children_of(all_workers.pid)) == 1 + len(QUEUES), within_s=20, what="all run")
    victim = next(
        int(child)
        for task in Path(f"/proc/{all_workers.pid}/task").glob("*/children")
        for child in task.read_text().split()
    )
    os.kill(victim, signal.SIGKILL)
    _, said = all_workers.communicate(timeout=30)
    assert all_workers.returncode == 1
    assert b"ended with -9: the others are stopped" in said
