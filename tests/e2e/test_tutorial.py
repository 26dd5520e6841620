"""The tutorial, executed from its own text: on a copy of this checkout, with a stack of its own."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import text

from ops.stack.control import down
from ops.stack.state import StackFolder
from tests.howto import Terminal
from tests.pipeline import engine_of
from tests.tutorial import PAGE, Copy, follow
from tests.waiting import eventually
from tests.warm import warm_commands


class Reader:
    """Somebody who follows the page: a clone, and a terminal in it."""

    def __init__(self, folder: Path) -> None:
        self.copy = Copy.of_this_checkout(folder / "payrelay")
        self.stack = StackFolder(name="local", home=self.copy.root / ".payrelay")
        self.stack.home.mkdir()
        (self.stack.home / "programs").symlink_to(StackFolder(name="local").home / "programs")
        self._commands = folder / "bin"
        self._commands.mkdir()
        self._warm = ExitStack()
        self._is_current = False
        environment = {"PAYRELAY_HOME": str(self.stack.home)}
        self._terminal = Terminal(
            self.stack, [self._commands, Path(sys.executable).parent], environment, root=self.copy.root
        )

    def run(self, command: str) -> str:
        """Return what a command prints, run by the code as it is now."""
        if "payrelay" in command and not self._is_current:
            self.end()
            self._warm.enter_context(warm_commands(self._commands, self.copy.root))
            self._is_current = True
        return self._terminal.run(command)

    def code_has_changed(self) -> None:
        self._is_current = False

    def tips_are_applied(self) -> None:
        """Every tip is applied or parked at each consumer that there is."""
        with engine_of(self.stack.settings(), "owner").connect() as connection:
            given = "SELECT id FROM payments.outbox WHERE topic = 'payment.tip'"
            for consumer, service in {"tips": "funds", "statements": "couriers"}.items():
                if (
                    connection.execute(text("SELECT to_regclass(:inbox)"), {"inbox": f"{service}.inbox"}).scalar()
                    is None
                ):
                    continue
                left = text(f"""{given} EXCEPT SELECT event_id FROM {service}.inbox WHERE consumer = '{consumer}'
                                EXCEPT SELECT event_id FROM {service}.inbox_behind WHERE consumer = '{consumer}'
                                EXCEPT SELECT event_id FROM {service}.parked WHERE consumer = '{consumer}'""")
                eventually(lambda left=left: not connection.execute(left).all(), what=f"{consumer} has each tip")  # type: ignore[misc]

    def end(self) -> None:
        self._warm.close()
        shutil.rmtree(self._commands)
        self._commands.mkdir()


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Reader]:
    if request.config.getoption("--stack") != "embedded":
        pytest.skip("starts the embedded stack")
    made = Reader(tmp_path)
    try:
        yield made
    finally:
        made.end()
        down(made.stack, wipe=True)


def test_the_tutorial(reader: Reader, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    begun = cpu_s()
    follow(
        PAGE,
        reader.copy,
        reader.run,
        {"applied": reader.tips_are_applied},
        code_changed=reader.code_has_changed,
        write=request.config.getoption("--write-pages"),
    )
    with capsys.disabled():
        print(f"tutorial: {cpu_s() - begun:.0f} s of CPU in this cgroup", end=" ")


def cpu_s() -> float:
    """Return the CPU time of everything in this control group: supervised processes are nobody's children here. Zero where none tells."""
    for path, pattern, unit in (
        ("/sys/fs/cgroup/cpu.stat", r"usage_usec (\d+)", 1e6),
        ("/sys/fs/cgroup/cpuacct/cpuacct.usage", r"(\d+)", 1e9),
    ):
        if Path(path).is_file() and (match := re.search(pattern, Path(path).read_text())):
            return int(match[1]) / unit
    return 0.0
