"""A wrong effect is corrected: its consumer's effects say by which rows (`EffectCorrection`), and they are written here, as the service."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from consumers.delivery.retry import transact
from consumers.effects import EffectCorrection, Effects, WrongEffect
from ops.reconcile.present import effects_under
from outbox.errors import Refused
from schemas.codec import Envelope

NO_EVENT = UUID(int=0)


def correct(
    engine: Engine,
    effects: Effects,
    business_no: str,
    effect: str,
    envelope: Envelope | None,
    *,
    event_id: UUID | None = None,
    reason: str,
    actor: str,
    at: datetime,
) -> int:
    """The effect amounts to what the event calls for, and to nothing without one; returns how many rows were written for it.

    Own transaction, as the service. May be repeated and run beside others: what is right is left alone. Raises Refused where it was
    corrected before or only people can, IntegrityError where the tables refuse it, as a balance below its floor.
    """
    if effects.correction is None or not effects.corrects(effect):
        raise Refused(f"{effect} of {business_no} can only be set right by hand")
    correction, number = effects.correction, event_id or (envelope.id if envelope is not None else NO_EVENT)
    about: dict[str, Any] = {
        "business_no": business_no,
        "effect": effect,
        "event_id": number,
        "reason": reason,
        "actor": actor,
    }

    def step(connection: Connection) -> int:
        for statement in correction.hold:
            connection.execute(text(statement), about)
        present = effects_under(connection, effects, [business_no]).get(business_no, {})
        stands = present.get(effect, "")
        wanted = effects.expected(envelope, present).get(effect, "") if envelope is not None else ""
        if stands == wanted:
            return 0
        state = _state(connection, correction, about)
        wrong = WrongEffect(stands=stands, wanted=wanted, envelope=envelope, state=state, at=at, **about)
        return _write(connection, correction, about, wrong)

    return transact(engine, step)


def _state(connection: Connection, correction: EffectCorrection, about: Mapping[str, Any]) -> Mapping[str, Any]:
    row = connection.execute(text(correction.reads), about).first() if correction.reads else None
    return dict(row._mapping) if row is not None else {}


def _write(connection: Connection, correction: EffectCorrection, about: Mapping[str, Any], wrong: WrongEffect) -> int:
    """The correction's rows are written, every one; returns how many. Raises Refused otherwise."""
    writes = correction.rows(wrong)
    for write in writes:
        if not connection.execute(text(write.statement), {**about, **write.given}).rowcount:
            raise Refused(write.otherwise)
    return len(writes)
