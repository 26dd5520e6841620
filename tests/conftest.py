"""One real stack per run; a topic and group prefix per test."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from uuid import uuid4

import pytest

from ops.stack.control import down
from ops.stack.state import StackFolder
from outbox.settings import Settings
from tests.pipeline import Pipeline
from tests.providers import PROVIDERS, Stack

BUDGET_S = 900.0
LIMIT_S = 1500.0
LONGEST = ("test_recovery.py",)

os.environ.setdefault("PAYRELAY_CONNECTOR_POLL_INTERVAL_MS", "100")
"""Debezium looks for news this often, and two hundred times a second by default: too much for stacks that mostly idle on two cores."""

_spent: dict[str, float] = defaultdict(float)
_begun = 0.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stack", default="embedded", choices=sorted(PROVIDERS), help="what the tests run on")
    parser.addoption(
        "--seeds", type=int, help="also the long random fault runs: seeds 1 to this one, and the kept ones"
    )
    parser.addoption("--write-pages", action="store_true", help="write the pages that show real output again")
    parser.addoption("--screenshots", action="store_true", help="write the pictures of docs/images again")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that two processes end together; what needs the stack is marked."""
    order = ["faults", "integration", "e2e", "contract", "unit"]
    items.sort(key=lambda item: (item.path.name not in LONGEST, order.index(_group(item.nodeid))))
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker("stack")


def pytest_sessionstart() -> None:
    global _begun
    _begun = time.monotonic()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _spent[_group(report.nodeid)] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total_s = time.monotonic() - _begun
    groups = "  ".join(f"{name} {spent_s:.0f} s" for name, spent_s in _spent.items())
    terminalreporter.write_line(f"time: {groups}  in all {total_s:.0f} s (budget {BUDGET_S:.0f}, limit {LIMIT_S:.0f})")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run of the suite that takes too long has failed."""
    if session.config.getoption("--seeds") is None and time.monotonic() - _begun > LIMIT_S and session.exitstatus == 0:
        session.exitstatus = 1


def _group(nodeid: str) -> str:
    return nodeid.split("/")[1]


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Generator[Stack]:
    """The real stack: PostgreSQL, Kafka, Kafka Connect with the connector, services and workers."""
    yield from PROVIDERS[request.config.getoption("--stack")]()


@pytest.fixture
def settings(stack: Stack) -> Settings:
    return stack.settings


@pytest.fixture
def prefix() -> str:
    return f"t{uuid4().hex[:8]}-"


@pytest.fixture
def pipeline(settings: Settings, prefix: str, tmp_path: Path) -> Generator[Pipeline]:
    """A stretch of pipeline for one test: its own topic and group on the shared stack."""
    own = settings.model_copy(update={"topic_prefix": prefix, "group_prefix": prefix, "metadata_max_age_s": 1.0})
    made = Pipeline(own, tmp_path)
    made.make_topic()
    yield made
    made.close()


@pytest.fixture
def spare_stack() -> Generator[StackFolder]:
    """A stack of the test's own, not started; wiped afterwards."""
    folder = StackFolder(name=f"spare-{os.getpid()}-{uuid4().hex[:6]}")
    yield folder
    down(folder, wipe=True)
