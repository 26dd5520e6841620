"""Plans and makes changes of the offset that Kafka Connect stores. connect/source_offsets.py says what counts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import text

from connect.apply import apply_connector
from connect.client import ConnectClient
from connect.source_offsets import Exported, position_of, shown
from ops.pipeline.health import reader_engine
from ops.pipeline.repair import Repair, emit_missing, plan_repair, resumed_after_failure
from ops.pipeline.source import SourcePositions, standing
from outbox.errors import Refused
from outbox.settings import SERVICES, Settings


def require_harmless(settings: Settings, now: SourcePositions, wanted: Exported, *, at: datetime) -> None:
    """Raises Refused, saying what would happen, for a position that the connector cannot or must not read on from. Reads only."""
    target = position_of(wanted.offsets)
    if now.confirmed_lsn is None:
        raise Refused(
            "the slot is lost, so there is no position to read on from. To repair it: payrelay doctor --repair-slot --execute"
        )
    if target is None:
        raise Refused("the file names no position: give one that `payrelay connect offsets get` printed")
    if target < now.confirmed_lsn:
        raise Refused(
            f"{shown(target)} lies before what the slot has confirmed, {shown(now.confirmed_lsn)}. PostgreSQL does not go back, and "
            "the connector would publish every kept row again. To publish rows again: payrelay connect snapshot. To delete the stored offset: reset "
            "without a file. To undo a reset nothing is needed"
        )
    if target > now.written_lsn:
        raise Refused(
            f"{shown(target)} lies beyond the end of the log, {shown(now.written_lsn)}, so it belongs to another database: give a file of this one"
        )
    unpublished = plan_repair(settings, now=at).missing
    with reader_engine(settings).connect() as connection:
        skipped = sum(
            connection.execute(
                text(f"SELECT count(*) FROM {service}.outbox WHERE id = ANY(:ids) AND lsn <= :target"),  # noqa: S608
                {"ids": list(unpublished), "target": target},
            ).scalar_one()
            for service in SERVICES
        )
    if skipped:
        raise Refused(
            f"{shown(target)} passes over {skipped} recorded events that are on no topic: they would be lost, so nothing was changed"
        )


def plan_reset(settings: Settings, *, at: datetime) -> Repair:
    """Return what the connector publishes once its stored offset is deleted: a bounded stretch, with all that is on no topic. Reads only.

    Raises Refused where the slot itself lies beyond the log's end: without a stored offset the connector would read on from there.
    """
    now = standing(settings)
    if now.confirmed_lsn is not None and now.confirmed_lsn > now.written_lsn:
        raise Refused(
            f"{now.beyond()}, so the database went back. To repair it: payrelay doctor --repair-slot --execute"
        )
    return plan_repair(settings, now=at)


def reset(
    settings: Settings, wanted: Exported | None, *, clock: Callable[[], datetime], say: Callable[[str], None]
) -> None:
    """The connector reads on from the wanted position, or, without one, from the slot's; what was recorded is on its topic.

    Stopped, changed, resumed. Without a position the snapshot that it then takes is bounded to what may be missing. May be
    repeated. Killed, it leaves the connector stopped, or its snapshot still bounded: payrelay connect resume, connect apply.
    Raises Refused, with the connector running again and nothing changed, for a position that the slot has passed meanwhile.
    """
    client = ConnectClient(settings.connect_url)
    say("stopping the connector")
    with resumed_after_failure(client, settings):
        client.stop(settings.connector)
        client.wait_stopped(settings.connector)
        if wanted is not None:
            require_harmless(settings, standing(settings), wanted, at=clock())
            client.put_offsets(settings.connector, wanted.offsets)
        else:
            repair = plan_reset(settings, at=clock())
            apply_connector(client, settings, since={table: str(bound) for table, bound in repair.since.items()})
            client.delete_offsets(settings.connector)
    if wanted is None:
        emit_missing(client, settings, repair, say=say)
    else:
        with resumed_after_failure(client, settings):
            client.resume(settings.connector)
        client.wait_running(settings.connector)
