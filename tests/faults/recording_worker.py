"""An accounting worker that writes down what it applies, in order, and takes its time in the transaction."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, text

from consumers.accounting.agent import PROCESSOR
from consumers.runtime.worker import run
from outbox.settings import Settings
from schemas.codec import Envelope
from tests.applied import apply


def handle(connection: Connection, events: Sequence[Envelope]) -> None:
    apply(connection, events)
    connection.execute(text("SELECT pg_sleep(0.02)"))  # so that about every second fault falls into a transaction


if __name__ == "__main__":
    assert sys.argv[1] == PROCESSOR.name
    run([replace(PROCESSOR, handle=handle)], Settings())
