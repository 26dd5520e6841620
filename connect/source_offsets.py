"""The offset that Kafka Connect stores for the connector. The replication slot has its own position, and that is what counts.

Measured with Debezium 3.7.0 and PostgreSQL 18, snapshot mode `when_needed`: a stored offset before the slot's confirmed position replays
nothing from there; the connector finds it gone and emits every kept row again. Without a stored offset it does the same. With one beyond
what is published it passes over what lies between, for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outbox.errors import Refused

Offsets = Sequence[Mapping[str, Any]]
"""As Kafka Connect's interface gives and takes them: partition and offset."""

LSN = "lsn"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A connector's offsets as a document: what `get` prints and `reset --from-file` takes."""

    connector: str
    offsets: Offsets

    def as_text(self) -> str:
        """Return the document."""
        return json.dumps({"connector": self.connector, "offsets": self.offsets}, indent=2) + "\n"


def exported_from(text: str, *, connector: str) -> Exported:
    """Return the offsets of a document; raises Refused for another document, or another connector's.

    >>> exported_from(Exported(connector="c", offsets=[{"partition": {}, "offset": {"lsn": 1}}]).as_text(), connector="c").offsets
    [{'partition': {}, 'offset': {'lsn': 1}}]
    """
    try:
        content = json.loads(text)
        name, offsets = content["connector"], content["offsets"]
        for entry in offsets:
            _position(entry["offset"][LSN])
            dict(entry["partition"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Refused(
            "the file holds no offsets as `payrelay connect offsets get` prints them: give a file that it printed"
        ) from error
    if name != connector:
        raise Refused(
            f"the file's offsets belong to connector {name}, not to {connector}: give a file of this connector"
        )
    return Exported(connector=name, offsets=offsets)


def position_of(offsets: Offsets) -> int | None:
    """Return the log position that the offsets name; None where none is stored.

    >>> position_of([{"partition": {"server": "p"}, "offset": {"lsn": 17, "txId": 4}}]), position_of([])
    (17, None)
    """
    positions = [_position(offset[LSN]) for entry in offsets if (offset := entry.get("offset")) and LSN in offset]
    return max(positions, default=None)


def _position(lsn: object) -> int:
    """Return a log position of a JSON document, whole and within what PostgreSQL has; raises ValueError."""
    if isinstance(lsn, bool) or not isinstance(lsn, int) or not 0 <= lsn < 2**64:
        raise ValueError(f"{str(lsn)[:40]} is not a position in a log")
    return lsn


def shown(position: int | None) -> str:
    """Return a log position as PostgreSQL writes it.

    >>> shown(42065648), shown(None)
    ('0/281DEF0', 'nowhere')
    """
    return "nowhere" if position is None else f"{position >> 32:X}/{position & 0xFFFF_FFFF:X}"
