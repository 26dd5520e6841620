"""A worker whose accounting handler is broken for all events while the file named by BROKEN exists: a bad deploy, healed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection

from consumers.accounting.agent import PROCESSOR
from consumers.runtime.worker import run
from outbox.settings import Settings
from schemas.codec import Envelope


def handle(connection: Connection, events: Sequence[Envelope]) -> None:
    if Path(os.environ["BROKEN"]).exists():
        raise RuntimeError("a bad deploy")
    PROCESSOR.handle(connection, events)


if __name__ == "__main__":
    assert sys.argv[1] == PROCESSOR.name
    run([replace(PROCESSOR, handle=handle)], Settings())
