"""Payments with holes in their way, planted one by one: real rows, real records, real processors, and the faults that make such holes.

Before the processors start: what a consumer's inbox knows beforehand it will not apply; what is recorded while the publication
does not hold the outbox is on no topic; what a handler with a fault has done stands as it did it. Afterwards, inbox rows are
taken away again, by the tables' owner.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from consumers.delivery.processor import Processor
from consumers.funds.funds import deposit
from consumers.processors import PROCESSORS as CONSUMERS
from ops.pipeline.positions import consumer_positions
from ops.reconcile.findings import Finding
from ops.stack.parts import tied
from ops.stack.state import ROOT, StackFolder
from outbox.clock import first_id_at, utc_now
from outbox.database import driver_url
from outbox.inbox import Arrival, Log, arrive
from outbox.migrate import owner_engine
from outbox.publication import PUBLICATION
from outbox.record import Outgoing, record
from outbox.rows import as_json
from producers.payments.orders import Limits, open_account, register_merchant
from schemas.codec import Envelope
from schemas.events import BalancePaymentRequested, Event, PaymentFailed, PaymentSettled, SuspenseRecorded
from schemas.money import CNY
from schemas.topics import PAYMENT_ORDER

MERCHANTS, PAYERS = 8, 40
SECRET = "whsec_" + "YmVuY2htYXJr" * 4
BATCH = 2_000
DRAINED_S = 180.0
POLL_S, QUIET = 0.3, 3
AMOUNT_FEN = 10_000

PROCESSORS = {name: processor for name, processor in CONSUMERS.items() if processor.service != "bank"}
"""What is paid here is paid without a bank: its own notifications are not among what is planted."""
FIRST = ("funds", "points", "accounting", "notification")
"""The processors whose events are there from the beginning; settlement's are what funds has answered."""

Named = tuple[str, str, str]
"""A finding's kind, consumer and business number."""

_PAYMENTS = text("""
    INSERT INTO payment (payment_no, merchant_no, order_no, payer_no, amount_fen, currency, request_sha256, status, version,
                         limit_day, fee_fen, points, bank_transaction_no, reason, created_at, expires_at, finished_at, cost_fen,
                         method)
    SELECT payment_no, merchant_no, order_no, payer_no, amount_fen, currency, '', status, 1, current_date, fee_fen, points,
           bank_transaction_no, reason, now(), now(), CASE WHEN status <> 'PAYING' THEN now() END, cost_fen, method
    FROM json_to_recordset(CAST(:rows AS json))
        AS payment (payment_no text, merchant_no text, order_no text, payer_no text, amount_fen bigint, currency text, status text,
                    fee_fen bigint, points bigint, bank_transaction_no text, reason text, cost_fen bigint, method text)""")

_SUSPENSE = text("""
    INSERT INTO suspense (bank_transaction_no, payment_no, amount_fen, currency, reason, recorded_at)
    VALUES (:bank_transaction_no, :payment_no, :amount_fen, :currency, :reason, :recorded_at)""")


def fresh_id() -> UUID:
    """Return a UUIDv7 of now that no row has."""
    return UUID(int=first_id_at(utc_now()).int | 7 << 76 | 2 << 62 | uuid4().int & (1 << 62) - 1)


