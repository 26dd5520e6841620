"""What a check of the pipeline says."""

from __future__ import annotations

from typing import NamedTuple


class Verdict(NamedTuple):
    """Whether all is well, what was seen, and the command that fixes it; empty where nothing needs fixing."""

    ok: bool
    found: str
    fix: str = ""
