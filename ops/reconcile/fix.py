"""Fixes findings with the functions of the services whose rows are missing. The plan comes first, and each step is safe to repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from confluent_kafka import KafkaException
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from consumers.delivery.processor import error_line
from consumers.delivery.repair import ReapplyOutcome, reapply, remember
from consumers.delivery.retry import transact
from consumers.funds.missing import record_deposit
from ops.delivery import parked
from ops.delivery.outcomes import batched
from ops.delivery.redeliver import redeliver_events
from ops.delivery.registry import Consumer, known_consumers
from ops.pipeline.snapshot import emit_again
from ops.reconcile import state
from ops.reconcile.correct import correct
from ops.reconcile.findings import Finding, Kind
from ops.reconcile.outbox_rows import envelope_of, recorded
from ops.reconcile.plan import FixStep
from ops.reconcile.published import spot_of
from ops.reconcile.run import Report, reconcile
from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.errors import PayrelayError, message_of
from outbox.inbox import Arrival, Log
from outbox.parking import Act, Action
from outbox.settings import Settings
from producers.payments.missing import record_ended, record_suspense
from schemas.codec import Envelope
from schemas.events import BalancePaymentRequested
from schemas.topics import TOPICS

POLL_S = 0.5
REASON = "payrelay reconcile --fix"


@dataclass(kw_only=True)
class FixOutcome:
    """The outcome of a step."""

    step: FixStep
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """By event or business number, why it is not fixed."""


AWAY = (PayrelayError, SQLAlchemyError, KafkaException, OSError)
"""What fails one step or finding: refused, or a server away, even after a deadlock was tried again. The others are done."""


def carry_out(settings: Settings, steps: Sequence[FixStep], *, actor: str, within_s: float) -> Iterator[FixOutcome]:
    """Each step is done, or its failures say why not; gives their outcomes one after the other.

    Own transactions, as the services, one for each event or correction. May be repeated and cut off anywhere: what is fixed
    is left alone.
    """
    with _Hands(settings, actor) as hands:
        for step in steps:
            outcome = FixOutcome(step=step)
            try:
                if not step.by_hand:
                    hands.do(step, outcome, within_s)
            except AWAY as error:
                outcome.failed[step.at] = message_of(error)
            yield outcome


def settle(settings: Settings, steps: Sequence[FixStep], *, grace: timedelta, within_s: float) -> Report:
    """Return the first report that names nothing any more of what was fixed; if time runs out first, the last report."""
    wanted = {finding.identity for step in steps if not step.by_hand for finding in step.findings}
    deadline = time.monotonic() + within_s
    while True:
        report = reconcile(settings, grace=grace)
        if not any(finding.identity in wanted for finding in report.findings) or time.monotonic() > deadline:
            return report
        time.sleep(POLL_S)


class _Hands:
    """What acts, with an engine for each service."""

    def __init__(self, settings: Settings, actor: str) -> None:
        self._settings = settings
        self._actor = actor
        self._engines: dict[str, Engine] = {}
        self._consumers = known_consumers(settings)
        self._reader = state.engine_of(settings)

    def __enter__(self) -> _Hands:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in (*self._engines.values(), self._reader):
            engine.dispose()

    def _engine(self, service: str) -> Engine:
        if service not in self._engines:
            self._engines[service] = engine_for(self._settings.dsn_of(service), name="reconcile", pool_size=1)
        return self._engines[service]

    def do(self, step: FixStep, outcome: FixOutcome, within_s: float) -> None:
        """The step is done."""
        match step.kind:
            case Kind.UNPUBLISHED:
                self._emit(step, outcome, within_s)
            case Kind.UNDELIVERED:
                self._redeliver(step, outcome)
            case Kind.PARKED:
                self._retry(step, outcome)
            case _:
                events = self._events(step.findings)
                for finding in step.findings:
                    _note(outcome, finding, lambda current=finding: self._fix(current, events))  # type: ignore[misc]

    def _emit(self, step: FixStep, outcome: FixOutcome, within_s: float) -> None:
        ids: dict[str, list[UUID]] = {}
        for finding in step.findings:
            if finding.event_id is not None:
                ids.setdefault(finding.service, []).append(finding.event_id)
        emit_again(self._settings, ids, within_s=within_s)
        outcome.done = len(step.findings)

    def _redeliver(self, step: FixStep, outcome: FixOutcome) -> None:
        ids = [finding.event_id for finding in step.findings if finding.event_id is not None]
        redelivered = redeliver_events(self._settings, step.at, ids, execute=True)
        outcome.done = redelivered.applied + redelivered.known + redelivered.superseded
        outcome.failed = {str(identity): why for identity, why in (redelivered.failed | redelivered.refused).items()}
        outcome.failed |= {str(identity): "it is in no outbox" for identity in redelivered.missing}

    def _retry(self, step: FixStep, outcome: FixOutcome) -> None:
        act = Act(action=Action.RETRY, actor=self._actor, reason=REASON)
        queues = {}
        with self._reader.connect() as connection:
            for finding in step.findings:
                for queue in parked.queues(connection, parked.ParkedFilter(identity=finding.effect), limit=1):
                    queues[queue.id] = queue
        for queue, drained in parked.retry(self._settings, list(queues.values()), act):
            outcome.done += drained.applied + drained.known
            if drained.cause is not None:
                outcome.failed[queue.id] = f"{drained.cause} {drained.error}"

    def _fix(self, finding: Finding, events: Mapping[UUID, Envelope]) -> str:
        """The finding is fixed; returns why not, or nothing."""
        if finding.kind is Kind.UNRECORDED:
            return self._record(finding)
        consumer = self._consumers[finding.consumer]
        envelope = events.get(finding.event_id) if finding.event_id is not None else None
        if finding.kind is Kind.STRAY_EFFECT:
            return self._correct(consumer, finding, None)
        if envelope is None:
            return "its outbox row is gone"
        if finding.kind is Kind.NO_EFFECT:
            if self._is_answered(envelope):
                return "funds has answered it, and would decide again by today's balance: correct it by hand"
            done = reapply(self._engine(finding.service), consumer.processor, finding.consumer, envelope)
            return (
                ""
                if done.outcome in (ReapplyOutcome.APPLIED, ReapplyOutcome.STANDS)
                else f"{done.outcome} {done.error}"
            )
        if finding.kind is Kind.FORGOTTEN:
            remember(self._engine(finding.service), finding.consumer, _arrival(finding, envelope), finding.key)
            return ""
        return self._correct(consumer, finding, envelope)

    def _is_answered(self, envelope: Envelope) -> bool:
        """Return whether the event asks for a decision that was already announced: it is never made a second time."""
        if not isinstance(envelope.event, BalancePaymentRequested):
            return False
        with self._reader.connect() as connection:
            statement = text(
                "SELECT EXISTS (SELECT FROM funds.outbox WHERE id >= :id AND causation = CAST(:id AS text))"
            )
            return bool(connection.execute(statement, {"id": envelope.id}).scalar())

    def _record(self, finding: Finding) -> str:
        def step(connection: Connection) -> None:
            if finding.type == "funds.deposited":
                record_deposit(connection, finding.business_no)
            elif finding.type == "payment.suspense_recorded":
                record_suspense(connection, finding.business_no)
            else:
                record_ended(connection, [finding.business_no])

        transact(self._engine(finding.service), step)
        return ""

    def _correct(self, consumer: Consumer, finding: Finding, envelope: Envelope | None) -> str:
        correct(
            self._engine(finding.service), consumer.effects, finding.business_no, finding.effect, envelope,
            event_id=finding.event_id, reason=f"{REASON}: {finding.found}"[:200], actor=self._actor, at=utc_now(),
        )  # fmt: skip
        return ""

    def _events(self, findings: Sequence[Finding]) -> dict[UUID, Envelope]:
        ids = {finding.event_id for finding in findings if finding.event_id is not None}
        events: dict[UUID, Envelope] = {}
        with self._reader.connect() as connection:
            for service in sorted({topic.service for topic in TOPICS}):
                for part in batched(sorted(ids), 4_000):
                    for row in recorded(connection, service, "id = ANY(:ids)", {"ids": part}):
                        if (envelope := envelope_of(row)) is not None:
                            events[row.id] = envelope
        return events


def _arrival(finding: Finding, envelope: Envelope) -> Arrival:
    topic, partition, offset = spot_of(finding.place) or (envelope.event.topic.name, -1, -1)
    return Arrival(
        event_id=envelope.id,
        log=Log(cluster_id="", topic=topic, topic_id="", partition=partition),
        offset=offset,
    )


def _note(outcome: FixOutcome, finding: Finding, act: Callable[[], str]) -> None:
    try:
        failure = act()
    except AWAY as error:
        failure = error_line(error)
    if failure:
        outcome.failed[str(finding.event_id or finding.business_no)] = failure
    else:
        outcome.done += 1
