"""A payment's rows and messages as steps of a story, causes before what they cause. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from ops.delivery.registry import Consumer
from ops.timeline.facts import PaymentFacts, cause_of
from ops.timeline.places import LOOK_MAX, Records
from outbox.quoting import quoted

MISSING = "missing"
WAITING = "waiting"
GRACE = timedelta(seconds=5)
"""An event recorded less than this ago may be on its way, though its slot has passed the place of its row: what is passed is
the commit of whoever came before it."""


@dataclass(frozen=True, kw_only=True)
class StoryStep:
    """Something that happened, or should have."""

    key: Hashable
    cause: Hashable = None
    """The key of what led to it."""
    at: datetime | None
    """When it could be seen; None of what has not happened."""
    where: str
    what: str
    detail: str = ""
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class ReadProgress:
    """How far slot, inboxes and consumers were before the rows were read: by it, what waits is not taken for missing."""

    at: datetime
    slot_found: bool
    confirmed_lsn: int
    """What was written before it is published."""
    remembered: Mapping[str, UUID]
    """Per service, the smallest event id that its inbox would still know."""
    positions: Mapping[tuple[str, str, int], int]
    """The next offset per consumer, topic and partition."""


def steps_of(
    facts: PaymentFacts,
    records: Mapping[UUID, Records],
    progress: ReadProgress,
    consumers: Mapping[str, Sequence[Consumer]],
) -> list[StoryStep]:
    """Return every step of a payment that its rows and messages tell, and those that are missing or waited for."""
    steps = [*_bank(facts), *_payment(facts)]
    steps += [step for row in facts.outbox for step in _outbox(facts, row)]
    event_ids = sorted(records, key=lambda event_id: event_id.int)
    for event_id in event_ids:
        steps += _records(facts, event_id, records[event_id], progress)
    for event_id in event_ids:
        steps += _consumers(facts, event_id, records[event_id], progress, consumers)
    return [*steps, *_parked(facts), *_effects(facts), *_notifications(facts)]


def _bank(facts: PaymentFacts) -> Iterator[StoryStep]:
    payment = facts.payment
    yield StoryStep(
        key="created", at=payment.created_at, where="payments.payment", what="CREATED", detail=payment.method
    )
    for row in facts.bank:
        number = row.transaction_no
        detail = f"{number} {row.amount_fen} fen" + (f": {row.reason}" if row.reason else "")
        transaction = ("bank", number)
        yield StoryStep(
            key=transaction,
            cause="created",
            at=row.committed_at,
            where="bank.transaction",
            what=row.status,
            detail=detail,
        )
    for row in facts.notified:
        yield StoryStep(
            key=("notified", row.webhook_id),
            cause=("notify", row.webhook_id),
            at=row.committed_at,
            where="payments.bank_notification",
            what="received",
            detail=f"{row.webhook_id} answered {row.answer_status} {row.answer}",
        )


def _payment(facts: PaymentFacts) -> Iterator[StoryStep]:
    """The states of the payment, each at the commit of the event that records it where there is one."""
    payment = facts.payment
    events = {row.type.split(".")[1]: row for row in facts.outbox if row.key == payment.payment_no}
    if request := events.get("balance_requested"):
        yield StoryStep(
            key="requested", cause="created", at=request.committed_at, where="payments.payment", what="PAYING"
        )
    if payment.status in ("SETTLED", "FAILED", "EXPIRED"):
        ending = events.get(payment.status.lower())
        yield StoryStep(
            key="ended",
            cause=_cause(facts, ending) if ending else "created",
            at=ending.committed_at if ending else payment.finished_at,
            where="payments.payment",
            what=payment.status,
            detail=payment.reason or "",
        )
        if ending is None and payment.status != "EXPIRED" and not _is_known(facts):
            yield StoryStep(
                key="unrecorded",
                cause="ended",
                at=None,
                where="payments.outbox",
                what=MISSING,
                detail=f"{payment.payment_no} is {payment.status}, but no outbox row records it, and no consumer has an effect of it",
                fix="payrelay reconcile",
            )
    for row in facts.suspense:
        yield StoryStep(
            key=("suspense", row.bank_transaction_no),
            cause=("bank", row.bank_transaction_no),
            at=row.committed_at,
            where="payments.suspense",
            what="recorded",
            detail=f"{row.bank_transaction_no} {row.amount_fen} fen: {row.reason}",
        )


def _is_known(facts: PaymentFacts) -> bool:
    return bool(
        facts.inbox or any(effect.of.follows_end for effect in facts.effects) or facts.notifications or facts.parked
    )


def _cause(facts: PaymentFacts, event: Any) -> Hashable:
    """What an event came from: another event, or the bank's transaction."""
    if (cause := cause_of(event)) is not None:
        return ("record", cause)
    if event.type.startswith("payment.balance_requested"):
        return "created"
    number = facts.payment.bank_transaction_no or next((row.transaction_no for row in facts.bank), None)
    return ("bank", number) if number else "created"


