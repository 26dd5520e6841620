"""No sleeps in tests: wait for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], *, within_s: float = 30.0, what: str = "") -> T:
    """Return the condition's first true value; fails once the deadline has passed."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:.0f} s: {what or condition}; last seen {value!r}")
        time.sleep(0.05)
