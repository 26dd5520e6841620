"""What the tables and topics hold of one payment, as read: each service's rows by themselves, every look-up by an index.

Outboxes have no index of keys. An event is found there by its id, which its effects and what it has caused tell, or by its key
within a minute of the times that the payment's own rows tell: ids carry their time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.effects import PaymentRows
from consumers.notification.effects import ATTEMPTS, NOTIFICATIONS
from consumers.notification.queues import QUEUES
from ops.delivery.registry import Consumer, known_consumers
from ops.reconcile.facts import fact_tables
from outbox.clock import first_id_at
from outbox.settings import Settings
from schemas.topics import TOPICS

MARGIN = timedelta(minutes=1)
"""How far an event's id may be from the times that rows tell: clocks differ, and a transaction takes its time."""


@dataclass(kw_only=True)
class PaymentFacts:
    """One payment's rows. Each has `committed_at`, when it could be seen; a row that was changed since tells its last change."""

    payment: Any
    bank: list[Any]
    notified: list[Any]
    """Notifications that the platform has answered."""
    suspense: list[Any]
    outbox: list[Any]
    inbox: list[Any]
    effects: list[Effect]
    """What the payment's events have caused at their consumers, and what people have put beside it."""
    notifications: list[Any]
    attempts: list[Any]
    """To deliver a notification, each with how it went."""
    parked: list[Any]
    audited: list[Any]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A row of a payment at a consumer, as the consumer's effects.py reads it."""

    of: PaymentRows
    row: Any


def consumers_by_topic(settings: Settings) -> dict[str, list[Consumer]]:
    """Return the consumers of each topic, by the name that the outbox calls it."""
    consumers: dict[str, list[Consumer]] = {topic.name: [] for topic in TOPICS}
    for consumer in known_consumers(settings).values():
        for topic in consumer.processor.topics:
            consumers[topic.name].append(consumer)
    return consumers


def payments_of(connection: Connection, number: str, *, merchant_no: str = "", limit: int = 100) -> list[Any]:
    """Return the payments of an order, which is a merchant's own number, or the one of a payment number; oldest first."""
    rows = connection.execute(_PAYMENTS, {"number": number, "merchant_no": merchant_no, "limit": limit})
    return list(rows)


# By the unique index of merchant and order: a probe for each merchant, on every version of PostgreSQL.
_PAYMENTS = text("""
    WITH wanted AS (
      SELECT payment_no FROM payments.merchant
      CROSS JOIN LATERAL (SELECT payment_no FROM payments.payment
                          WHERE payment.merchant_no = merchant.merchant_no AND order_no = :number LIMIT 1) AS its_payment
      UNION SELECT payment_no FROM payments.payment WHERE payment_no = :number)
    SELECT payment.*, pg_xact_commit_timestamp(payment.xmin) AS committed_at
    FROM wanted JOIN payments.payment USING (payment_no)
    WHERE :merchant_no = '' OR merchant_no = :merchant_no
    ORDER BY created_at, payment_no LIMIT :limit""")


def read_facts(connection: Connection, settings: Settings, payment: Any) -> PaymentFacts:
    """Return everything that the tables hold of a payment. Reads only; the caller's connection is the reader's."""

    def rows(statement: str, **parameters: Any) -> list[Any]:
        return list(connection.execute(text(statement), {"payment_no": payment.payment_no, **parameters}))

    bank, suspense = rows(_BANK), rows(_SUSPENSE)
    numbers = [payment.payment_no]
    numbers += sorted({row.transaction_no for row in bank} | {row.bank_transaction_no for row in suspense})
    consumers = known_consumers(settings)
    effects = [
        Effect(of=stated, row=row)
        for consumer in consumers.values()
        for stated in consumer.effects.payment_rows
        for row in rows(stated.rows, numbers=numbers)
    ]
    services = {name: consumer.service for name, consumer in consumers.items()}
    parked, audited = _lots(connection, services, numbers)
    caused = [*(effect.row for effect in effects), *parked, *audited]
    known = {row.event_id for row in caused if row.event_id}
    times = [payment.created_at, payment.finished_at, payment.committed_at]
    times += [row.committed_at for row in (*bank, *suspense, *caused)]
    times += [row.at for statement in _announced() for row in rows(statement, numbers=numbers)]
    outbox = _events(connection, numbers, known=known, times=times)
    ids = known | {row.id for row in outbox}
    notifications, attempts = [], []
    for queue, service in QUEUES.items():
        notifications += rows(NOTIFICATIONS.format(service=service), queue=queue, ids=list(ids))
        attempts += rows(ATTEMPTS.format(service=service), notifications=[row.id for row in notifications])
    return PaymentFacts(
        payment=payment,
        bank=bank,
        notified=rows(_NOTIFIED, ids=[str(row.id) for row in notifications]),
        suspense=suspense,
        outbox=outbox,
        inbox=_inboxes(connection, services, ids),
        effects=[effect for effect in effects if effect.of.shown],
        notifications=notifications,
        attempts=attempts,
        parked=parked,
        audited=audited,
    )


def _announced() -> list[str]:
    """Return statements that tell when rows of the :numbers came to be what an event tells of, as their services state it.

    An event that no consumer has applied yet is found by this.
    """
    return [
        f"SELECT nullif({fact.happened_at}, '-infinity') AS at FROM {table.table} "  # noqa: S608 - names of ours
        f"WHERE {table.number} = ANY (:numbers) AND {fact.condition}"
        for table in fact_tables()
        for fact in table.facts
    ]


