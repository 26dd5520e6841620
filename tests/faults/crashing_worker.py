"""An accounting worker whose agent raises before its very first batch, and after its second."""

from __future__ import annotations

import os
import sys
from itertools import count
from typing import Any

import faust.streams

from consumers.accounting.agent import PROCESSOR
from consumers.runtime.app import PipelineApp
from consumers.runtime.worker import run
from outbox.settings import Settings

CRASHES = 2

_numbers = count()
_until_committed = PipelineApp._until_committed


async def until_committed(app: PipelineApp, batch: Any) -> None:
    number = next(_numbers)
    if number < CRASHES and number % 2 == 0:
        raise RuntimeError("the agent raises before its batch")
    await _until_committed(app, batch)
    if number < CRASHES:
        raise RuntimeError("the agent raises after its batch")


if __name__ == "__main__":
    assert sys.argv[1] == PROCESSOR.name
    assert (faust.streams._CStreamIterator is None) == bool(os.environ.get("NO_CYTHON")), (
        "Faust is not as the test wants it"
    )
    PipelineApp._until_committed = until_committed  # type: ignore[method-assign]
    run([PROCESSOR], Settings())