def _outbox(facts: PaymentFacts, row: Any) -> Iterator[StoryStep]:
    yield StoryStep(
        key=("outbox", row.id),
        cause=_cause(facts, row),
        at=row.committed_at,
        where=f"{row.service}.outbox",
        what=row.type,
        detail=f"{row.id} version {row.version} lsn {_lsn(row.lsn)}",
    )


def _records(facts: PaymentFacts, event_id: UUID, records: Records, progress: ReadProgress) -> Iterator[StoryStep]:
    """The event's messages; or that it waits to be published, or has been lost on the way."""
    for number, message in enumerate(records.found):
        yield StoryStep(
            key=("record", event_id, number) if number else ("record", event_id),
            cause=("outbox", event_id),
            at=message.at,
            where=str(message),
            what=message.type,
            detail=str(event_id) + (" again" if number else ""),
        )
    row = next((row for row in facts.outbox if row.id == event_id), None)
    if records.found or row is None:
        return
    waits = progress.slot_found and (row.lsn >= progress.confirmed_lsn or progress.at - row.committed_at < GRACE)
    detail, fix = f"{event_id} is not on the topic", f"payrelay connect snapshot --event {event_id} --execute"
    if waits:
        detail, fix = f"waits to be published: the slot is at {_lsn(progress.confirmed_lsn)}", "payrelay doctor"
    elif not records.all_seen:
        detail = f"{event_id} is not among the first {LOOK_MAX} messages of each partition after it was recorded"
    elif not progress.slot_found:
        fix = "payrelay doctor --repair-slot --execute"
    yield StoryStep(
        key=("record", event_id),
        cause=("outbox", event_id),
        at=None,
        where=row.topic,
        what=WAITING if waits else MISSING,
        detail=detail,
        fix=fix,
    )


def _consumers(
    facts: PaymentFacts,
    event_id: UUID,
    records: Records,
    progress: ReadProgress,
    consumers: Mapping[str, Sequence[Consumer]],
) -> Iterator[StoryStep]:
    """What each consumer of the event's topic has done about it."""
    applied = {row.consumer: row for row in facts.inbox if row.event_id == event_id}
    skipped = {row.consumer for row in facts.audited if row.event_id == event_id and row.action == "SKIP"}
    parked = {row.consumer for row in facts.parked if row.event_id == event_id}
    cause = ("record", event_id)
    name = _type(facts, event_id, records)
    for row in applied.values():
        yield StoryStep(
            key=("inbox", row.consumer, event_id),
            cause=cause,
            at=row.committed_at,
            where=f"{row.service}.inbox",
            what="skipped" if row.consumer in skipped else "applied",
            detail=f"{name} by {row.consumer}",
        )
    if not records.found:
        return  # the hole lies before the consumers
    first = records.found[0]
    for consumer in next((group for topic, group in consumers.items() if first.place[0].endswith(topic)), ()):
        is_done = consumer.name in applied or consumer.name in parked
        if not is_done and event_id.int >= progress.remembered[consumer.service].int:
            next_offset = progress.positions.get((consumer.name, *first.place), 0)
            yield _not_applied(consumer, event_id, name, next_offset, waits=next_offset <= first.offset)