class Field:
    """Payments on a stack whose processors are started here, and the holes planted among them."""

    def __init__(self, folder: StackFolder) -> None:
        self.folder = folder
        self.settings = folder.settings()
        self.planted: set[Named] = set()
        self.run = f"h{uuid4().hex[:6]}"
        self.events = 0
        self._number = 0
        self._engines: dict[str, Engine] = {}
        self._inbox: list[tuple[str, list[UUID]]] = []
        """Of consumers, what their inboxes are to forget."""
        self._parked: list[str] = []
        self._open_accounts()

    def close(self) -> None:
        """No connection is left."""
        for engine in self._engines.values():
            engine.dispose()

    def engine(self, role: str) -> Engine:
        """Return an engine of a service, or of the tables' owner."""
        if role not in self._engines:
            self._engines[role] = (
                owner_engine(self.settings)
                if role == "owner"
                else create_engine(driver_url(self.settings.dsn_of(role)), poolclass=NullPool)
            )
        return self._engines[role]

    def _open_accounts(self) -> None:
        limits = Limits(single_fen=10**12, daily_fen=10**14, monthly_fen=10**14)
        with self.engine("payments").begin() as connection:
            for number in range(MERCHANTS):
                key = f"{self.run}-{number}"
                register_merchant(connection, f"{self.run}-M{number}", api_key=key, secret=SECRET, fee_rate_bp=60)
            for number in range(PAYERS):
                open_account(connection, f"{self.run}-U{number}", bank_account_no="", limits=limits)
        with self.engine("funds").begin() as connection:
            for number in range(PAYERS):
                deposit(
                    connection,
                    f"{self.run}-D{number}",
                    payer_no=f"{self.run}-U{number}",
                    amount_fen=10**9,
                    currency=CNY,
                    at=utc_now(),
                )
        self.events += PAYERS

    # ---- payments ----------------------------------------------------------------------------------------------------

    def _about(self, what: str) -> dict[str, Any]:
        self._number += 1
        return {
            "payment_no": f"{self.run}-{what}-{self._number}",
            "order_no": f"{self.run}-O{self._number}",
            "merchant_no": f"{self.run}-M{self._number % MERCHANTS}",
            "payer_no": f"{self.run}-U{self._number % PAYERS}",
            "amount_fen": AMOUNT_FEN + self._number % 1_000,
            "currency": CNY,
        }

    def _settled(self, what: str = "settled") -> PaymentSettled:
        about = self._about(what)
        return PaymentSettled(
            **about,
            fee_fen=about["amount_fen"] * 60 // 10_000,
            fee_rule="rate 60 bp",
            points=about["amount_fen"] // 100,
            bank_transaction_no=f"B-{about['payment_no']}",
            settled_at=utc_now(),
        )

    def _failed(self) -> PaymentFailed:
        return PaymentFailed(**self._about("failed"), reason="insufficient balance", failed_at=utc_now())

    def _requested(self, what: str = "balance") -> BalancePaymentRequested:
        about = self._about(what)
        return BalancePaymentRequested(
            **about, fee_fen=60, fee_rule="fixed 60", points=about["amount_fen"] // 100, requested_at=utc_now()
        )

    def _suspended(self) -> SuspenseRecorded:
        about = self._about("suspense")
        return SuspenseRecorded(
            payment_no=about["payment_no"],
            amount_fen=about["amount_fen"],
            currency=CNY,
            bank_transaction_no=f"B-{about['payment_no']}",
            reason="no such order",
            recorded_at=utc_now(),
        )

    def record(self, events: Sequence[Event]) -> list[Envelope]:
        """The payments are as their events say, and their outbox rows are there, a transaction for some thousands."""
        recorded: list[Envelope] = []
        for first in range(0, len(events), BATCH):
            part = events[first : first + BATCH]
            with self.engine("payments").begin() as connection:
                self._write(connection, part)
                outgoing = [
                    Outgoing(event=event, version=1, correlation=getattr(event, "order_no", event.key))
                    for event in part
                ]
                ids = record(connection, outgoing)
            recorded += [
                Envelope(id=identity, version=1, correlation=outgoing_event.correlation, event=outgoing_event.event)
                for identity, outgoing_event in zip(ids, outgoing, strict=True)
            ]
        self.events += len(events)
        return recorded

    def _write(self, connection: Connection, events: Sequence[Event]) -> None:
        """The facts' own rows are there."""
        for event in events:
            if isinstance(event, SuspenseRecorded):
                connection.execute(_SUSPENSE, msgspec.structs.asdict(event))
        rows = [_row(event) for event in events if not isinstance(event, SuspenseRecorded)]
        connection.execute(_PAYMENTS, {"rows": as_json(rows)})

    def pay(self, count: int) -> None:
        """So many payments have ended well, or are on their way there: most by card, some failed, from the balance, in suspense."""
        makers: list[Callable[[], Event]] = (
            [self._settled] * 96 + [self._failed] * 2 + [self._requested, self._suspended]
        )
        self.record([makers[number % 100]() for number in range(count)])

    # ---- holes, before the processors start --------------------------------------------------------------------------

    def plant(self, count: int) -> None:
        """So many holes of every kind are planted that must be there before the processors run."""
        self._plant_unrecorded(count)
        self._plant_unpublished(count)
        for name in FIRST:
            undelivered = self.record([self._settled("undelivered") for _ in range(count)])
            self._know(name, undelivered, then_forget=True)
            self.planted |= {("undelivered", name, envelope.event.key) for envelope in undelivered}
            without = self.record([self._settled("no_effect") for _ in range(count)])
            self._know(name, without)
            self.planted |= {("no_effect", name, envelope.event.key) for envelope in without}
        for name in FIRST[:3]:
            wrong = self.record([self._settled("wrong") for _ in range(count)])
            self._handle(PROCESSORS[name], [_altered(envelope) for envelope in wrong])
            self._know(name, wrong)
            self.planted |= {("wrong_effect", name, envelope.event.key) for envelope in wrong}
        for name in FIRST:
            stray = [
                Envelope(id=fresh_id(), version=1, correlation=event.order_no, event=event)
                for event in (self._settled("stray") for _ in range(count))
            ]
            self._handle(PROCESSORS[name], stray)
            self.planted |= {("stray_effect", name, envelope.event.key) for envelope in stray}
            forgotten = self.record([self._settled("forgotten") for _ in range(count)])
            self._inbox.append((name, [envelope.id for envelope in forgotten]))
            self.planted |= {("forgotten", name, envelope.event.key) for envelope in forgotten}
        contradicted = self.record([self._settled("contradicted") for _ in range(count)])
        self.planted |= {("contradicted", "", envelope.event.key) for envelope in contradicted}
        untold = self.record([self._settled("untold") for _ in range(count)])
        self.planted |= {("untold", "notification", envelope.event.key) for envelope in untold}
        self._plant_parked(count)
        for kind in ("undelivered", "no_effect"):
            self.record([self._requested(f"{kind}-answer") for _ in range(count)])

    def _plant_unrecorded(self, count: int) -> None:
        """Orders that ended, and nobody has recorded it."""
        events = [self._settled("unrecorded") for _ in range(count)]
        with self.engine("payments").begin() as connection:
            self._write(connection, events)
        self.planted |= {("unrecorded", "", event.key) for event in events}

    def _plant_unpublished(self, count: int) -> None:
        """Rows that are written while the publication does not hold the table."""
        with self.engine("owner").begin() as connection:
            connection.execute(text(f"ALTER PUBLICATION {PUBLICATION} DROP TABLE payments.outbox"))
        events = self.record([self._settled("unpublished") for _ in range(count)])
        with self.engine("owner").begin() as connection:
            connection.execute(text(f"ALTER PUBLICATION {PUBLICATION} ADD TABLE payments.outbox"))
        self.events -= count
        self.planted |= {("unpublished", "", envelope.event.key) for envelope in events}

    def _plant_parked(self, count: int) -> None:
        """Events that funds' tables do not take while they are delivered."""
        events = self.record([self._settled("parked") for _ in range(count)])
        self._parked = [envelope.event.key for envelope in events]
        self.planted |= {("parked", "funds", key) for key in self._parked}
        with self.engine("owner").begin() as connection:
            connection.execute(
                text(f"ALTER TABLE funds.entry ADD CONSTRAINT fault CHECK (payment_no NOT LIKE '{self.run}-parked-%')")
            )

    def _know(self, name: str, events: Sequence[Envelope], *, then_forget: bool = False) -> None:
        """The consumer's inbox knows the events, which it has not applied."""
        consumer, service = self.settings.group_prefix + name, PROCESSORS[name].service
        log = Log(cluster_id="", topic=events[0].event.topic.name, topic_id="", partition=0)
        with self.engine(service).begin() as connection:
            arrive(connection, consumer, [Arrival(event_id=envelope.id, log=log, offset=0) for envelope in events])
        if then_forget:
            self._inbox.append((name, [envelope.id for envelope in events]))

    def _handle(self, processor: Processor, events: Sequence[Envelope]) -> None:
        with self.engine(processor.service).begin() as connection:
            processor.handle(connection, events)

    # ---- holes, once they have run -----------------------------------------------------------------------------------

    def plant_answers(self, count: int) -> None:
        """Before settlement starts: of funds' answers, its inbox knows some beforehand."""
        for kind in ("undelivered", "no_effect"):
            with self.engine("owner").connect() as connection:
                rows = connection.execute(
                    text("SELECT id, key FROM funds.outbox WHERE key LIKE :like ORDER BY id LIMIT :count"),
                    {"like": f"{self.run}-{kind}-answer-%", "count": count},
                ).all()
            log = Log(cluster_id="", topic="funds.transfer", topic_id="", partition=0)
            with self.engine("payments").begin() as connection:
                arrive(connection, "settlement", [Arrival(event_id=row.id, log=log, offset=0) for row in rows])
            if kind == "undelivered":
                self._inbox.append(("settlement", [row.id for row in rows]))
            self.planted |= {(kind, "settlement", row.key) for row in rows}

    def finish(self) -> None:
        """What only the tables' owner can do is done: inbox rows taken away, amounts changed, a fault fixed, merchants notified."""
        with self.engine("owner").begin() as connection:
            for name, ids in self._inbox:
                connection.execute(
                    text(
                        f"DELETE FROM {PROCESSORS[name].service}.inbox "  # noqa: S608 - ours
                        "WHERE consumer = :consumer AND event_id = ANY(:ids)"
                    ),
                    {"consumer": self.settings.group_prefix + name, "ids": ids},
                )
            self._contradict(connection, 1)
            connection.execute(text("ALTER TABLE funds.entry DROP CONSTRAINT fault"))
        self.answer_all(but="untold")

    def answer_all(self, *, but: str = "nothing") -> None:
        """Notifications count as answered, except for some payments; no merchant was notified."""
        with self.engine("owner").begin() as connection:
            connection.execute(
                text("""UPDATE notification.notify_record
                        SET status = 'SUCCESS', finished_at = clock_timestamp(), attempts = attempts + 1, leased_until = NULL
                        WHERE finished_at IS NULL AND payment_no NOT LIKE :like"""),
                {"like": f"{self.run}-{but}-%"},
            )

    def _contradict(self, connection: Connection, amount_fen: int) -> None:
        connection.execute(
            text("UPDATE payments.payment SET amount_fen = amount_fen + :amount WHERE payment_no LIKE :like"),
            {"amount": amount_fen, "like": f"{self.run}-contradicted-%"},
        )

    def fix_by_hand(self) -> None:
        """What no command fixes is fixed as an operator would: the order's amount, and the record that was none."""
        with self.engine("owner").begin() as connection:
            self._contradict(connection, -1)
            connection.execute(
                text("DELETE FROM notification.notify_record WHERE payment_no LIKE :like"),
                {"like": f"{self.run}-stray-%"},
            )

    # ---- processors --------------------------------------------------------------------------------------------------

    @contextmanager
    def workers(self, names: Sequence[str]) -> Iterator[None]:
        """Worker processes run meanwhile, one for each of the names, or for several with blanks between them."""
        environment = {**os.environ, "PAYRELAY_HOME": str(self.folder.home), "PAYRELAY_STACK": self.folder.name}
        log = (self.folder.path / "holes.log").open("ab")
        processes = [
            subprocess.Popen(
                tied([sys.executable, "-m", "ops.cli.main", "worker", *name.split()]),
                env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
            for name in names
        ]  # fmt: skip
        try:
            yield
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)
            log.close()

    def drained(self, names: Sequence[str] = tuple(PROCESSORS)) -> None:
        """Every payment's record is on its topic, and those of both topics are behind these consumers' progress, for a while."""
        deadline, quiet = time.monotonic() + DRAINED_S, 0
        consumers = {self.settings.group_prefix + name for name in names}
        while quiet < QUIET:
            positions = [position for position in consumer_positions(self.settings) if position.consumer in consumers]
            ends = {
                position.place: position.high
                for position in positions
                if position.place[0].endswith(PAYMENT_ORDER.name)
            }
            begun = {position.consumer for position in positions} == consumers
            is_done = (
                begun and sum(ends.values()) >= self._expected() and not any(position.behind for position in positions)
            )
            quiet = quiet + 1 if is_done else 0
            if time.monotonic() > deadline:
                raise TimeoutError(f"not drained after {DRAINED_S:.0f} s: {positions}")
            time.sleep(POLL_S)

    def _expected(self) -> int:
        """How many records the topic of payments must hold at least."""
        return self.events - PAYERS


