"""Money is corrected by vouchers, made from a rebuild's difference; history is never swapped.

Wrong vouchers are reversed and corrected, those that should not be are reversed, missing ones are posted as the handler made them
in the shadow. Each can happen once: a voucher is reversed and corrected once, and a fact has one voucher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, text

from consumers.accounting.entries import Voucher
from consumers.accounting.ledger import correct_voucher, find_voucher, post_vouchers, reverse_voucher
from consumers.delivery.processor import DuplicateFact
from consumers.delivery.retry import remember, transact
from ops.rebuild.difference import REVERSED, DifferingRow, What
from ops.rebuild.rebuild import Rebuilt, alone_with
from outbox.database import engine_for
from outbox.errors import Refused
from outbox.inbox import Arrival, Log
from outbox.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What is to be posted about a finding."""

    action: str
    """post, reverse, correct (what people have reversed), or reverse and correct."""
    finding: DifferingRow


def corrections_of(rebuilt: Rebuilt) -> list[Correction]:
    """Return what is to be posted so that no voucher differs. Reads nothing, writes nothing.

    A voucher whose event is on no topic is left alone: nothing is known against it. Raises Refused for what has no vouchers.
    """
    if not rebuilt.subject.corrects:
        raise Refused(
            f"{rebuilt.consumer} has no vouchers to correct: --correct is for the ledger, --switch for projections"
        )
    actions = {What.MISSING: "post", What.EXTRA: "reverse", What.DIFFERENT: "reverse and correct"}
    return [
        Correction(action="correct" if finding.live == REVERSED else actions[finding.what], finding=finding)
        for finding in rebuilt.difference.findings
        if finding.kind == rebuilt.subject.kind and finding.what in actions and finding.is_met
    ]


def correct(
    settings: Settings, rebuilt: Rebuilt, chosen: Sequence[Correction], *, reason: str, actor: str, at: datetime
) -> Iterator[tuple[Correction, str]]:
    """Each correction is posted; gives what was posted, or why not: somebody else has posted it meanwhile.

    Own transactions, one a correction, as the service. May be repeated and cut off anywhere: what was posted is not posted again.
    Raises Refused where the shadow is no longer the one that the corrections were made from.
    """
    service, shadow = rebuilt.shadow.service, rebuilt.shadow.name
    engine = engine_for(settings.dsn_of(service), name="correct", pool_size=1)
    shadows = engine_for(
        settings.dsn_of(service), name="correct", pool_size=1, parameters={"search_path": f"{shadow},public"}
    )
    try:
        with alone_with(settings, rebuilt):
            for correction in chosen:
                yield (
                    correction,
                    _corrected(engine, shadows, rebuilt.consumer, correction, reason=reason, actor=actor, at=at),
                )
    finally:
        engine.dispose()
        shadows.dispose()


def _corrected(
    engine: Engine, shadows: Engine, consumer: str, correction: Correction, *, reason: str, actor: str, at: datetime
) -> str:
    number, wanted_no = correction.finding.number, correction.finding.rebuilt_number
    wanted, arrival = None, None
    if wanted_no is not None:
        with shadows.begin() as connection:
            wanted = find_voucher(connection, wanted_no)
            arrival = _arrival(connection, consumer, wanted)

    def step(connection: Connection) -> str:
        if number is None:
            assert wanted is not None
            if arrival is not None:
                remember(connection, consumer, arrival)
            post_vouchers(connection, [wanted])
            return "posted"
        done = []
        if correction.action != "correct":
            done.append(f"reversed by {reverse_voucher(connection, number, reason=reason, actor=actor, at=at)}")
        if wanted is not None:
            corrected = correct_voucher(connection, number, wanted.entries, reason=reason, actor=actor, at=at)
            done.append(f"corrected by {corrected}")
        return ", ".join(done)

    try:
        return transact(engine, step)
    except DuplicateFact:
        return "nothing: it was posted meanwhile"
    except Refused as error:
        return f"nothing: {error}"


def _arrival(connection: Connection, consumer: str, voucher: Voucher) -> Arrival | None:
    """Return where the voucher's event lay, as the shadow's inbox tells; None where it no longer does."""
    row = connection.execute(
        text("""SELECT topic, partition, "offset" FROM inbox WHERE consumer = :consumer AND event_id = :event_id"""),
        {"consumer": consumer, "event_id": voucher.event_id},
    ).first()
    if row is None or voucher.event_id is None:
        return None
    log = Log(cluster_id="", topic=row.topic, topic_id="", partition=row.partition)
    return Arrival(event_id=voucher.event_id, log=log, offset=row.offset)
