"""What the machine's environment says, beside payrelay's own settings: read without what reads those, which takes a quarter of a second."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def _text(name: str, default: str = "") -> str:
    return {key.lower(): value for key, value in os.environ.items()}.get(name, default)


def _path(name: str) -> Path | None:
    """Return a path as it was set; None where it is not set."""
    return Path(text) if (text := _text(name, "\0")) != "\0" else None  # no variable holds a zero byte


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The environment's variables of these names, in any case of letters."""

    payrelay_home: Path | None = field(default_factory=lambda: _path("payrelay_home"))
    """Where stacks and programs lie; `.payrelay/` of the checkout by default."""
    payrelay_stack: str = field(default_factory=lambda: _text("payrelay_stack", "local"))
    """Which stack the commands mean."""
    payrelay_traceback: str = field(default_factory=lambda: _text("payrelay_traceback"))
    """Whether a command that fails prints its traceback too; any text but 0."""
    payrelay_condition_file: Path | None = field(default_factory=lambda: _path("payrelay_condition_file"))
    """Where a part tells its supervisor how it is."""
    java_home: Path | None = field(default_factory=lambda: _path("java_home"))
    maven_repo_url: str = field(default_factory=lambda: _text("maven_repo_url"))
