"""The demo's driver as a load, on a stack of the benchmark's own, warmed up first."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ops.demo.proof import Proof
from ops.demo.run import run_demo
from ops.stack.control import down, up
from ops.stack.state import StackFolder

WARM_UP = 600


@contextmanager
def warm_stack() -> Generator[StackFolder]:
    """Give a whole stack that has been driven for a while; it is wiped afterwards."""
    folder = StackFolder(name=f"bench-{os.getpid()}")
    try:
        up(folder, with_parent=True)
        drive(folder, orders=WARM_UP, rate=None)
        yield folder
    finally:
        down(folder, wipe=True)


def drive(folder: StackFolder, *, orders: int, rate: float | None) -> tuple[Proof, dict[str, Any]]:
    """Return proof and figures of one run."""
    return run_demo(folder.settings(), folder, orders=orders, seed=1, rate=rate, watch=lambda *_: None)