_BANK = """
    SELECT transaction_no, status, reason, amount_fen, created_at,
           coalesce(pg_xact_commit_timestamp(xmin), created_at) AS committed_at
    FROM bank.transaction WHERE payment_no = :payment_no"""

_NOTIFIED = """
    SELECT webhook_id, answer_status, answer, coalesce(pg_xact_commit_timestamp(xmin), received_at) AS committed_at
    FROM payments.bank_notification WHERE webhook_id = ANY (:ids)"""

# Money that no order could take is rare: few rows.
_SUSPENSE = """
    SELECT bank_transaction_no, amount_fen, reason, coalesce(pg_xact_commit_timestamp(xmin), recorded_at) AS committed_at
    FROM payments.suspense WHERE payment_no = :payment_no"""

_EVENT = """
    SELECT '{service}' AS service, id, topic, key, version, type, correlation, causation, lsn,
           coalesce(pg_xact_commit_timestamp(xmin), created_at) AS committed_at
    FROM {service}.outbox WHERE {which} ORDER BY id"""


def _events(
    connection: Connection, keys: Sequence[str], *, known: Collection[UUID], times: Iterable[datetime | None]
) -> list[Any]:
    """Return the outbox rows of these keys within the margin of the times, those of known ids, and what caused any of them."""
    services = sorted({topic.service for topic in TOPICS})
    events: dict[UUID, Any] = {}

    def look(which: str, **parameters: Any) -> None:
        for service in services:
            statement = text(_EVENT.format(service=service, which=which))
            events.update((row.id, row) for row in connection.execute(statement, parameters))

    for begin, end in spans_around(times, MARGIN):
        look(
            "id >= :begin AND id < :end AND key = ANY (:keys)",
            begin=first_id_at(begin),
            end=first_id_at(end),
            keys=keys,
        )
    tried: set[UUID] = set()
    while ids := (set(known) | causes(events.values())) - events.keys() - tried:
        look("id = ANY (:ids)", ids=list(ids))
        tried |= ids
    return sorted(events.values(), key=lambda row: row.id.int)


def causes(events: Iterable[Any]) -> set[UUID]:
    """Return the ids of what outbox rows say has caused them."""
    return {cause for row in events if (cause := cause_of(row)) is not None}


def cause_of(event: Any) -> UUID | None:
    """Return the id of the event that caused an outbox row's; None where nothing did: its causation is then its correlation."""
    has_none = event.causation is None or event.causation == event.correlation
    return None if has_none else UUID(event.causation)


def spans_around(times: Iterable[datetime | None], margin: timedelta) -> list[tuple[datetime, datetime]]:
    """Return the spans within a margin of times, those that meet made one.

    >>> from datetime import UTC
    >>> at = datetime(2026, 11, 23, tzinfo=UTC)
    >>> [str(end - begin) for begin, end in spans_around([at + MARGIN, None, at, at + 5 * MARGIN], MARGIN)]
    ['0:03:00', '0:02:00']
    """
    spans: list[tuple[datetime, datetime]] = []
    for at in sorted(time for time in times if time is not None):
        if spans and at - margin <= spans[-1][1]:
            spans[-1] = (spans[-1][0], at + margin)
        else:
            spans.append((at - margin, at + margin))
    return spans


def _inboxes(connection: Connection, consumers: Mapping[str, str], ids: Collection[UUID]) -> list[Any]:
    inboxes: list[Any] = []
    for consumer, service in consumers.items():
        statement = text(f"""
            SELECT '{service}' AS service, consumer, event_id, topic, partition, "offset",
                   coalesce(pg_xact_commit_timestamp(xmin), applied_at) AS committed_at
            FROM {service}.inbox WHERE consumer = :consumer AND event_id = ANY (:ids)
            UNION ALL
            SELECT '{service}', consumer, event_id, topic, partition, "offset",
                   coalesce(pg_xact_commit_timestamp(xmin), applied_at)
            FROM {service}.inbox_behind WHERE consumer = :consumer AND event_id = ANY (:ids)""")  # noqa: S608
        inboxes += connection.execute(statement, {"consumer": consumer, "ids": list(ids)})
    return inboxes


def _lots(connection: Connection, consumers: Mapping[str, str], keys: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """Return what is parked of these keys, and what was done about parked events of them."""
    parked: list[Any] = []
    audited: list[Any] = []
    for service in sorted(set(consumers.values())):
        own = {"consumers": [name for name, owner in consumers.items() if owner == service], "keys": keys}
        parked += connection.execute(text(_PARKED.format(service=service)), own)
        audited += connection.execute(text(_AUDITED.format(service=service)), own)
    return parked, audited


_PARKED = """
    SELECT '{service}' AS service, id, consumer, event_id, type, topic, partition, "offset", cause, error, attempts,
           parked_at AS committed_at
    FROM {service}.parked WHERE consumer = ANY (:consumers) AND sha256(key) IN (
      SELECT sha256(convert_to(key, 'UTF8')) FROM unnest(CAST(:keys AS text[])) AS wanted (key))
    ORDER BY id"""

# Rows that people have caused: few.
_AUDITED = """
    SELECT '{service}' AS service, id, action, outcome, error, reason, actor, event ->> 'consumer' AS consumer,
           CAST(event ->> 'event_id' AS uuid) AS event_id, event ->> 'type' AS type,
           coalesce(pg_xact_commit_timestamp(xmin), acted_at) AS committed_at
    FROM {service}.parked_audit
    WHERE event ->> 'consumer' = ANY (:consumers) AND event ->> 'key' IN (
      SELECT '\\x' || encode(convert_to(key, 'UTF8'), 'hex') FROM unnest(CAST(:keys AS text[])) AS wanted (key))
    ORDER BY id"""
