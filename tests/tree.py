"""The checkout's own source, as the tests of its form read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["schemas", "outbox", "producers", "consumers", "connect", "ops", "benchmarks"]
TESTS = ["tests"]


def sources(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return every module of the packages, by its path from the root."""
    paths = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}
