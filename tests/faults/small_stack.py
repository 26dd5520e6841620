"""A supervisor of small parts, whose limits are small too: python -m tests.faults.small_stack NAME READY_S PART=PROGRAM…

A part is ready once its program has made the file that its first argument names. Upkeep does nothing, again and again.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from ops.pipeline.upkeep_report import Upkeep
from ops.stack import supervisor
from ops.stack.parts import Part
from ops.stack.state import StackFolder
from outbox.clock import utc_now


def idle(*_: Any, now: Any) -> Upkeep:
    return Upkeep(at=utc_now().isoformat())


def main(name: str, ready_s: str, *parts: str) -> None:
    supervisor.READY_S = float(ready_s)
    supervisor.UPKEEP_S = 0.2
    supervisor.upkeep = idle
    folder = StackFolder(name=name)
    lock = folder.lock()
    assert lock is not None
    whole = supervisor.parts_of
    try:
        supervisor.parts_of = lambda *_, **__: [part_of(folder, *part.split("=", 1)) for part in parts]
        made = supervisor.Supervisor(folder, infrastructure=True)
    finally:
        supervisor.parts_of = whole
    for gate in ("schema", "topics"):
        made.gates[gate].set()
    asyncio.run(made.run())


def part_of(folder: StackFolder, name: str, program: str) -> Part:
    file = folder.path / f"{name}.ready"
    file.unlink(missing_ok=True)
    return Part(
        name=name,
        version="",
        command=[sys.executable, "-I", "-S", "-c", program, str(file)],
        ready=file.exists,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
