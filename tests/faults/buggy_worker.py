"""A worker whose accounting handler has a bug that nothing rejects: it forgets fees, and posts nothing of balance payments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import msgspec
from sqlalchemy import Connection

from consumers.accounting.agent import PROCESSOR
from consumers.runtime.worker import run
from ops.cli.context import current_settings
from schemas.codec import Envelope
from schemas.events import PaymentSettled


def handle(connection: Connection, events: Sequence[Envelope]) -> None:
    PROCESSOR.handle(
        connection,
        [
            replace(envelope, event=msgspec.structs.replace(envelope.event, fee_fen=0))
            for envelope in events
            if isinstance(envelope.event, PaymentSettled) and envelope.event.method == "bank_card"
        ],
    )


if __name__ == "__main__":
    assert sys.argv[1] == PROCESSOR.name
    run([replace(PROCESSOR, handle=handle)], current_settings())
