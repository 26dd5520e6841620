"""Cold start of the whole stack after set-up: to a running connector that has passed its first heartbeat."""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.machine import result, target
from ops.stack.control import down, up
from ops.stack.state import StackFolder

RUNS = 3


def run() -> dict[str, Any]:
    """Start and wipe a new stack three times, infrastructure alone and whole; report the medians."""
    figures: dict[str, list[float]] = {"infrastructure_s": [], "whole_stack_s": []}
    for number in range(RUNS):
        for name, infrastructure in (("infrastructure_s", True), ("whole_stack_s", False)):
            folder = StackFolder(name=f"bench-{os.getpid()}-{number}")
            begun = time.monotonic()
            try:
                up(folder, infrastructure=infrastructure, with_parent=True)
                figures[name].append(time.monotonic() - begun)
            finally:
                down(folder, wipe=True)
    medians = {name: sorted(values)[RUNS // 2] for name, values in figures.items()}
    return result(
        "startup",
        [
            target("infrastructure_s", medians["infrastructure_s"], at_most=15),
            target("whole_stack_s", medians["whole_stack_s"]),
        ],
        runs={name: [round(value, 1) for value in values] for name, values in figures.items()},
    )
