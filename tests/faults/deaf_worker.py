"""An accounting worker whose Kafka client's coordination ends by itself once the file named by DEAF exists."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from consumers.accounting.agent import PROCESSOR
from consumers.runtime.transport import BatchConsumer
from consumers.runtime.worker import run
from outbox.settings import Settings

DEAF = Path(os.environ["DEAF"])

_poll = BatchConsumer._poll


def poll(consumer: BatchConsumer) -> Any:
    if DEAF.exists():
        consumer._thread._consumer._coordinator._coordination_task.cancel()
    return _poll(consumer)


if __name__ == "__main__":
    assert sys.argv[1] == PROCESSOR.name
    BatchConsumer._poll = poll  # type: ignore[method-assign]
    run([PROCESSOR], Settings())
