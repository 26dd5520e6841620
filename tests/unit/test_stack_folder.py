"""A stack's folder: which names it may have, what is removed with it, and who holds its lock. No stack."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ops.cli.main import app
from ops.stack.control import down
from ops.stack.state import STATE, PartState, StackFolder
from outbox.errors import NotReady, PayrelayError, Refused


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAYRELAY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    file = tmp_path / "precious" / "file"
    file.parent.mkdir()
    file.touch()
    return file


def test_down_wipe_removes_no_folder_that_is_named_by_its_path(home: Path, precious: Path) -> None:
    given = [str(precious.parent), f"../../{precious.parent.name}", f"../stacks/../../{precious.parent.name}"]
    (home / "stacks").mkdir(parents=True)
    results = [CliRunner().invoke(app, ["down", "--wipe", "--stack", name]) for name in given]
    results.append(CliRunner().invoke(app, ["down", "--wipe"], env={"PAYRELAY_STACK": str(precious.parent)}))
    assert precious.exists(), "a folder of somebody else's was removed"
    assert all(isinstance(result.exception, Refused) for result in results)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/srv", "A", "a_b", "a b", "ä", "a\n", "a" * 41, "a.b", "٣", "a\0"]
)
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(PayrelayError, match="names no stack"):
        StackFolder(name=name)


@pytest.mark.parametrize("name", ["a", "0", "-", "a" * 40, "test-1-b2"])
def test_a_name_of_lower_case_letters_digits_and_hyphens_is_taken(name: str, home: Path) -> None:
    assert StackFolder(name=name).path == home / "stacks" / name


@pytest.mark.usefixtures("home")
def test_down_wipe_removes_only_a_folder_that_a_stack_was_made_in(precious: Path) -> None:
    other, linked, stack = (StackFolder(name=name) for name in ("other", "linked", "stack"))
    other.path.mkdir(parents=True)
    (other.path / "file").touch()
    linked.path.symlink_to(precious.parent)
    for folder in (other, linked):
        assert CliRunner().invoke(app, ["down", "--wipe", "--stack", folder.name]).exit_code == 1
    assert (other.path / "file").exists(), "no stack was made there"
    assert precious.exists()
    stack.make()
    assert CliRunner().invoke(app, ["down", "--wipe", "--stack", "stack"]).exit_code == 0
    assert not stack.path.exists()
    assert not down(StackFolder(name="never-was"), wipe=True)


@pytest.mark.usefixtures("home")
def test_down_wipe_that_was_cut_off_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, rmdir, left = StackFolder(name="stack"), os.rmdir, set[str]()

    def make() -> list[str]:
        """Folders lie before and behind the state file, in whatever order the file system lists them."""
        stack.make()
        (stack.path / STATE).rename(stack.path / "kept")
        for number in range(20):
            (stack.path / f"data-{number}").mkdir()
            if number == 9:
                (stack.path / "kept").rename(stack.path / STATE)
        return [item.name for item in stack.path.iterdir() if item.is_dir() and item.name.startswith("data-")]

    def fails_at_last(path: Any, *given: Any, **named: Any) -> None:
        if Path(path).name in left:
            raise OSError(16, "Device or resource busy")
        rmdir(path, *given, **named)

    left.add(make()[-1])
    monkeypatch.setattr(os, "rmdir", fails_at_last)
    with pytest.raises(NotReady, match="not wholly removed"):
        down(stack, wipe=True)
    left.clear()
    assert not down(stack, wipe=True)
    assert not stack.path.exists()


@pytest.mark.usefixtures("home")
def test_looking_whether_a_stack_is_up_keeps_no_supervisor_from_starting() -> None:
    folder, over, wrong = StackFolder(name="polled"), threading.Event(), []
    held = folder.lock()
    assert held is not None
    assert folder.is_up()
    assert folder.lock() is None, "one supervisor at a time"
    os.close(held)

    def poll() -> None:
        while not over.is_set():
            folder.is_up()

    pollers = [threading.Thread(target=poll) for _ in range(4)]
    for poller in pollers:
        poller.start()
    for _ in range(300):
        descriptor = folder.lock()
        if descriptor is None:
            wrong.append("not to be had")
        else:
            os.close(descriptor)
    over.set()
    for poller in pollers:
        poller.join()
    assert not wrong, f"{len(wrong)} of 300 supervisors could not start while others looked"


@pytest.mark.usefixtures("home")
def test_a_part_whose_process_is_gone_or_another_s_is_not_shown_as_running() -> None:
    folder = StackFolder(name="dead")
    held = folder.lock()
    assert held is not None
    pids = {"gone": 2**22 - 1, "another's": os.getppid()}
    rows = [PartState(name=name, state="running", pid=pid) for name, pid in pids.items()]
    row_of = {"parts": [vars(row) for row in rows], "supervisor": os.getpid(), "started_at": 0.0}
    folder.write("state.json", row_of)
    states = {state.name: state.state for state in folder.states()}
    os.close(held)
    assert "running" not in states.values(), states


def test_logs_names_parts_as_status_does(home: Path) -> None:
    logs = home / "stacks" / "local" / "logs"
    logs.mkdir(parents=True)
    for stem in ("postgres", "worker-bank_notification", "worker-notifier-bank", "service-bank"):
        (logs / f"{stem}.log").write_text(f"a line of {stem}\n")
    parts = ["postgres", "service:bank", "worker:bank_notification", "worker:notifier:bank"]
    unknown = CliRunner().invoke(app, ["logs", "nonsense"])
    assert str(unknown.exception) == f"there is no log of 'nonsense'; there are: {', '.join(parts)}"


def test_a_secret_that_another_version_has_made_stays(tmp_path: Path) -> None:
    folder = StackFolder(name="newer", home=tmp_path)
    folder.make()
    folder.write("secrets.json", {"couriers": "kept"})
    assert folder.secrets()["couriers"] == "kept"
    assert folder.read("secrets.json")["couriers"] == "kept"
