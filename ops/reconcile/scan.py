"""A run's look at events: recorded, published, delivered, with their effects. Services are read one by one, and joined here.

Of each service and some thousands of events, inbox, parking lot and effects are one snapshot. What a consumer had passed was
read before: what it has passed, it has applied or parked by then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from consumers.effects import ANSWERED
from ops.delivery.outcomes import batched
from ops.delivery.registry import Consumer, known_consumers
from ops.reconcile.facts import contradictions
from ops.reconcile.findings import Finding, Kind
from ops.reconcile.outbox_rows import CHUNK, OutboxRow
from ops.reconcile.present import NOTHING_THERE, effects_of
from ops.reconcile.published import Spot
from ops.reconcile.verdict import Hole, Observed, judge
from outbox.settings import Settings

CONNECTOR = "the connector"
FINDINGS_MAX = 50_000
"""With so many, a run ends early, and its checkpoint before what it has not looked at."""


@dataclass(kw_only=True)
class Outcome:
    """What a run has found so far."""

    events: int = 0
    findings: dict[tuple[str, ...], Finding] = field(default_factory=dict)
    waiting: Counter[str] = field(default_factory=Counter)
    """Events that are on their way, by what they wait for."""
    first_waiting: UUID | None = None
    skipped: int = 0
    """Events that an operator has skipped at a consumer."""
    stopped_at: UUID | None = None
    """Where so much was found that nothing was looked at any more."""

    def add(self, finding: Finding) -> None:
        """One finding more, or the same again."""
        self.findings[finding.identity] = finding

    def waits(self, identity: UUID, what: str) -> None:
        """The event is on its way: the checkpoint does not pass it."""
        self.waiting[what] += 1
        if self.first_waiting is None or identity < self.first_waiting:
            self.first_waiting = identity


@dataclass(slots=True, kw_only=True)
class AtConsumer:
    """What has become of some events at a consumer."""

    consumer: str
    findings: list[Finding] = field(default_factory=list)
    waiting: list[UUID] = field(default_factory=list)
    skipped: int = 0


class Scan:
    """Looks at events chunk by chunk."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        positions: Mapping[tuple[str, str, int], int],
        published_lsn: int,
        wanted: Set[UUID],
        outcome: Outcome,
    ) -> None:
        self._engine = engine
        self._consumers = list(known_consumers(settings).values())
        self._positions = positions
        """Of consumer, topic and partition: the next offset."""
        self._published_lsn = published_lsn
        self._wanted = wanted
        self.met: set[UUID] = set()
        """Of the wanted events, those that were looked at and are nowhere on their way: the checkpoint may be past them."""
        self.outcome = outcome

    def look(self, events: Iterable[OutboxRow], *, neighbours: bool) -> None:
        """Every hole of the events, which come in order, is among the findings. Neighbours: there are no others in between."""
        with ThreadPoolExecutor(len(self._consumers) + 1) as pool:
            for chunk in batched(events, CHUNK):
                if len(self.outcome.findings) > FINDINGS_MAX:
                    self.outcome.stopped_at = chunk[0].id
                    return
                self.outcome.events += len(chunk)
                self.met |= {outbox_row.id for outbox_row in chunk if outbox_row.id in self._wanted}
                looks = [pool.submit(self._consumed, consumer, chunk, neighbours) for consumer in self._consumers]
                facts = pool.submit(self._compare, chunk)
                self._published(chunk)
                for at_consumer in [look.result() for look in looks]:
                    self.outcome.skipped += at_consumer.skipped
                    for finding in at_consumer.findings:
                        self.outcome.add(finding)
                    for identity in at_consumer.waiting:
                        self.waits(identity, at_consumer.consumer)
                for finding in facts.result():
                    self.outcome.add(finding)

    def waits(self, identity: UUID, what: str) -> None:
        """The event is on its way, and what was found of it stays open."""
        self.outcome.waits(identity, what)
        self.met.discard(identity)

    def _published(self, chunk: Sequence[OutboxRow]) -> None:
        for outbox_row in chunk:
            if outbox_row.spots is None or outbox_row.spots:
                continue
            if outbox_row.lsn > self._published_lsn:
                self.waits(outbox_row.id, CONNECTOR)
            else:
                self.outcome.add(_finding(outbox_row, Kind.UNPUBLISHED, what=f"no message of it on {outbox_row.topic}"))

    def _compare(self, chunk: Sequence[OutboxRow]) -> list[Finding]:
        events = [(outbox_row, outbox_row.envelope.event) for outbox_row in chunk if outbox_row.envelope is not None]
        with self._engine.connect() as connection:
            problems = contradictions(connection, [event for _, event in events])
        return [
            _finding(outbox_row, Kind.CONTRADICTED, what=problems[event])
            for outbox_row, event in events
            if event in problems
        ]

    def _consumed(self, consumer: Consumer, chunk: Sequence[OutboxRow], neighbours: bool) -> AtConsumer:
        """Return what is wrong with the events at one consumer, and what waits for it."""
        topics = {topic.name for topic in consumer.processor.topics}
        events = [outbox_row for outbox_row in chunk if outbox_row.topic in topics]
        seen_there = AtConsumer(consumer=consumer.name)
        if not events:
            return seen_there
        holes: list[tuple[OutboxRow, list[Hole]]] = []
        with self._engine.connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ")
            for outbox_row, there in self._judged(connection, consumer, events, neighbours=neighbours):
                if there is None:
                    seen_there.waiting.append(outbox_row.id)
                else:
                    holes.append((outbox_row, there))
            ids = [outbox_row.id for outbox_row, _ in holes]
            skipped = _skipped(connection, consumer.service, consumer.name, ids) if holes else set()
        seen_there.skipped = len(skipped)
        seen_there.findings = [
            _finding(outbox_row, kind, consumer.service, consumer.name, effect, what)
            for outbox_row, there in holes
            if outbox_row.id not in skipped
            for kind, effect, what in there
        ]
        return seen_there

    def _judged(
        self, connection: Connection, consumer: Consumer, events: Sequence[OutboxRow], *, neighbours: bool
    ) -> Iterator[tuple[OutboxRow, list[Hole] | None]]:
        """Give the events that are not as they should be at a consumer, each with its holes; None for one that is on its way there."""
        service, name = consumer.service, consumer.name
        unknown = _unknown(connection, service, name, events, neighbours=neighbours)
        parked = _parked(connection, service, name, unknown) if unknown else {}
        numbers, ids = {outbox_row.number for outbox_row in events}, [outbox_row.id for outbox_row in events]
        present = effects_of(connection, consumer.effects, numbers, ids)
        for outbox_row in events:
            under = present.get(outbox_row.number, NOTHING_THERE)
            calls_for = consumer.effects.expected(outbox_row.envelope, under) if outbox_row.envelope is not None else {}
            is_known, status = outbox_row.id not in unknown, present.unanswered.get(outbox_row.number, ANSWERED)
            if calls_for == under and is_known and status == ANSWERED:  # as it should be: nearly all
                continue
            seen = Observed(
                known=is_known,
                parked=parked.get(outbox_row.id, ""),
                on_topic=outbox_row.spots is None or bool(outbox_row.spots),
                passed=all(self._has_passed(name, spot) for spot in outbox_row.spots or ()),
                present=under,
                status=status,
            )
            if (there := judge(calls_for, seen)) is None or there:
                yield outbox_row, there

    def _has_passed(self, consumer: str, spot: Spot) -> bool:
        topic, partition, offset = spot
        return offset < self._positions.get((consumer, topic, partition), 0)


