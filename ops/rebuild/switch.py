"""Puts rebuilt tables in place of the live ones, in one transaction.

It locks live `progress`, brings the shadow to just there, and only then locks what is moved: inbox, then the handler's tables,
then the parking lot, in the order in which whoever applies an event takes them. Whoever waited goes on with the new tables, from the
same positions. What is put aside stays until it is dropped by name.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from consumers.delivery.processor import Processor
from ops.delivery.outcomes import progress_of
from ops.delivery.registry import processor_of
from ops.rebuild.checkpoint import require_past_read
from ops.rebuild.feeding import Feeder, ReportProgress, skipped_of
from ops.rebuild.rebuild import Rebuilt, alone_with
from ops.rebuild.rebuildable import repeatable
from ops.rebuild.schemas import Made, drop_schema, tell
from outbox.clock import utc_now
from outbox.errors import NotReady, Refused
from outbox.inbox import horizon
from outbox.migrate import RETRIED, owner_engine
from outbox.partitions import LOCK_TIMEOUT_MS, TRIES_MAX
from outbox.retry import backoff_s
from outbox.settings import READER, Settings


@dataclass(frozen=True, kw_only=True)
class Switched:
    """What a switch has done."""

    old: str
    """The schema that holds what was put aside."""
    known: int
    """Events that the inbox knows now, and did not before."""
    unknown: int
    """Events that the inbox knew before, and are parked now."""
    parked: int
    held_s: float
    """How long live had to wait."""


def require_switchable(connection: Connection, rebuilt: Rebuilt) -> None:
    """Return if the rebuilt tables may take the live ones' place; raises Refused, saying why not. Reads only."""
    service = rebuilt.shadow.service
    if not rebuilt.subject.switches:
        raise Refused(
            f"{rebuilt.consumer} keeps money, whose history is never swapped, only corrected: for the ledger use --correct"
        )
    if rebuilt.difference.unmet:
        raise Refused(
            f"{rebuilt.difference.unmet} rows would be lost: their events are on no topic, so the rebuild has not seen them. What is missing: payrelay reconcile"
        )
    others = connection.execute(
        text(f"SELECT DISTINCT consumer FROM {service}.progress WHERE consumer <> :consumer"),  # noqa: S608
        {"consumer": rebuilt.consumer},
    ).scalars()
    if named := sorted(others):
        raise Refused(
            f"{', '.join(named)} uses the tables of {service} too, and a switch would lose what it has applied: they cannot be switched"
        )


def switch(
    settings: Settings,
    rebuilt: Rebuilt,
    *,
    processor: Processor | None = None,
    progress: ReportProgress = lambda _done, _total: None,
) -> Switched:
    """The rebuilt tables are live, with inbox, progress and parking lot as they belong to them; the old ones are put aside.

    One transaction, as the owner; live may go on, and waits while it is under way. Cut off anywhere, nothing has happened. Raises
    Refused where a switch would lose something, NotReady where the locks were not to be had.
    """
    chosen = processor or processor_of(settings, rebuilt.consumer)
    engine = owner_engine(settings)
    with alone_with(settings, rebuilt):
        with engine.begin() as owner:
            require_switchable(owner, rebuilt)
            require_past_read(owner, chosen.service, rebuilt.consumer)
            skipped = skipped_of(owner, chosen.service, rebuilt.consumer)
            if rebuilt.subject.carried:
                names = {"schema": rebuilt.shadow.name, "live": chosen.service}
                owner.execute(text(rebuilt.subject.carried.format(**names)))
        if skipped.count != rebuilt.shadow.skips:
            raise Refused("events were skipped since the rebuild began, and it has applied them: run the rebuild again")
        feeder = Feeder(
            settings,
            repeatable(chosen, rebuilt.subject),
            rebuilt.consumer,
            rebuilt.shadow.name,
            skipped=skipped,
            progress=progress,
        )
        try:
            switched = _patiently(engine, feeder, rebuilt)
        finally:
            feeder.engine.dispose()
    with engine.begin() as owner:
        for table in rebuilt.subject.tables:
            owner.execute(text(f"ANALYZE {chosen.service}.{table}"))
    return switched


def _patiently(engine: Engine, feeder: Feeder, rebuilt: Rebuilt) -> Switched:
    for attempt in range(1, TRIES_MAX + 1):
        try:
            begun = time.monotonic()
            with engine.begin() as owner:
                owner.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
                old, known, unknown, parked = _switch(owner, feeder, rebuilt)
            return Switched(old=old, known=known, unknown=unknown, parked=parked, held_s=time.monotonic() - begun)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) not in RETRIED:
                raise
            time.sleep(backoff_s(attempt, cap_s=1.0))
    raise NotReady(
        f"the tables stayed locked for {TRIES_MAX} tries, so nothing was switched: end the long transactions, then repeat"
    )