def named(findings: Sequence[Finding]) -> list[Named]:
    """Return findings as they were planted."""
    return [(str(finding.kind), finding.consumer, finding.business_no) for finding in findings]


def _altered(envelope: Envelope) -> Envelope:
    """Return an event as a handler with a fault might take it."""
    event = msgspec.structs.replace(
        envelope.event,
        amount_fen=envelope.event.amount_fen + 1,  # type: ignore[attr-defined]
        points=envelope.event.points + 1,  # type: ignore[attr-defined]
    )
    return Envelope(id=envelope.id, version=envelope.version, correlation=envelope.correlation, event=event)


_STATUS = {PaymentSettled: "SETTLED", PaymentFailed: "FAILED", BalancePaymentRequested: "PAYING"}


def _row(event: Event) -> dict[str, Any]:
    row = {name: getattr(event, name, None) for name in ("payment_no", "merchant_no", "order_no", "payer_no", "amount_fen", "currency")}  # fmt: skip
    status = _STATUS[type(event)]
    if isinstance(event, PaymentSettled):
        row |= {"fee_fen": event.fee_fen, "points": event.points, "cost_fen": event.cost_fen}
    is_balance = isinstance(event, BalancePaymentRequested)
    return row | {
        "status": status,
        "method": "balance" if is_balance else "bank_card",
        "bank_transaction_no": None if is_balance else f"B-{event.key}",
        "reason": getattr(event, "reason", None),
    }
