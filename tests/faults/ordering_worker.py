"""A worker that notes in which order each key's events were applied, and rejects them while the file named by REJECTING exists."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection, text

from consumers.accounting.agent import PROCESSOR
from consumers.runtime.worker import run
from outbox.settings import Settings
from schemas.codec import Envelope

_NOTE = text("""
    INSERT INTO applied_order (key, version)
    SELECT * FROM unnest(CAST(:keys AS text[]), CAST(:versions AS bigint[]))""")


def handle(connection: Connection, events: Sequence[Envelope]) -> None:
    keys = [event.event.key for event in events]
    if (file := Path(os.environ["REJECTING"])).exists() and set(file.read_text().split()) & set(keys):
        raise ValueError("rejected for now")
    connection.execute(_NOTE, {"keys": keys, "versions": [event.version for event in events]})


ORDERING = replace(PROCESSOR, handle=handle)

if __name__ == "__main__":
    assert sys.argv[1] == ORDERING.name
    run([ORDERING], Settings())
