"""Random faults, reproducible from a seed: whatever happens to workers, PostgreSQL and the broker, nothing is lost, doubled or out of order."""

from __future__ import annotations

import os
from collections.abc import Generator
from datetime import date
from pathlib import Path
from uuid import uuid4

import pytest

from ops.stack.control import down, up
from ops.stack.state import StackFolder
from tests.applied import make_applied
from tests.faults.plan import SESSION_TIMEOUT_S
from tests.faults.random_run import RandomRun
from tests.pipeline import Pipeline

SEEDS = Path(__file__).parents[1] / "seeds"
SHORT = 1057
"""The seed that every run of the suite tries: its first 30 s have acts of every kind."""


def kept_seeds() -> list[int]:
    return sorted(int(path.stem) for path in SEEDS.glob("*.txt"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "short_seed" in metafunc.fixturenames:
        metafunc.parametrize("short_seed", sorted({SHORT, *kept_seeds()}))
    if "long_seed" in metafunc.fixturenames:
        seeds = metafunc.config.getoption("--seeds")
        metafunc.parametrize("long_seed", sorted({*kept_seeds(), *range(1, (seeds or 0) + 1)}))


@pytest.fixture(scope="module")
def folder() -> Generator[StackFolder]:
    """One stack for all seeds, each with topics and tables of its own; wiped afterwards."""
    made = StackFolder(name=f"faults-{os.getpid()}-{uuid4().hex[:6]}")
    yield made
    down(made, wipe=True)


def test_a_short_random_run(short_seed: int, folder: StackFolder, tmp_path: Path) -> None:
    """5,000 events, 30 s: the beginning of the seed's long run."""
    carry_out(short_seed, folder, tmp_path, events=5_000, duration_s=30)


@pytest.mark.extended
@pytest.mark.timeout(600)
def test_a_long_random_run(long_seed: int, folder: StackFolder, tmp_path: Path) -> None:
    """20,000 events, two minutes."""
    carry_out(long_seed, folder, tmp_path, events=20_000, duration_s=120)


def carry_out(seed: int, folder: StackFolder, scratch: Path, *, events: int, duration_s: float) -> None:
    """The run has passed; a seed that fails is kept in tests/seeds, and the command that repeats it printed."""
    up(folder, infrastructure=True, with_parent=True)
    prefix = f"t{uuid4().hex[:8]}-"
    settings = folder.settings(
        topic_prefix=prefix, group_prefix=prefix, metadata_max_age_s=1.0, session_timeout_s=SESSION_TIMEOUT_S
    )
    pipeline = Pipeline(settings, scratch)
    pipeline.make_topic()
    make_applied(settings)
    run = RandomRun(seed=seed, events=events, duration_s=duration_s, pipeline=pipeline, folder=folder)
    try:
        run.run()
    except BaseException as error:
        which = "short" if duration_s < 60 else "long"
        path = SEEDS / f"{seed}.txt"
        if isinstance(error, Exception) and not path.exists():
            path.write_text(f"{date.today()}, {which} run: {str(error).splitlines()[0][:300]}\n")  # noqa: DTZ011
        print(f"seed {seed} failed; again: .venv/bin/python -m pytest -s -m '' --seeds {seed} "
              f"'tests/faults/test_random_faults.py::test_a_{which}_random_run[{seed}]'")  # fmt: skip
        for worker in pipeline.workers:
            print(f"--- {worker.log.name}\n{worker.log.read_text()[-1500:]}")
        raise
    finally:
        print("\n".join(["", *run.timeline]))
        run.thaw_all()
        pipeline.close()
