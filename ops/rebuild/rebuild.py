"""A consumer's rows made again from its topics in a shadow, and compared with the live ones while those go on.

Effects and progress commit together, so one snapshot of the live schema holds positions and rows that belong to each other. The
shadow is brought near, the snapshot opened, the shadow brought exactly to the snapshot's positions, and the two compared.
Live rows are only read. If it is killed anywhere, the next call goes on, or starts over if the code has changed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, text

from consumers.delivery.processor import Processor
from consumers.effects import Rebuild
from ops.delivery.outcomes import progress_of
from ops.delivery.registry import processor_of
from ops.pipeline.health import reader_engine
from ops.rebuild.checkpoint import usable_checkpoint, verified
from ops.rebuild.difference import RebuildDifference, Side, compare
from ops.rebuild.feeding import Feeder, ReportProgress, logs_of, skipped_of
from ops.rebuild.rebuildable import rebuild_of, repeatable
from ops.rebuild.schemas import Made, copy_rows, find_schema, make_schema, shadow_of
from outbox.clock import utc_now
from outbox.errors import Refused
from outbox.inbox import Log
from outbox.migrate import owner_engine
from outbox.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CODE = ("schemas", "outbox", "consumers", "ops/rebuild")
"""What decides how an event is applied; a shadow that other code has filled is started over."""

ROUNDS_MAX, NEAR = 20, 2_000
"""Records that may be left when the snapshot is opened."""


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """A shadow, compared."""

    consumer: str
    subject: Rebuild
    shadow: Made
    was_resumed: bool
    positions: Mapping[Log, int]
    """Where both sides stood."""
    records: int
    """Read by this call."""
    feed_s: float
    compare_s: float
    parked: int
    """Events that the handler rejects, in the shadow's parking lot."""
    difference: RebuildDifference


def rebuild(
    settings: Settings,
    consumer: str,
    *,
    processor: Processor | None = None,
    anew: bool = False,
    checkpoint: str = "",
    progress: ReportProgress = lambda _done, _total: None,
) -> Rebuilt:
    """The shadow holds the rows that the consumer's handler makes from its topics, up to the live positions; returns how live differs.

    Own transactions, as the owner and the service; live is only read, and may go on. May be repeated and cut off anywhere. Raises
    Refused where the logs are not whole and no checkpoint reaches them, or where live's rows do not belong to its positions.
    """
    chosen = processor or processor_of(settings, consumer)
    subject = rebuild_of(chosen)
    with alone(settings, consumer), reader_engine(settings).connect() as live:
        shadow, was_resumed = _shadow(settings, live, chosen, consumer, subject, anew=anew, checkpoint=checkpoint)
        skipped = skipped_of(live, chosen.service, consumer)
        live.commit()
        handler = repeatable(chosen, subject)
        feeder = Feeder(settings, handler, consumer, shadow.name, skipped=skipped, progress=progress)
        try:
            begun = time.monotonic()
            _near(live, chosen, feeder)
            live.execution_options(isolation_level="REPEATABLE READ")
            positions = _exactly(settings, live, chosen, feeder)
            fed = time.monotonic()
            difference = _compared(settings, live, chosen, feeder, subject)
        finally:
            feeder.engine.dispose()
    with reader_engine(settings).connect() as connection:
        parked = connection.execute(text(f"SELECT count(*) FROM {shadow.name}.parked")).scalar_one()  # noqa: S608
    return Rebuilt(
        consumer=consumer,
        subject=subject,
        shadow=shadow,
        was_resumed=was_resumed,
        positions=positions,
        records=feeder.records,
        feed_s=fed - begun,
        compare_s=time.monotonic() - fed,
        parked=parked,
        difference=difference,
    )


@contextmanager
def alone(settings: Settings, consumer: str) -> Generator[None]:
    """Nobody else rebuilds the consumer meanwhile; raises Refused if somebody does."""
    with owner_engine(settings).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        free = connection.execute(
            text("SELECT pg_try_advisory_lock(hashtextextended('rebuild ' || CAST(:consumer AS text), 0))"),
            {"consumer": consumer},
        ).scalar_one()
        if not free:
            raise Refused(f"{consumer} is being rebuilt by somebody else: wait for that to end, then repeat")
        yield


