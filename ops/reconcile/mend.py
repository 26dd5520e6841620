"""Findings mended: by the functions of the services whose rows are missing, each step safe to repeat. First the plan, then the deed."""

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
from consumers.funds.corrections import record_deposit
from consumers.funds.effects import DECISION
from ops.delivery import parked
from ops.delivery.outcomes import batched
from ops.delivery.redeliver import redeliver_events
from ops.delivery.registry import Consumer, known_consumers
from ops.pipeline.snapshot import emit_again
from ops.reconcile import state
from ops.reconcile.corrections import correct_effect
from ops.reconcile.findings import Finding, Kind, is_correctable
from ops.reconcile.published import spot_of
from ops.reconcile.run import Report, reconcile
from ops.reconcile.scan import effects_of, envelope_of, recorded
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
RECORDABLE = ("payment.settled", "payment.failed", "payment.suspense_recorded", "funds.deposited")
"""Facts whose rows say all that their events did."""


@dataclass(frozen=True, kw_only=True)
class FixStep:
    """Something to be done about findings of one kind, at one place."""

    what: str
    kind: Kind
    at: str
    """The consumer, or the service."""
    findings: Sequence[Finding]
    by_hand: bool = False
    """Nothing is done: an operator has to look."""


@dataclass(kw_only=True)
class Mended:
    """What came of a step."""

    step: FixStep
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """By event or business number, why it is as it was."""


WHAT = {
    Kind.UNRECORDED: "record the event from the fact's row",
    Kind.UNPUBLISHED: "emit the outbox row again, by the connector",
    Kind.UNDELIVERED: "redeliver the event",
    Kind.NO_EFFECT: "apply the event, which the inbox knows, once",
    Kind.FORGOTTEN: "note the event in the inbox",
    Kind.PARKED: "retry the event's key",
    Kind.WRONG_EFFECT: "correct the effect, by an entry of its own",
    Kind.STRAY_EFFECT: "take the effect back, by an entry of its own",
}
"""In this order: what comes later may need what comes before."""

VOUCHERS = {
    (Kind.WRONG_EFFECT, "accounting"): "reverse the voucher, and post its correction",
    (Kind.STRAY_EFFECT, "accounting"): "reverse the voucher",
}


def plan(settings: Settings, findings: Sequence[Finding]) -> list[FixStep]:
    """Return what would be done, in order; last, what only an operator can mend. Reads only."""
    told_before = _told_before(settings, [finding for finding in findings if finding.kind is Kind.UNRECORDED])
    steps: list[FixStep] = []
    left: list[Finding] = []
    by_kind: dict[tuple[Kind, str], list[Finding]] = {}
    for finding in findings:
        if _is_mendable(finding, told_before):
            by_kind.setdefault((finding.kind, finding.consumer or finding.service), []).append(finding)
        else:
            left.append(finding)
    for kind, what in WHAT.items():
        steps += [
            FixStep(what=VOUCHERS.get((kind, group[0].service), what), kind=kind, at=at, findings=group)
            for (of, at), group in by_kind.items()
            if of is kind
        ]
    groups: dict[tuple[Kind, str], list[Finding]] = {}
    for finding in left:
        groups.setdefault((finding.kind, finding.consumer or finding.service), []).append(finding)
    return steps + [
        FixStep(what=_by_hand(kind), kind=kind, at=at, findings=group, by_hand=True)
        for (kind, at), group in groups.items()
    ]


def _is_mendable(finding: Finding, told_before: set[str]) -> bool:
    match finding.kind:
        case Kind.UNRECORDED:
            return finding.type in RECORDABLE and finding.business_no not in told_before
        case Kind.WRONG_EFFECT | Kind.STRAY_EFFECT:
            return is_correctable(finding.consumer) and finding.effect != DECISION
        case _:
            return finding.kind in WHAT


def _by_hand(kind: Kind) -> str:
    if kind is Kind.UNTOLD:
        return "nothing: the notifier sends it"
    if kind is Kind.UNRECORDED:
        return "by hand: its row says too little, or its effects are there already"
    return "by hand"


def _told_before(settings: Settings, findings: Sequence[Finding]) -> set[str]:
    """Return the business numbers that some consumer has an effect of: they were told, under a row that is gone."""
    numbers = sorted({finding.business_no for finding in findings})
    announced: set[str] = set()
    if not numbers:
        return announced
    engine = state.engine_of(settings)
    try:
        with engine.connect() as connection:
            for consumer in (known for known in known_consumers(settings).values() if known.effects.changed):
                for part in batched(numbers, 4_000):
                    announced |= effects_of(connection, consumer, numbers=part).keys()
    finally:
        engine.dispose()
    return announced


AWAY = (PayrelayError, SQLAlchemyError, KafkaException, OSError)
"""What fails one step or finding: refused, or a server away, even after a deadlock was tried again. The others are done."""


def carry_out(settings: Settings, steps: Sequence[FixStep], *, actor: str, within_s: float) -> Iterator[Mended]:
    """Each step is done, or its failures say why not; gives them one after the other.

    Own transactions, as the services, one for each event or correction. May be repeated and cut off anywhere: what is mended
    is left alone.
    """
    with _Hands(settings, actor) as hands:
        for step in steps:
            mended = Mended(step=step)
            try:
                if not step.by_hand:
                    hands.do(step, mended, within_s)
            except AWAY as error:
                mended.failed[step.at] = message_of(error)
            yield mended


