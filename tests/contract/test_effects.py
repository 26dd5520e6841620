"""Every consumer states its effects, purely, and everything that checks consumers reads them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from consumers.processors import EFFECTS, PROCESSORS
from ops.rebuild.rebuildable import rebuild_of
from outbox.errors import Refused

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted({processor.handle.__module__.split(".")[1] for processor in PROCESSORS.values()})


@pytest.mark.parametrize("package", PACKAGES)
def test_a_consumers_package_states_its_effects_without_io(package: str) -> None:
    """The import contract lists it, and what it imports itself does no I/O either: neither a database's nor Kafka's modules are loaded."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [pure] = [contract for contract in contracts if contract["name"] == "contracts and pure modules do no I/O"]
    assert any(fnmatch(f"consumers.{package}.effects", pattern) for pattern in pure["source_modules"])
    program = f"import sys, consumers.{package}.effects; print([name for name in {pure['forbidden_modules']!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def environment() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(path for path in (str(ROOT), *sys.path) if path)}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_consumer_can_be_rebuilt_or_says_why_not(name: str) -> None:
    effects, processor = EFFECTS[name], PROCESSORS[name]
    assert (effects.rebuild is None) == bool(effects.no_rebuild)
    if effects.rebuild is None:
        with pytest.raises(Refused, match=effects.no_rebuild[:40]):
            rebuild_of(processor)
    else:
        assert rebuild_of(processor) is effects.rebuild