@contextmanager
def alone_with(settings: Settings, rebuilt: Rebuilt) -> Generator[None]:
    """The shadow is the one that was compared, and nobody else touches it meanwhile; raises Refused if it is not."""
    with alone(settings, rebuilt.consumer):
        with reader_engine(settings).connect() as connection:
            schema = find_schema(connection, rebuilt.shadow.name)
        if schema != rebuilt.shadow:
            name = rebuilt.shadow.name
            raise Refused(f"{name} was made again or dropped since it was compared: run the rebuild again")
        yield


def code_of() -> str:
    """Return what the code that applies events is, as a digest of its files."""
    digest = hashlib.sha256()
    for folder in CODE:
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _shadow(
    settings: Settings,
    live: Connection,
    processor: Processor,
    consumer: str,
    subject: Rebuild,
    *,
    anew: bool,
    checkpoint: str,
) -> tuple[Made, bool]:
    """Return the shadow, with a position in every log, and whether it goes on from an earlier call."""
    kept = progress_of(live, processor.service, consumer)
    logs = logs_of(settings, processor)  # after the positions: a log only grows
    base = usable_checkpoint(live, consumer, logs, kept, named=checkpoint)
    wanted = Made(
        name=shadow_of(processor.service),
        service=processor.service,
        consumer=consumer,
        purpose="shadow",
        at=utc_now(),
        code=code_of(),
        base=base.name if base else "",
        skips=skipped_of(live, processor.service, consumer).count,
    )
    shadow = find_schema(live, wanted.name)
    if shadow is not None and not anew and _goes_on(live, shadow, wanted, logs, kept):
        return shadow, True
    live.rollback()  # what it has read is locked against being dropped
    with owner_engine(settings).begin() as owner:
        _make(owner, wanted, subject, base, logs)
    return wanted, False


def _make(owner: Connection, wanted: Made, subject: Rebuild, base: Made | None, logs: Mapping[Log, range]) -> None:
    """The shadow is there, as its checkpoint is or empty, with a position in every log. Transaction: the caller's."""

    def fill() -> None:
        if base is not None:
            copy_rows(owner, wanted.name, base.name, (*subject.tables, *subject.kept))
            copy_rows(owner, wanted.name, base.name, ("inbox", "progress", "parked"))
        else:
            copy_rows(owner, wanted.name, wanted.service, subject.kept)
            _begin_at(owner, wanted, logs)
        _know_skipped(owner, wanted)

    make_schema(owner, wanted, fill=fill)
    if base is not None:
        verified(owner, subject, wanted.name)
        _begin_at(owner, wanted, logs)  # those that were not there yet


def _goes_on(live: Connection, shadow: Made, wanted: Made, logs: Mapping[Log, range], kept: Mapping[Log, int]) -> bool:
    """Return whether a shadow is of the same code, beginning and skips, and not ahead of live."""
    same = (shadow.consumer, shadow.code, shadow.base, shadow.skips) == (
        wanted.consumer,
        wanted.code,
        wanted.base,
        wanted.skips,
    )
    if not same:
        return False
    stands = progress_of(live, shadow.name, shadow.consumer)
    return set(logs) <= set(stands) and all(position <= kept.get(log, 0) for log, position in stands.items())


def _begin_at(owner: Connection, made: Made, logs: Mapping[Log, range]) -> None:
    """Each log that the schema has no position in begins at 0."""
    owner.execute(
        # Not ON CONFLICT: a shadow that is being filled has no primary keys yet.
        text(f"""INSERT INTO {made.name}.progress (consumer, cluster_id, topic, topic_id, partition, next_offset)
                 SELECT :consumer, :cluster_id, :topic, :topic_id, :partition, 0
                 WHERE NOT EXISTS (
                   SELECT FROM {made.name}.progress
                   WHERE consumer = :consumer AND cluster_id = :cluster_id AND topic = :topic AND topic_id = :topic_id
                     AND partition = :partition)"""),  # noqa: S608
        [
            {
                "consumer": made.consumer,
                "cluster_id": log.cluster_id,
                "topic": log.topic,
                "topic_id": log.topic_id,
                "partition": log.partition,
            }
            for log in logs
        ],
    )


