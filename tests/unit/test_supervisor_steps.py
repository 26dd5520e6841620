"""A step between parts, such as the schema's migration: it may take its time while its server works for it. No stack."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ops.stack import supervisor
from ops.stack.parts import Part
from ops.stack.state import STATE, PartState, StackFolder
from ops.stack.supervisor import Supervisor

BUSY, IDLE = "print(flush=True)\nwhile True: pass", "import time\nprint(flush=True)\ntime.sleep(60)"
"""Each says that it runs: what Python needs to start is not the server's work."""


def test_a_part_that_needs_what_nothing_opens_ends_the_supervisor_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needy = Part(name="worker:new", version="", command=[], needs=("schema", "cache"))
    monkeypatch.setenv("PAYRELAY_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["supervisor", "gates"])
    monkeypatch.setattr(supervisor, "parts_of", lambda *_, **__: [needy])
    with pytest.raises(SystemExit):
        supervisor.main()
    error = StackFolder(name="gates", home=tmp_path).read(STATE)["error"]
    assert error.startswith("Misused: worker:new needs cache, which nothing opens")


@pytest.mark.parametrize(("program", "moves"), [(BUSY, True), (IDLE, False)], ids=["working", "idle"])
def test_a_long_step_is_progress_while_its_server_works(
    program: str, moves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "READY_S", 2.0)
    monkeypatch.setattr(supervisor, "SHOW_S", 0.2)
    folder = StackFolder(name="steps", home=tmp_path)
    folder.make()
    made = object.__new__(Supervisor)
    made.folder, made.started_at, made.waits, made.unwritten = folder, 0.0, "", False
    made.parts = [
        Part(name="postgres", version="", command=[]),
        Part(name="worker", version="", command=[], needs=("schema",)),
    ]
    made.states = {part.name: PartState(name=part.name) for part in made.parts}
    made.progress = dict.fromkeys(made.states, 0)
    shown = set[str]()

    def act() -> None:
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            time.sleep(0.05)
            shown.add(made.states["worker"].condition)

    async def main() -> None:
        made.gates = {"postgres": asyncio.Event(), "schema": asyncio.Event()}
        made.gates["postgres"].set()
        await made._step("schema", ("postgres",), act)
        assert made.gates["schema"].is_set()

    with subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout
            server.stdout.readline()
            made.states["postgres"].pid = server.pid
            asyncio.run(main())
        finally:
            server.kill()
    assert (made.progress["postgres"] > 0) is moves
    assert any(condition.startswith("waits for schema, under way for") for condition in shown)
    assert made.states["worker"].condition == ""