def _switch(owner: Connection, feeder: Feeder, rebuilt: Rebuilt) -> tuple[str, int, int, int]:
    """Everything is moved, in the caller's transaction; returns where the old tables are, and what the inbox has learnt."""
    service, shadow, consumer = rebuilt.shadow.service, rebuilt.shadow.name, rebuilt.consumer
    owner.execute(
        text(f"""SELECT FROM {service}.progress WHERE consumer = :consumer
                 ORDER BY cluster_id, topic, topic_id, partition FOR UPDATE"""),
        {"consumer": consumer},
    )
    positions = progress_of(owner, service, consumer)
    feeder.feed(progress_of(owner, shadow, consumer), positions)
    owner.execute(text(f"LOCK TABLE {service}.inbox, {shadow}.inbox IN SHARE ROW EXCLUSIVE MODE"))
    for table in rebuilt.subject.tables:
        owner.execute(text(f"LOCK TABLE {service}.{table} IN ACCESS EXCLUSIVE MODE"))
    owner.execute(text(f"LOCK TABLE {service}.parked IN SHARE ROW EXCLUSIVE MODE"))
    if {log: at for log, at in progress_of(owner, shadow, consumer).items() if log in positions} != positions:
        raise Refused("the shadow is not at the live position, so another rebuild feeds it: wait for it, then repeat")
    if skipped_of(owner, service, consumer).count != rebuilt.shadow.skips:
        raise Refused("an event that the rebuild has applied was skipped just now: run the rebuild again")
    _require_met(owner, rebuilt)
    at = utc_now()
    old = Made(name=f"{service}_old_{at:%Y%m%d_%H%M%S_%f}", service=service, consumer=consumer, purpose="old", at=at)
    owner.execute(text(f"CREATE SCHEMA {old.name}"))
    owner.execute(text(f"GRANT USAGE ON SCHEMA {old.name} TO {READER}"))
    tell(owner, old)
    known, unknown = _move_inbox(owner, service, shadow, old.name, consumer)
    parked = _move_parked(owner, service, shadow, old.name, consumer)
    for table in rebuilt.subject.tables:
        owner.execute(text(f"ALTER TABLE {service}.{table} SET SCHEMA {old.name}"))
        owner.execute(text(f"ALTER TABLE {shadow}.{table} SET SCHEMA {service}"))
    owner.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA {old.name} TO {READER}"))
    drop_schema(owner, shadow)
    return old.name, known, unknown, parked


def _require_met(owner: Connection, rebuilt: Rebuilt) -> None:
    """Return if the shadow has met the event of every live row; raises Refused, as what was applied from the outbox would be lost."""
    shadow = rebuilt.shadow.name
    lost = owner.execute(
        text(f"""SELECT count(*) FROM ({rebuilt.subject.rows.format(schema=rebuilt.shadow.service)}) AS live
                 WHERE NOT EXISTS (SELECT FROM {shadow}.inbox AS met
                                   WHERE met.consumer = :consumer AND met.event_id = live.event_id)
                   AND NOT EXISTS (SELECT FROM {shadow}.parked AS met
                                   WHERE met.consumer = :consumer AND met.event_id = live.event_id)"""),  # noqa: S608
        {"consumer": rebuilt.consumer},
    ).scalar_one()
    if lost:
        raise Refused(
            f"{lost} rows would be lost: their events are on no topic, so the rebuild has not seen them. What is missing: payrelay reconcile"
        )


def _move_inbox(owner: Connection, service: str, shadow: str, old: str, consumer: str) -> tuple[int, int]:
    """The inbox knows what the rebuilt tables hold, and not what is parked now; days and other rows are as they were."""
    about = {"consumer": consumer}
    unknown = owner.execute(
        text(f"""CREATE TABLE {old}.inbox AS SELECT inbox.* FROM {service}.inbox JOIN {shadow}.parked USING (consumer, event_id)
                 WHERE consumer = :consumer"""),  # noqa: S608
        about,
    ).rowcount
    owner.execute(
        text(f"""DELETE FROM {service}.inbox USING {old}.inbox AS gone
                 WHERE inbox.consumer = :consumer AND inbox.event_id = gone.event_id"""),  # noqa: S608
        about,
    )
    low, high = horizon(owner, service)
    known = owner.execute(
        text(f"""INSERT INTO {service}.inbox SELECT made.* FROM {shadow}.inbox AS made
                 WHERE made.consumer = :consumer AND made.event_id >= :low AND made.event_id < :high
                   AND NOT EXISTS (SELECT FROM {service}.inbox AS held
                                   WHERE held.consumer = made.consumer AND held.event_id = made.event_id)"""),  # noqa: S608
        {**about, "low": low, "high": high},
    ).rowcount
    return known, unknown


def _move_parked(owner: Connection, service: str, shadow: str, old: str, consumer: str) -> int:
    """The parking lot holds what the rebuild has parked, in its order, and progress says whether it does; the old rows are put aside."""
    about = {"consumer": consumer}
    for table in ("parked", "progress"):
        owner.execute(
            text(f"CREATE TABLE {old}.{table} AS SELECT * FROM {service}.{table} WHERE consumer = :consumer"),  # noqa: S608
            about,
        )
    owner.execute(text(f"DELETE FROM {service}.parked WHERE consumer = :consumer"), about)  # noqa: S608
    columns = """consumer, event_id, topic, topic_id, partition, "offset", key, type, version, headers, value, cause, error,
                 attempts, parked_at"""
    parked = owner.execute(
        text(f"""INSERT INTO {service}.parked ({columns})
                 SELECT {columns} FROM {shadow}.parked WHERE consumer = :consumer ORDER BY id"""),  # noqa: S608
        about,
    ).rowcount
    owner.execute(
        text(f"""UPDATE {service}.progress SET has_parked = CAST(:parked AS bigint) > 0, updated_at = clock_timestamp()
                 WHERE consumer = :consumer"""),  # noqa: S608
        {**about, "parked": parked},
    )
    return parked