def _not_applied(consumer: Consumer, event_id: UUID, name: str, next_offset: int, *, waits: bool) -> StoryStep:
    """Return the step that a consumer has still to take, or has passed by."""
    redeliver = f"payrelay replay redeliver --consumer {quoted(consumer.name)} --event {event_id} --execute"
    passed = "" if waits else ", past the message, and has not applied it"
    return StoryStep(
        key=("inbox", consumer.name, event_id),
        cause=("record", event_id),
        at=None,
        where=f"{consumer.service}.inbox",
        what=WAITING if waits else MISSING,
        detail=f"{name}: {consumer.name} is at {next_offset}{passed}",
        fix="payrelay status" if waits else redeliver,
    )


def _type(facts: PaymentFacts, event_id: UUID, records: Records) -> str:
    types = [message.type for message in records.found] + [row.type for row in facts.outbox if row.id == event_id]
    return next(iter(types), str(event_id))


def _parked(facts: PaymentFacts) -> Iterator[StoryStep]:
    for row in facts.parked:
        yield StoryStep(
            key=("parked", row.service, row.id),
            cause=("record", row.event_id),
            at=row.committed_at,
            where=f"{row.service}.parked",
            what=row.cause,
            detail=f"{row.service}:{row.id} {row.type or ''} by {row.consumer}: {row.error[:200]}",
            fix=f"payrelay parked retry {row.service}:{row.id} --execute",
        )
    for row in facts.audited:
        yield StoryStep(
            key=("audit", row.service, row.id),
            cause=("record", row.event_id),
            at=row.committed_at,
            where=f"{row.service}.parked_audit",
            what=f"{row.action} {row.outcome}",
            detail=f"{row.type or ''} by {row.actor} {row.reason} {row.error[:200]}".rstrip(),
        )


def _effects(facts: PaymentFacts) -> Iterator[StoryStep]:
    for effect in facts.effects:
        where, row = effect.of.where, effect.row
        yield StoryStep(
            key=(where, row.id),
            cause=("record", row.event_id) if row.event_id else (where, row.cause),
            at=row.committed_at,
            where=where,
            what=row.what,
            detail=row.detail,
        )


def _notifications(facts: PaymentFacts) -> Iterator[StoryStep]:
    for row in facts.notifications:
        written = ("notify", str(row.id))
        yield StoryStep(
            key=written,
            cause=("record", row.event_id),
            at=row.created_at,
            where=f"{row.service}.notify_record",
            what="CREATED",
            detail=f"{row.id} to {row.merchant_no}",
        )
        for attempt in (attempt for attempt in facts.attempts if attempt.record_id == row.id):
            answer = attempt.http_status or attempt.error
            yield StoryStep(
                key=("notify", str(row.id), attempt.attempt),
                cause=written,
                at=attempt.ended_at,
                where=f"{row.service}.notify_record_log",
                what=attempt.result,
                detail=f"attempt {attempt.attempt} took {_took_ms(attempt):.0f} ms: {answer}",
            )
        yield StoryStep(
            key=("notify", str(row.id), "end"),
            cause=written,
            at=row.finished_at,
            where=f"{row.service}.notify_record",
            what=row.status if row.finished_at else WAITING,
            detail=f"{row.attempts} attempts" + (f": {row.last_error}" if row.last_error else ""),
        )


def _took_ms(attempt: Any) -> float:
    return float((attempt.ended_at - attempt.started_at) / timedelta(milliseconds=1))


def _lsn(position: int) -> str:
    """Return a WAL position as PostgreSQL writes it.

    >>> _lsn(23_000_000_000)
    '5/5AE82600'
    """
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
