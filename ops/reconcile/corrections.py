"""An effect set right at its consumer, by a row of its own that says why: one function for each consumer that has such rows."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from consumers.accounting.entries import voucher_of
from consumers.accounting.ledger import correct_fact
from consumers.funds.corrections import correct_moves
from consumers.points.corrections import correct_points
from ops.delivery.registry import Consumer
from ops.reconcile.findings import Finding
from outbox.clock import utc_now
from outbox.errors import Refused
from schemas.codec import Envelope
from schemas.money import CNY


def correct_effect(
    connection: Connection, consumer: Consumer, finding: Finding, envelope: Envelope | None, wanted: str, **why: Any
) -> None:
    """The effect is what is wanted, or nothing. Transaction: the caller's. Raises Refused where it cannot be corrected by a row."""
    business_no, effect, event_id = finding.business_no, finding.effect, finding.event_id or UUID(int=0)
    match consumer.processor.name:
        case "accounting":
            voucher = voucher_of(envelope) if envelope is not None and wanted else None
            correct_fact(connection, business_no, effect, voucher, at=utc_now(), **why)
        case "funds":
            if " " in wanted:
                raise Refused(f"it calls for {wanted}, and balances are kept in {CNY}: by hand")
            correct_moves(connection, business_no, {effect: int(wanted or 0)}, event_id=event_id, **why)
        case "points":
            correct_points(connection, business_no, effect, int(wanted or 0), event_id=event_id, **why)
        case name:
            raise Refused(f"{name} has no function that corrects its effects: by hand")
