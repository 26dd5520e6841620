"""One run of reconcile: compares what should have happened with what did, since the last run or from the beginning."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from consumers.effects import BUSINESS_NO, COMMITTED, NO_EFFECT
from ops.delivery.outcomes import batched
from ops.delivery.registry import Consumer, known_consumers
from ops.pipeline.positions import consumer_positions
from ops.pipeline.source import passed_lsn
from ops.reconcile import state
from ops.reconcile.facts import kept_from, still_unrecorded, unrecorded
from ops.reconcile.findings import Finding, Kind
from ops.reconcile.outbox_rows import CHUNK, OutboxRow, beside, outbox_row_of, recorded
from ops.reconcile.present import effects_under
from ops.reconcile.published import Published, spot_of
from ops.reconcile.scan import CONNECTOR, FINDINGS_MAX, Outcome, Scan
from outbox.clock import first_id_at, time_of, utc_now
from outbox.database import database_now
from outbox.rows import as_json
from outbox.settings import Settings
from schemas.topics import TOPICS

GRACE = timedelta(minutes=10)
CLOCKS = timedelta(minutes=5)
"""How far the broker's clock may be behind the database's."""

log = logging.getLogger(__name__)

LSN_MAX = 2**63 - 1

# Rows as JSON, some thousands together: another service's statement takes them as they are.
_PARTS = """
    SELECT CAST(json_agg(json_build_object('event_id', event_id, 'business_no', business_no, 'effect', effect)) AS text)
    FROM (SELECT changed.*, row_number() OVER () / :size AS part FROM ({changed}) AS changed WHERE event_id >= :kept) AS numbered
    GROUP BY part"""

_TOUCHED = "SELECT DISTINCT event_id FROM ({changed}) AS changed WHERE event_id < :low"

_STRANGE = f"""
    SELECT written.* FROM json_to_recordset(CAST(:rows AS json)) AS written (event_id uuid, business_no text, effect text)
    WHERE NOT EXISTS (SELECT FROM {{service}}.outbox
                      WHERE outbox.id = written.event_id AND {BUSINESS_NO} = written.business_no)"""  # noqa: S608


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a run."""

    findings: list[Finding]
    closed: list[Finding]
    """Earlier findings that are fixed now."""
    waiting: dict[str, int]
    """Events older than the grace that are on their way, by what they wait for."""
    skipped: int
    events: int
    """Looked at."""
    since: datetime | None
    before: datetime | None
    upto: datetime | None
    """The checkpoint that this run leaves."""
    seconds: float

    @property
    def is_clean(self) -> bool:
        return not self.findings and not self.waiting


def reconcile(settings: Settings, *, full: bool = False, grace: timedelta = GRACE) -> Report:
    """Every difference in what is older than the grace is a finding, and stays in `reconcile.finding` until it is fixed.

    Looks at what is new since the last run, at whatever effect was written since, and at every open finding again; all of it
    with `full`. Own transactions; reads the services, writes only its own rows, at the end and at once. May be repeated and
    cut off anywhere. Raises Refused beside another run.
    """
    engine = state.engine_of(settings)
    try:
        with engine.connect() as connection:
            state.alone(connection)
            return ReconcileRun(engine, connection, settings, full=full, grace=grace).go()
    finally:
        engine.dispose()


