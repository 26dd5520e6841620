"""An accounting worker that was frozen between its look at the logs' ends and its look at progress: the ends are of long ago."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from faust.types import TP

from consumers.accounting.agent import PROCESSOR
from consumers.runtime.positions import DatabasePositions
from consumers.runtime.worker import run
from outbox.settings import Settings

_open = DatabasePositions.open


async def open_late(
    positions: DatabasePositions,
    earliest: Mapping[TP, int],
    latest: Mapping[TP, int],
    committed: Mapping[TP, int | None],
) -> Any:
    return await _open(positions, earliest, dict.fromkeys(latest, 0), committed)


if __name__ == "__main__":
    assert sys.argv[1] == PROCESSOR.name
    DatabasePositions.open = open_late  # type: ignore[method-assign]
    run([PROCESSOR], Settings())