def _finding(
    outbox_row: OutboxRow, kind: Kind, service: str = "", consumer: str = "", effect: str = "", what: str = ""
) -> Finding:
    return Finding(
        kind=kind,
        service=service or outbox_row.service,
        consumer=consumer,
        event_id=outbox_row.id,
        type=outbox_row.type,
        key=outbox_row.key,
        order_no=outbox_row.correlation,
        business_no=outbox_row.number,
        effect=effect,
        place="{}/{}@{}".format(*outbox_row.spots[0]) if outbox_row.spots else "",
        found=what,
    )


_UNKNOWN = """
    SELECT wanted.id FROM unnest(CAST(:ids AS uuid[])) AS wanted (id)
    EXCEPT
    SELECT event_id FROM {service}.inbox WHERE consumer = :consumer AND {among}
    EXCEPT
    SELECT event_id FROM {service}.inbox_behind WHERE consumer = :consumer AND {among}"""


def _unknown(
    connection: Connection, service: str, consumer: str, events: Sequence[OutboxRow], *, neighbours: bool
) -> set[UUID]:
    """Return which events the consumer's inbox does not know. Of neighbours it has the rows together: one stretch is read."""
    ids = [outbox_row.id for outbox_row in events]
    wanted = {"consumer": consumer, "ids": ids, "first": ids[0], "last": ids[-1]}
    among = "event_id BETWEEN :first AND :last" if neighbours else "event_id = ANY(:ids)"
    return set(connection.execute(text(_UNKNOWN.format(service=service, among=among)), wanted).scalars())


def _parked(connection: Connection, service: str, consumer: str, ids: Iterable[UUID]) -> dict[UUID, str]:
    """Return id and cause of the events that the consumer has parked; one that it could not read is known by its header."""
    wanted = list(ids)
    rows = connection.execute(
        text(f"""SELECT coalesce(event_id, CAST(headers ->> 'ce_id' AS uuid)) AS event_id,
                        '{service}:' || id || ' ' || cause || ' ' || left(error, 200) AS parked
                 FROM {service}.parked WHERE consumer = :consumer
                   AND (event_id = ANY(:ids) OR event_id IS NULL AND lower(headers ->> 'ce_id') = ANY(:texts))"""),  # noqa: S608
        {"consumer": consumer, "ids": wanted, "texts": [str(identity) for identity in wanted]},
    )
    return {row.event_id: row.parked for row in rows}


def _skipped(connection: Connection, service: str, consumer: str, ids: Sequence[UUID]) -> set[UUID]:
    """Return which events an operator has taken out of the consumer's parking lot without applying them."""
    rows = connection.execute(
        text(f"""SELECT id FROM (
                   SELECT lower(coalesce(event ->> 'event_id', event -> 'headers' ->> 'ce_id')) AS id
                   FROM {service}.parked_audit WHERE outcome = 'SKIPPED' AND event ->> 'consumer' = :consumer) AS skipped
                 WHERE id = ANY(:ids)"""),  # noqa: S608
        {"consumer": consumer, "ids": [str(identity) for identity in ids]},
    )
    return {UUID(identity) for identity in rows.scalars()}
