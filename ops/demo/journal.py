"""What the driver meant to do, in a file outside the database, written before each request."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schemas.events import Method


@dataclass(frozen=True, kw_only=True)
class Merchant:
    """A merchant of the run."""

    merchant_no: str
    fee_rate_bp: int
    fee_fixed_fen: int = 0
    fee_min_fen: int = 0
    fee_cap_fen: int | None = None


@dataclass(frozen=True, kw_only=True)
class Payer:
    """A payer of the run, and what the bank account held at first, and a deposit put into the balance besides."""

    payer_no: str
    account_no: str
    balance_fen: int
    deposit_fen: int = 0


@dataclass(frozen=True, kw_only=True)
class Intent:
    """An order that the driver is about to send. A poor payer's fails; `repeats` notifications or confirmations are sent again."""

    order_no: str
    merchant_no: str
    payer_no: str
    amount_fen: int
    repeats: int
    method: Method = "bank_card"


@dataclass(frozen=True, kw_only=True)
class Journal:
    """A run's plan: what it meant to drive."""

    run: str
    merchants: dict[str, Merchant]
    payers: dict[str, Payer]
    intents: list[Intent]


class JournalWriter:
    """Appends lines that are with the operating system before the request they tell of is sent: killed, we lose none."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *entries: Merchant | Payer | Intent) -> None:
        """The entries are in the journal."""
        lines = "".join(json.dumps({"kind": type(entry).__name__, **asdict(entry)}) + "\n" for entry in entries)
        os.write(self._descriptor, lines.encode())

    def close(self) -> None:
        """The file is closed."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def read_journal(path: Path) -> Journal:
    """Return the run that a journal holds; a torn last line was no intent yet."""
    merchants, payers, intents = {}, {}, []
    for kind, entry in _lines(path):
        if kind == Merchant.__name__:
            merchants[entry["merchant_no"]] = Merchant(**entry)
        elif kind == Payer.__name__:
            payers[entry["payer_no"]] = Payer(**entry)
        else:
            intents.append(Intent(**entry))
    return Journal(run=path.stem, merchants=merchants, payers=payers, intents=intents)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            return
        yield entry.pop("kind"), entry
