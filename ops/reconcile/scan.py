"""A run's look at events: recorded, published, delivered, with their effects. Services are read one by one, and joined here.

Of each service and some thousands of events, inbox, parking lot and effects are one snapshot. What a consumer had passed was
read before: what it has passed, it has applied or parked by then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, Row, text

from ops.applied import batched
from ops.reconcile.effects import FOLLOWERS, Effects, Follower, business_no
from ops.reconcile.facts import contradictions
from ops.reconcile.findings import Finding, Kind
from ops.reconcile.published import Spot
from ops.reconcile.verdict import Seen, Standing, judge
from outbox.settings import Settings
from schemas.codec import Envelope, Undecodable, decode_body
from schemas.events import EVENTS

CHUNK = 4_000
FINDINGS_MAX = 50_000
"""With so many, a run ends early, and its checkpoint before what it has not looked at."""


@dataclass(slots=True)
class Told:
    """An outbox row, and where its records lie."""

    service: str
    id: UUID
    topic: str
    key: str
    type: str
    correlation: str
    lsn: int
    envelope: Envelope | None
    spots: Sequence[Spot] | None
    """None: an earlier run has seen them, and not kept where."""

    @property
    def number(self) -> str:
        return business_no(self.envelope.event) if self.envelope is not None else self.key


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
        self._settings = settings
        self._positions = positions
        """Of consumer, topic and partition: the next offset."""
        self._published_lsn = published_lsn
        self._wanted = wanted
        self.met: set[UUID] = set()
        """Of the wanted events, those that were looked at."""
        self.outcome = outcome

    def look(self, events: Iterable[Told]) -> None:
        """Every hole of the events is among the findings."""
        with ThreadPoolExecutor(len(FOLLOWERS) + 1) as pool:
            for chunk in batched(events, CHUNK):
                if len(self.outcome.findings) > FINDINGS_MAX:
                    self.outcome.stopped_at = chunk[0].id
                    return
                self.outcome.events += len(chunk)
                self.met |= {told.id for told in chunk if told.id in self._wanted}
                looks = [pool.submit(self._follow, follower, chunk) for follower in FOLLOWERS]
                facts = pool.submit(self._compare, chunk)
                self._published(chunk)
                for told, findings, waits in [one for look in looks for one in look.result()]:
                    for finding in findings:
                        self.outcome.add(finding)
                    for what in waits:
                        self.outcome.waits(told.id, what)
                for finding in facts.result():
                    self.outcome.add(finding)

    def _published(self, chunk: Sequence[Told]) -> None:
        for told in chunk:
            if told.spots is None or told.spots:
                continue
            if told.lsn > self._published_lsn:
                self.outcome.waits(told.id, "the connector")
            else:
                self.outcome.add(_finding(told, Kind.UNPUBLISHED, found=f"no record of it on {told.topic}"))

    def _compare(self, chunk: Sequence[Told]) -> list[Finding]:
        events = [(told, told.envelope.event) for told in chunk if told.envelope is not None]
        with self._engine.connect() as connection:
            found = contradictions(connection, [event for _, event in events])
        return [_finding(told, Kind.CONTRADICTED, found=found[event]) for told, event in events if event in found]

    def _follow(self, follower: Follower, chunk: Sequence[Told]) -> list[tuple[Told, list[Finding], list[str]]]:
        """Return what is wrong with the events at one consumer, and what waits for it."""
        topics = {topic.name for topic in follower.processor.topics}
        events = [told for told in chunk if told.topic in topics]
        if not events:
            return []
        service, consumer = follower.processor.service, self._settings.group_prefix + follower.processor.name
        with self._engine.connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ")
            unknown = _unknown(connection, service, consumer, events)
            parked = _parked(connection, service, consumer, unknown) if unknown else {}
            found = standing(connection, follower, events)
            told_of = []
            for told in events:
                under = found.get(told.number, {})
                calls_for = _calls_for(follower, told, under)
                seen = Seen(
                    known=told.id not in unknown,
                    parked=parked.get(told.id, ""),
                    on_topic=told.spots is None or bool(told.spots),
                    passed=all(self._has_passed(consumer, spot) for spot in told.spots or ()),
                    found=under,
                )
                holes = judge(calls_for, seen)
                if holes is None or holes:
                    told_of.append((told, holes))
            suspects = [told.id for told, holes in told_of if holes and told.id not in unknown]
            skipped = _skipped(connection, service, consumer, suspects) if suspects else set()
        self.outcome.skipped += len(skipped)
        return [
            (
                told,
                [_finding(told, kind, service, consumer, effect, text_) for kind, effect, text_ in holes or []],
                [consumer] if holes is None else [],
            )
            for told, holes in told_of
            if told.id not in skipped
        ]

    def _has_passed(self, consumer: str, spot: Spot) -> bool:
        topic, partition, offset = spot
        return offset < self._positions.get((consumer, topic, partition), 0)


def _calls_for(follower: Follower, told: Told, under: Mapping[str, Standing]) -> Effects:
    if told.envelope is None:
        return {}
    return follower.expected(told.envelope, {effect: one.value for effect, one in under.items()})


def _finding(
    told: Told, kind: Kind, service: str = "", consumer: str = "", effect: str = "", found: str = ""
) -> Finding:
    return Finding(
        kind=kind,
        service=service or told.service,
        consumer=consumer,
        event_id=told.id,
        type=told.type,
        key=told.key,
        order_no=told.correlation,
        business_no=told.number,
        effect=effect,
        place="{}/{}@{}".format(*told.spots[0]) if told.spots else "",
        found=found,
    )


_UNKNOWN = """
    SELECT wanted.id FROM unnest(CAST(:ids AS uuid[])) AS wanted (id)
    WHERE NOT EXISTS (SELECT FROM {service}.inbox WHERE inbox.event_id = wanted.id AND consumer = :consumer)"""


def _unknown(connection: Connection, service: str, consumer: str, events: Sequence[Told]) -> set[UUID]:
    """Return which events the consumer's inbox does not know."""
    wanted = {"consumer": consumer, "ids": [told.id for told in events]}
    return set(connection.execute(text(_UNKNOWN.format(service=service)), wanted).scalars())