def settle(settings: Settings, steps: Sequence[FixStep], *, grace: timedelta, within_s: float) -> Report:
    """Return the first report that names nothing any more of what was mended; the last one before the time is over, else."""
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

    def do(self, step: FixStep, mended: Mended, within_s: float) -> None:
        """The step is done."""
        match step.kind:
            case Kind.UNPUBLISHED:
                self._emit(step, mended, within_s)
            case Kind.UNDELIVERED:
                self._redeliver(step, mended)
            case Kind.PARKED:
                self._retry(step, mended)
            case _:
                events = self._events(step.findings)
                for finding in step.findings:
                    _note(mended, finding, lambda current=finding: self._one(current, events))  # type: ignore[misc]

    def _emit(self, step: FixStep, mended: Mended, within_s: float) -> None:
        ids: dict[str, list[UUID]] = {}
        for finding in step.findings:
            if finding.event_id is not None:
                ids.setdefault(finding.service, []).append(finding.event_id)
        emit_again(self._settings, ids, within_s=within_s)
        mended.done = len(step.findings)

    def _redeliver(self, step: FixStep, mended: Mended) -> None:
        ids = [finding.event_id for finding in step.findings if finding.event_id is not None]
        outcome = redeliver_events(self._settings, step.at, ids, execute=True)
        mended.done = outcome.applied + outcome.known + outcome.superseded
        mended.failed = {str(identity): why for identity, why in (outcome.failed | outcome.refused).items()}
        mended.failed |= {str(identity): "it is in no outbox" for identity in outcome.missing}

    def _retry(self, step: FixStep, mended: Mended) -> None:
        act = Act(action=Action.RETRY, actor=self._actor, reason=REASON)
        queues = {}
        with self._reader.connect() as connection:
            for finding in step.findings:
                for queue in parked.queues(connection, parked.ParkedFilter(identity=finding.effect), limit=1):
                    queues[queue.id] = queue
        for queue, drained in parked.retry(self._settings, list(queues.values()), act):
            mended.done += drained.applied + drained.known
            if drained.cause is not None:
                mended.failed[queue.id] = f"{drained.cause} {drained.error}"

    def _one(self, finding: Finding, events: Mapping[UUID, Envelope]) -> str:
        """One finding is mended; returns why not, or nothing."""
        if finding.kind is Kind.UNRECORDED:
            return self._record(finding)
        consumer = self._consumers[finding.consumer]
        envelope = events.get(finding.event_id) if finding.event_id is not None else None
        if finding.kind is Kind.STRAY_EFFECT:
            return self._correct(finding, envelope, "")
        if envelope is None:
            return "its outbox row is gone"
        if finding.kind is Kind.NO_EFFECT:
            if self._is_answered(envelope):
                return "funds has decided and answered it, and would decide again by the balance of now: by hand"
            done = reapply(self._engine(finding.service), consumer.processor, finding.consumer, envelope)
            return (
                ""
                if done.outcome in (ReapplyOutcome.APPLIED, ReapplyOutcome.STANDS)
                else f"{done.outcome} {done.error}"
            )
        if finding.kind is Kind.FORGOTTEN:
            remember(self._engine(finding.service), finding.consumer, _arrival(finding, envelope), finding.key)
            return ""
        return self._correct(finding, envelope, _wanted(self._reader, consumer, finding, envelope))

    def _is_answered(self, envelope: Envelope) -> bool:
        """Whether it asks for a decision that others have been told of: it is never made a second time."""
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

    def _correct(self, finding: Finding, envelope: Envelope | None, wanted: str) -> str:
        """The effect is what is wanted, or nothing."""
        consumer = self._consumers[finding.consumer]
        why = {"reason": f"{REASON}: {finding.found}"[:200], "actor": self._actor}

        def step(connection: Connection) -> None:
            correct_effect(connection, consumer, finding, envelope, wanted, **why)

        transact(self._engine(finding.service), step)
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


def _wanted(reader: Engine, consumer: Consumer, finding: Finding, envelope: Envelope) -> str:
    """Return what an event calls for of one effect, as things stand."""
    with reader.connect() as connection:
        under = effects_of(connection, consumer, numbers=[finding.business_no]).get(finding.business_no, {})
    return consumer.effects.expected(envelope, under).get(finding.effect, "")


def _arrival(finding: Finding, envelope: Envelope) -> Arrival:
    topic, partition, offset = spot_of(finding.place) or (envelope.event.topic.name, -1, -1)
    return Arrival(
        event_id=envelope.id,
        log=Log(cluster_id="", topic=topic, topic_id="", partition=partition),
        offset=offset,
    )


def _note(mended: Mended, finding: Finding, act: Callable[[], str]) -> None:
    try:
        failure = act()
    except AWAY as error:
        failure = error_line(error)
    if failure:
        mended.failed[str(finding.event_id or finding.business_no)] = failure
    else:
        mended.done += 1
