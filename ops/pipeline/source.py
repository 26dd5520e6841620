"""The positions of the connector, the slot and PostgreSQL's log, which three stores hold.

Kafka Connect's offset can be ahead of the log: the database was restored to an older copy, or a standby that lagged took over.
PostgreSQL then silently passes over whatever is written below the stored offset, and the connector looks well.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from connect.client import ConnectClient
from connect.source_offsets import Exported, position_of, shown
from ops.pipeline.health import SlotState, reader_engine, slot_of
from outbox.errors import PayrelayError
from outbox.settings import Settings


@dataclass(frozen=True, kw_only=True)
class SourcePositions:
    """The positions of the connector, the slot and the log."""

    noted: Exported
    noted_lsn: int | None
    confirmed_lsn: int | None
    """Everything before it is published, and gone from the slot; None without a slot."""
    written_lsn: int
    """The log's end."""

    def described(self) -> str:
        """Return it in one line."""
        return (
            f"Kafka Connect stores {shown(self.noted_lsn)}; the slot has confirmed {shown(self.confirmed_lsn)} and does not "
            f"go back; the log ends at {shown(self.written_lsn)}"
        )

    def beyond(self) -> str:
        """Return which positions lie beyond the log's end, and so are another history's; empty where none does.

        >>> SourcePositions(noted=Exported(connector="c", offsets=[]), noted_lsn=7, confirmed_lsn=3, written_lsn=5).beyond()
        "Kafka Connect's offset, 0/7, lies beyond the end of the log, 0/5"
        """
        ahead = [
            f"{name}, {shown(position)},"
            for name, position in (("Kafka Connect's offset", self.noted_lsn), ("the slot", self.confirmed_lsn))
            if position is not None and position > self.written_lsn
        ]
        return f"{' and '.join(ahead)} lies beyond the end of the log, {shown(self.written_lsn)}" if ahead else ""

    def passed_lsn(self) -> int | None:
        """Return up to where the connector will publish nothing any more; None without a slot."""
        return None if self.confirmed_lsn is None else max(self.confirmed_lsn, self.noted_lsn or 0)


def standing(settings: Settings, *, patience_s: float = 30.0) -> SourcePositions:
    """Return the positions of connector, slot and log. Reads only. Raises NoConnector, and Unreachable after `patience_s`."""
    noted = ConnectClient(settings.connect_url, patience_s=patience_s).offsets(settings.connector)
    with reader_engine(settings).connect() as connection:  # after the note: the log's end only grows
        slot = slot_of(connection, settings.slot)
        written = connection.execute(text("SELECT CAST(pg_current_wal_lsn() - '0/0' AS bigint)")).scalar_one()
    return SourcePositions(
        noted=Exported(connector=settings.connector, offsets=noted),
        noted_lsn=position_of(noted),
        confirmed_lsn=_confirmed(slot),
        written_lsn=int(written),
    )


def passed_lsn(settings: Settings) -> int | None:
    """Return up to where the connector will publish nothing any more, by the slot and its stored offset; None without a slot.

    Where Kafka Connect does not answer, or has no connector, by the slot alone.
    """
    try:
        return standing(settings, patience_s=3.0).passed_lsn()
    except PayrelayError:
        with reader_engine(settings).connect() as connection:
            slot = slot_of(connection, settings.slot)
        return _confirmed(slot)


def _confirmed(slot: SlotState) -> int | None:
    return slot.confirmed_lsn if slot.found and slot.wal_status != "lost" and not slot.database else None