def _parked(connection: Connection, service: str, consumer: str, ids: Iterable[UUID]) -> dict[UUID, str]:
    rows = connection.execute(
        text(f"""SELECT event_id, '{service}:' || id || ' ' || cause || ' ' || left(error, 200) AS parked
                 FROM {service}.parked WHERE consumer = :consumer AND event_id = ANY(:ids)"""),  # noqa: S608
        {"consumer": consumer, "ids": list(ids)},
    )
    return {row.event_id: row.parked for row in rows}


def _skipped(connection: Connection, service: str, consumer: str, ids: Sequence[UUID]) -> set[UUID]:
    """Return which events an operator has taken out of the consumer's parking lot without applying them."""
    rows = connection.execute(
        text(f"""SELECT CAST(event ->> 'event_id' AS uuid) FROM {service}.parked_audit
                 WHERE outcome = 'SKIPPED' AND event ->> 'consumer' = :consumer
                   AND event ->> 'event_id' = ANY(:ids)"""),  # noqa: S608
        {"consumer": consumer, "ids": [str(identity) for identity in ids]},
    )
    return set(rows.scalars())


def standing(
    connection: Connection, follower: Follower, events: Sequence[Told] = (), numbers: Sequence[str] = ()
) -> dict[str, dict[str, Standing]]:
    """Return what stands under each business number at a consumer, by effect."""
    wanted = {
        "numbers": list(numbers) or list({told.number for told in events}),
        "ids": [told.id for told in events],
    }
    where = follower.looked_up if events else follower.named
    found: dict[str, dict[str, Standing]] = {}
    for row in connection.execute(text(follower.rows.format(where=where)), wanted):
        one = Standing(value=row.value, event_id=row.event_id, status=row.status or "")
        found.setdefault(row.business_no, {})[row.effect] = one
    return found


def recorded(connection: Connection, service: str, condition: str, about: Mapping[str, Any]) -> Iterator[Row[Any]]:
    """Give a service's outbox rows in the order of their ids, some thousands at a time."""
    statement = f"""SELECT id, topic, key, type, version, correlation, lsn, payload FROM {service}.outbox
                    WHERE {condition} ORDER BY id"""  # noqa: S608 - ours
    yield from connection.execute(text(statement), about, execution_options={"yield_per": CHUNK})


def told_of(service: str, row: Row[Any], spots: Sequence[Spot] | None) -> Told:
    """Return an outbox row as it is looked at."""
    return Told(
        service=service,
        id=row.id,
        topic=row.topic,
        key=row.key,
        type=row.type,
        correlation=row.correlation,
        lsn=row.lsn,
        envelope=envelope_of(row),
        spots=spots,
    )


def envelope_of(row: Row[Any]) -> Envelope | None:
    """Return the event of an outbox row; None where this version does not know it."""
    if row.type not in EVENTS:
        return None
    try:
        event = decode_body(row.type, row.payload.encode())
    except Undecodable:
        return None
    return Envelope(id=row.id, version=row.version, correlation=row.correlation, event=event)


def beside(service: str, rows: Iterable[Row[Any]], published: Iterable[tuple[UUID, Sequence[Spot]]]) -> Iterator[Told]:
    """Give each row with where its records lie. Both come in the order of ids."""
    records = iter(published)
    record = next(records, None)
    for row in rows:
        while record is not None and record[0] < row.id:
            record = next(records, None)
        yield told_of(service, row, record[1] if record is not None and record[0] == row.id else ())