def _know_skipped(owner: Connection, made: Made) -> None:
    """The shadow's inbox knows what operators have skipped, as the live one does."""
    owner.execute(
        text(f"""INSERT INTO {made.name}.inbox (consumer, event_id, topic, partition, "offset")
                 SELECT DISTINCT ON (event ->> 'event_id') :consumer, CAST(event ->> 'event_id' AS uuid), event ->> 'topic',
                        CAST(event ->> 'partition' AS integer), CAST(event ->> 'offset' AS bigint)
                 FROM {made.service}.parked_audit AS audit
                 WHERE action = 'SKIP' AND event ->> 'consumer' = :consumer AND event ->> 'event_id' IS NOT NULL
                   AND NOT EXISTS (SELECT FROM {made.name}.inbox AS known
                                   WHERE known.consumer = :consumer
                                     AND known.event_id = CAST(audit.event ->> 'event_id' AS uuid))"""),  # noqa: S608
        {"consumer": made.consumer},
    )


def _near(live: Connection, processor: Processor, feeder: Feeder) -> None:
    """Little is left between the shadow and live."""
    for _ in range(ROUNDS_MAX):
        with live.begin():
            end = progress_of(live, processor.service, feeder.consumer)
            begin = progress_of(live, shadow_of(processor.service), feeder.consumer)
        left = {log: stop for log, stop in end.items() if log in begin and stop > begin[log]}
        if sum(stop - begin[log] for log, stop in left.items()) <= NEAR:
            return
        feeder.feed(begin, left)


def _exactly(settings: Settings, live: Connection, processor: Processor, feeder: Feeder) -> dict[Log, int]:
    """The shadow is at the live position in the snapshot that this call opens; returns that position."""
    positions = progress_of(live, processor.service, feeder.consumer)
    _require_belonging(live, processor, feeder.consumer)
    with reader_engine(settings).connect() as beside:
        begin = progress_of(beside, shadow_of(processor.service), feeder.consumer)
    if added := [str(log) for log in positions if log not in begin]:
        raise Refused(f"{', '.join(added)} was added while the rebuild ran: run the rebuild again")
    feeder.feed(begin, positions)
    return positions


def _require_belonging(live: Connection, processor: Processor, consumer: str) -> None:
    """Live has applied nothing beyond its positions, as it would have after they were set back.

    The inbox does not say which of a topic's namesakes a row is of: the farthest position counts.
    """
    ahead = live.execute(
        text(f"""SELECT topic || '/' || partition AS place
                 FROM (SELECT consumer, topic, partition, "offset" FROM {processor.service}.inbox
                       UNION ALL SELECT consumer, topic, partition, "offset" FROM {processor.service}.inbox_behind) AS applied
                 JOIN (
                   SELECT topic, partition, max(next_offset) AS next_offset FROM {processor.service}.progress
                   WHERE consumer = :consumer GROUP BY topic, partition) AS stands USING (topic, partition)
                 WHERE consumer = :consumer AND "offset" >= next_offset LIMIT 1"""),  # noqa: S608 - a schema of ours
        {"consumer": consumer},
    ).scalar()
    if ahead is not None:
        raise Refused(
            f"{consumer} has applied events beyond its position in {ahead}, which was set back: let its worker catch up first"
        )


def _compared(
    settings: Settings, live: Connection, processor: Processor, feeder: Feeder, subject: Rebuild
) -> RebuildDifference:
    """Return how the snapshot differs from the shadow."""
    with reader_engine(settings).connect() as shadow:
        return compare(
            subject,
            Side(connection=live, schema=processor.service, consumer=feeder.consumer),
            Side(connection=shadow, schema=shadow_of(processor.service), consumer=feeder.consumer),
        )