class ReconcileRun:
    """One run's way through the services."""

    def __init__(
        self, engine: Engine, connection: Connection, settings: Settings, *, full: bool, grace: timedelta
    ) -> None:
        self._engine = engine
        self._connection = connection
        self._settings = settings
        self._consumers = list(known_consumers(settings).values())
        self._full = full
        self._began = time.monotonic()
        self._services = sorted({topic.service for topic in TOPICS})
        earlier, later = sorted((utc_now(), database_now(connection)))
        self._lsn = state.wal_position(connection)
        self._before = state.settled_before(connection, grace=grace, now=earlier)
        self._since, self._goes_back = self._begin(later)
        self._open = state.open_findings(connection)
        connection.commit()
        self._outcome = Outcome()

    def _begin(self, now: datetime) -> tuple[datetime | None, bool]:
        """Return the checkpoint, or None if a clock was set back since: what was recorded then may lie before it."""
        last = state.checkpoint(self._connection)
        if last is None:
            return None, False
        goes_back = last.upto > now or any(
            state.recorded_behind(self._connection, service, last) for service in self._services
        )
        if goes_back:
            log.warning("a clock was set back since checkpoint %s, so everything that is kept is looked at", last.upto)
        return (None, True) if goes_back else (last.upto, False)

    def go(self) -> Report:
        """Look, remember, and tell."""
        begin = None if self._full else self._since
        before = self._before or begin  # a prepared transaction: nothing new is looked at
        if before is None:
            return self._finish(set(), None)
        self._facts(begin, before)
        strays, touched = self._written(begin, before)
        looked = self._events(begin, before, touched)
        named = {(finding.consumer, finding.business_no, finding.effect) for finding in self._outcome.findings.values()}
        for stray in strays:
            if (stray.consumer, stray.business_no, stray.effect) not in named:
                self._outcome.add(stray)
        return self._finish(looked, before)

    def _facts(self, begin: datetime | None, before: datetime) -> None:
        """Return the facts that no event records, of the time and of earlier findings."""
        for service in self._services:
            findings = unrecorded(self._connection, service, since=begin, before=before, limit=FINDINGS_MAX)
            earlier = [
                finding.business_no
                for finding in self._open
                if finding.kind is Kind.UNRECORDED and finding.service == service
            ]
            for part in batched(earlier, CHUNK):
                findings += still_unrecorded(self._connection, service, part)
            for finding in findings:
                self._outcome.add(finding)
        self._connection.commit()

    def _written(self, begin: datetime | None, before: datetime) -> tuple[list[Finding], set[UUID]]:
        """Return the effects written in the time that no event calls for, and the older events whose effects were written in it."""
        strays: list[Finding] = []
        touched: set[UUID] = set()
        low = first_id_at(begin) if begin is not None else UUID(int=0)
        kept = max(first_id_at(kept_from(self._connection, service)) for service in self._services)
        about = {"since": begin or "-infinity", "before": before, "low": low, "kept": kept}
        for consumer in (known for known in self._consumers if known.effects.changed):
            changed = consumer.effects.changed.format(committed=COMMITTED)
            with self._engine.connect() as reading:
                touched |= set(reading.execute(text(_TOUCHED.format(changed=changed)), about).scalars())
                parts = reading.execute(
                    text(_PARTS.format(changed=changed)), {**about, "size": CHUNK}, execution_options={"yield_per": 1}
                )
                for part in parts.scalars():
                    strays += self._standing_strays(consumer, self._strange(consumer, part))
        for consumer in self._consumers:
            earlier = [
                finding
                for finding in self._open
                if finding.kind is Kind.STRAY_EFFECT and finding.consumer == consumer.name
            ]
            strays += self._standing_strays(consumer, earlier)
        return strays, touched

    def _strange(self, consumer: Consumer, part: str) -> Sequence[Any]:
        """Return those effects (JSON) whose event is in no outbox that the consumer follows, or is another's."""
        rows: Sequence[Any] = ()
        for service in dict.fromkeys(topic.service for topic in consumer.processor.topics):
            rows = self._connection.execute(text(_STRANGE.format(service=service)), {"rows": part}).all()
            if not rows:
                break
            part = as_json([dict(row._mapping) for row in rows])
        return rows

    def _standing_strays(self, consumer: Consumer, effects: Sequence[Any]) -> list[Finding]:
        """Return those effects that amount to something."""
        if not effects:
            return []
        numbers = sorted({effect.business_no for effect in effects})
        under = effects_under(self._connection, consumer.effects, numbers)
        return [
            Finding(
                kind=Kind.STRAY_EFFECT,
                service=consumer.service,
                consumer=consumer.name,
                event_id=effect.event_id,
                key=effect.business_no,
                business_no=effect.business_no,
                effect=effect.effect,
                found=f"there is {stands or 'a row'}, but no event calls for it",
            )
            for effect in effects
            if (stands := under.get(effect.business_no, {}).get(effect.effect)) is not None and stands not in NO_EFFECT
        ]

    def _events(self, begin: datetime | None, before: datetime, touched: set[UUID]) -> set[UUID]:
        """Look at the events of the time, of earlier findings, and at the touched ones; return of which findings it has."""
        low, high = first_id_at(begin) if begin is not None else UUID(int=0), first_id_at(before)
        earlier = {finding.event_id for finding in self._open if finding.event_id is not None}
        again = {identity for identity in earlier | touched if not low <= identity < high}
        about = {"low": low, "high": high}
        if not again and not any(self._exists(service, about) for service in self._services):
            return set()
        positions = {
            (position.consumer, *position.place): position.next_offset
            for position in consumer_positions(self._settings)
        }
        passed = passed_lsn(self._settings)
        scan = Scan(
            self._engine,
            self._settings,
            positions=positions,
            published_lsn=LSN_MAX if passed is None else passed,
            wanted=earlier,
            outcome=self._outcome,
        )
        for service in self._services:
            topics = [self._settings.topic_prefix + topic.name for topic in TOPICS if topic.service == service]
            with Published(topics) as published, self._engine.connect() as reading:
                published.look(self._settings, since=begin and begin - CLOCKS, wanted=again)
                rows = recorded(reading, service, "id >= :low AND id < :high", about)
                scan.look(beside(service, rows, published.in_order()), neighbours=True)
                self._again(scan, service, published, again)
                self._still_unpublished(scan, service, published)
        return scan.met

    def _exists(self, service: str, about: dict[str, UUID]) -> bool:
        statement = f"SELECT EXISTS (SELECT FROM {service}.outbox WHERE id >= :low AND id < :high)"  # noqa: S608
        return bool(self._connection.execute(text(statement), about).scalar())

    def _again(self, scan: Scan, service: str, published: Published, again: set[UUID]) -> None:
        """Look at single events again, those that the service's outbox has."""
        known = {finding.event_id: [spot] for finding in self._open if (spot := spot_of(finding.place))}
        missing = {finding.event_id for finding in self._open if finding.kind is Kind.UNPUBLISHED}

        def outbox_rows() -> Iterator[OutboxRow]:
            for part in batched(sorted(again), CHUNK):
                for row in recorded(self._connection, service, "id = ANY(:ids)", {"ids": part}):
                    spots = published.spots.get(row.id) or known.get(row.id)
                    yield outbox_row_of(service, row, spots or ([] if row.id in missing else None))

        scan.look(outbox_rows(), neighbours=False)

    def _still_unpublished(self, scan: Scan, service: str, published: Published) -> None:
        """What has come onto its topic meanwhile was on its way."""
        missing = {
            finding.event_id: finding
            for finding in self._outcome.findings.values()
            if finding.kind is Kind.UNPUBLISHED and finding.service == service and finding.event_id is not None
        }
        if missing:
            published.look(self._settings, since=None, wanted=missing.keys())
        for identity in missing.keys() & published.spots.keys():
            del self._outcome.findings[missing[identity].identity]
            scan.waits(identity, CONNECTOR)

    def _finish(self, looked: set[UUID], before: datetime | None) -> Report:
        """What was found, and what of earlier findings could not be looked at, is open; the checkpoint is as far as it may be."""
        findings = self._outcome.findings
        unseen = [
            earlier for earlier in self._open if earlier.identity not in findings and not self._is_seen(earlier, looked)
        ]
        closed = [earlier for earlier in self._open if earlier.identity not in findings and earlier not in unseen]
        stops = [
            moment
            for identity in (self._outcome.first_waiting, self._outcome.stopped_at)
            if identity is not None and (moment := time_of(identity)) is not None
        ]
        upto = min([before, *stops]) if before is not None else None
        state.remember(
            self._connection,
            findings=findings.values(),
            closed=closed,
            upto=upto,
            lsn=self._lsn,
            goes_back=self._goes_back,
        )
        self._connection.commit()
        kinds = list(Kind)
        ordered = sorted(
            [*findings.values(), *unseen], key=lambda finding: (kinds.index(finding.kind), finding.identity)
        )
        return Report(
            findings=ordered,
            closed=closed,
            waiting=dict(self._outcome.waiting),
            skipped=self._outcome.skipped,
            events=self._outcome.events,
            since=self._since,
            before=before,
            upto=upto,
            seconds=time.monotonic() - self._began,
        )

    def _is_seen(self, finding: Finding, looked: set[UUID]) -> bool:
        """Whether this run has looked at what an earlier one had found."""
        if finding.kind in (Kind.UNRECORDED, Kind.STRAY_EFFECT):
            return True
        return finding.event_id in looked
