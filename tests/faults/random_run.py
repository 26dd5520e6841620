"""A random fault run: three workers on one topic, parts of the stack and workers failing by plan, events all the while."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import OffsetSpec
from msgspec.structs import asdict
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from ops.ledger.integrity import ledger_problems
from ops.ledger.reads import check
from ops.stack.state import StackFolder
from outbox.clock import utc_now
from schemas.codec import encode
from schemas.events import PaymentSettled, SuspenseRecorded
from tests.applied import Verdict, applied, judge
from tests.factories import settled, suspense
from tests.faults.plan import VERSIONS, WORKERS, Act, Kind, plan_of, records_of
from tests.pipeline import Pipeline, Worker, engine_of, fresh_id
from tests.waiting import eventually

PARTITIONS = 6
END_S = 20.0
"""A worker that is asked to end has this long, as its supervisor would give it."""
DRAIN_S = 90.0


_MERCHANT = "INSERT INTO payments.merchant VALUES (:merchant_no, :merchant_no, 'whsec_', 0) ON CONFLICT DO NOTHING"
_PAYER = "INSERT INTO payments.account VALUES (:payer_no, 'A', 1, 1, 1) ON CONFLICT DO NOTHING"
_PAYMENT = """
    INSERT INTO payments.payment (payment_no, merchant_no, order_no, payer_no, amount_fen, currency, request_sha256, status,
      limit_day, fee_fen, points, bank_transaction_no, created_at, expires_at, finished_at)
    VALUES (:payment_no, :merchant_no, :order_no, :payer_no, :amount_fen, :currency, '', 'SETTLED',
      :settled_at, :fee_fen, :points, :bank_transaction_no, :settled_at, :settled_at, :settled_at)"""
_SUSPENSE = """
    INSERT INTO payments.suspense VALUES (:bank_transaction_no, :payment_no, :amount_fen, :currency, :reason, :recorded_at)"""


@dataclass(kw_only=True)
class RandomRun:
    """One run on a stack that nothing else uses meanwhile."""

    seed: int
    events: int
    duration_s: float
    pipeline: Pipeline
    folder: StackFolder
    timeline: list[str] = field(default_factory=list)
    workers: dict[int, Worker] = field(default_factory=dict)
    frozen: dict[int, int] = field(default_factory=dict)
    """Process numbers that stand still, by how they were named."""
    leaving: list[tuple[Worker, float]] = field(default_factory=list)
    joined: list[Worker] = field(default_factory=list)
    records: int = 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def prefix(self) -> str:
        return self.pipeline.settings.topic_prefix

    def run(self) -> Verdict:
        """The plan was carried out, everything is back, nothing waits any more; returns what became of the events."""
        acts = plan_of(self.seed, duration_s=self.duration_s)
        self.pipeline.add_partitions(PARTITIONS)
        for number in range(WORKERS):
            self._start(number)
        for worker in list(self.workers.values()):
            self.pipeline.ready(worker, within_s=60)
        self.begun = time.monotonic()
        sending = _Sending(self)
        sending.start()
        try:
            steps = [(act.at_s, self._begin, act) for act in acts]
            steps += [(act.at_s + act.lasts_s, self._finish, act) for act in acts]
            for at_s, step, act in sorted(steps, key=lambda step: step[0]):
                self._wait_until(at_s)
                step(act)
            self._wait_until(self.duration_s)
        finally:
            self.thaw_all()
            sending.stop.set()
        sending.join(DRAIN_S)
        assert not sending.is_alive(), "not everything was sent"
        assert sending.failure is None
        return self._drain(Counter(act.kind for act in acts))

    def _wait_until(self, at_s: float) -> None:
        def due() -> bool:
            self._restart_dead()
            return time.monotonic() - self.begun >= at_s

        eventually(due, within_s=self.duration_s, what=f"{at_s} s")

    def _restart_dead(self) -> None:
        """Whatever ended by itself starts again, as under a supervisor."""
        for number, worker in list(self.workers.items()):
            if (code := worker.process.poll()) is not None:
                self.tell(f"  worker {number} ended by itself, exit {code}: started again")
                self._start(number)

    def tell(self, what: str) -> None:
        self.timeline.append(f"{time.monotonic() - self.begun:7.1f} s  {what}")

    def _start(self, number: int) -> None:
        self.workers[number] = self._worker()

    def _worker(self) -> Worker:
        return self.pipeline.start(entry=["tests.faults.recording_worker"])

    # ---- acts --------------------------------------------------------------------------------------------------

    def _begin(self, act: Act) -> None:
        number = -1 if act.worker is None else act.worker
        match act.kind:
            case Kind.LEAVE:
                self._leave(self.workers.pop(number))
            case Kind.KILL:
                self.workers.pop(number).kill()
            case Kind.FREEZE:
                self._freeze(number, self.workers[number].process.pid)
            case Kind.JOIN:
                self.joined.append(self._worker())
            case Kind.POSTGRES_KILL:
                os.kill(self._pid_of("postgres"), signal.SIGKILL)
            case Kind.BROKER_KILL:
                os.kill(self._pid_of("kafka"), signal.SIGKILL)
            case Kind.BROKER_FREEZE:
                self._freeze(-1, self._pid_of("kafka"))
            case Kind.POSTGRES_AWAY:  # its supervisor is stopped meanwhile, or it would restart PostgreSQL at once
                pid = self._pid_of("postgres")
                self._freeze(-1, self.folder.read("state.json")["supervisor"])
                os.kill(pid, signal.SIGQUIT)
        self.tell(str(act))

    def _finish(self, act: Act) -> None:
        number = -1 if act.worker is None else act.worker
        match act.kind:
            case Kind.LEAVE | Kind.KILL:
                self._start(number)
                self.tell(f"  worker {number} started")
            case Kind.FREEZE | Kind.BROKER_FREEZE | Kind.POSTGRES_AWAY:
                os.kill(self.frozen.pop(number), signal.SIGCONT)
                self.tell(f"  over: {act.kind}" + ("" if act.worker is None else f" {number}"))
            case Kind.JOIN:
                self._leave(self.joined.pop(0))
                self.tell("  the one more told to end")

    def _leave(self, worker: Worker) -> None:
        worker.process.terminate()
        self.leaving.append((worker, time.monotonic()))

    def _freeze(self, number: int, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self.frozen[number] = pid

    def thaw_all(self) -> None:
        """No process of this run is suspended."""
        for pid in self.frozen.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.frozen.clear()

    def _pid_of(self, part: str) -> int:
        def running() -> int | None:
            self._restart_dead()
            return next((s.pid for s in self.folder.states() if s.name == part and s.state == "running"), None)

        return eventually(running, within_s=60, what=f"{part} running") or 0

    # ---- the end -----------------------------------------------------------------------------------------------

    def _drain(self, counts: Counter[Kind]) -> Verdict:
        begun = time.monotonic()
        with suppress(AssertionError):  # what is missing is reported below
            eventually(self._all_applied, within_s=DRAIN_S, what="all events applied")
        drain_s = time.monotonic() - begun
        for worker in self.workers.values():  # one that has not come up yet cannot end in its own way
            self.pipeline.ready(worker, within_s=60)
        # A commit to a broker that is just forming its group again may fail, also at a worker's end: it is tried again while the worker runs.
        with suppress(AssertionError):
            eventually(lambda: self._mirrored() == self._ends(), within_s=60, what="positions mirrored")
        codes = Counter(self._ended(worker, since) for worker, since in self.leaving)
        for number in list(self.workers):
            self._leave(self.workers.pop(number))
        last = [self._ended(worker, since) for worker, since in self.leaving[-WORKERS:]]
        with engine_of(self.pipeline.settings, "ops").connect() as connection:
            rows = applied(connection, self.prefix)
            problems = ledger_problems(connection)
        verdict = judge({self._key(number): VERSIONS for number in range(self.events // VERSIONS)}, rows)
        self.timeline += [
            f"seed {self.seed}: {self.events} events in {self.records} records, {sum(counts.values())} acts in {self.duration_s:.0f} s",
            *(f"  {count} x {kind}" for kind, count in sorted(counts.items())),
            f"  told to end: {', '.join(f'{count} x {code}' for code, count in codes.items())}; at the end {', '.join(last)}",
            f"  drained in {drain_s:.1f} s; lost {verdict.lost}, doubled {verdict.doubled}, "
            f"order breaks {verdict.order_breaks}, ledger problems {len(problems)}",
        ]
        assert verdict.holds, verdict
        assert problems == []
        self._record_facts()
        assert check(engine_of(self.pipeline.settings, "ops"), before=utc_now()) == []
        assert last == ["exit 0"] * WORKERS, last
        self._prove()
        return verdict

    def _record_facts(self) -> None:
        """Payments and suspense hold the payments of the events, so that the ledger can be checked against them."""
        keys = range(self.events // VERSIONS)
        settled = [asdict(self.event_of(number, 1)) for number in keys]
        suspended = [asdict(self.event_of(number, version)) for number in keys for version in range(2, VERSIONS + 1)]
        with self.pipeline.owner() as connection:
            for statement, rows in (
                (_MERCHANT, settled),
                (_PAYER, settled),
                (_PAYMENT, settled),
                (_SUSPENSE, suspended),
            ):
                connection.execute(text(statement), rows)

    def _all_applied(self) -> bool:
        self._restart_dead()
        try:
            done = self.pipeline.count("SELECT count(*) FROM accounting.applied WHERE key LIKE :like")
        except OperationalError:  # PostgreSQL is still on its way back
            return False
        return done >= self.events

    @staticmethod
    def _ended(worker: Worker, since: float) -> str:
        try:
            return f"exit {worker.process.wait(max(0.1, since + END_S - time.monotonic()))}"
        except subprocess.TimeoutExpired:
            worker.signal(signal.SIGABRT)  # with PYTHONFAULTHANDLER=1 its log then says where it stood
            worker.process.wait()
            return f"killed after {END_S:.0f} s: {worker.log.name}"

    def _prove(self) -> None:
        """Each event has its voucher and its inbox row, nothing is parked, and positions stand at the log's end, mirrored."""
        consumer = self.pipeline.consumer
        assert self.pipeline.posted() == self.events
        assert self.pipeline.parked() == 0
        inbox = self.pipeline.count("SELECT count(*) FROM accounting.inbox WHERE consumer = :consumer")
        assert inbox == self.events
        with engine_of(self.pipeline.settings, "ops").connect() as connection:
            rows = connection.execute(
                text(
                    "SELECT partition, next_offset FROM accounting.progress WHERE consumer = :consumer AND topic = :topic"
                ),
                {"consumer": consumer, "topic": self.pipeline.topic},
            ).all()
            balances = connection.execute(
                text("SELECT account, credit_fen FROM accounting.balance WHERE account LIKE :like"),
                {"like": f"merchant_payable:{self.prefix}%"},
            ).all()
        assert {row.partition: row.next_offset for row in rows} == self._ends()
        assert self._mirrored() == self._ends()
        expected: Counter[str] = Counter()
        for number in range(self.events // VERSIONS):
            event = settled(prefix=self.prefix, number=number)
            expected[f"merchant_payable:{event.merchant_no}"] += event.amount_fen - event.fee_fen
        assert {row.account: row.credit_fen for row in balances} == expected

    def _ends(self) -> dict[int, int]:
        partitions = [TopicPartition(self.pipeline.topic, number) for number in range(PARTITIONS)]
        futures = self.pipeline.admin.list_offsets({tp: OffsetSpec.latest() for tp in partitions})
        return {tp.partition: future.result(20).offset for tp, future in futures.items()}

    def _mirrored(self) -> dict[int, int]:
        consumer = self.pipeline.consumer
        answers = self.pipeline.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(consumer)])
        logs = answers[consumer].result(20).topic_partitions
        return {position.partition: position.offset for position in logs if position.topic == self.pipeline.topic}

    # ---- what is sent ------------------------------------------------------------------------------------------

    def _key(self, number: int) -> str:
        return settled(prefix=self.prefix, number=number).key

    def event_of(self, number: int, version: int) -> PaymentSettled | SuspenseRecorded:
        """Return a key's event of a version; each moves money."""
        first = settled(prefix=self.prefix, number=number)
        if version == 1:
            return first
        return suspense(payment_no=first.payment_no, bank_transaction_no=f"{first.payment_no}-{version}")


class _Sending(threading.Thread):
    """Sends the run's records steadily, through every outage of the broker, each key's in order."""

    def __init__(self, run: RandomRun) -> None:
        super().__init__(name="sending", daemon=True)
        self.stop = threading.Event()
        self.failure: str | None = None
        self._run_of = run
        self._ids: dict[tuple[int, int], UUID] = {}

    def run(self) -> None:
        """Every record is on the topic, or `failure` says why not."""
        run = self._run_of
        settings = {"enable.idempotence": True, "linger.ms": 5, "message.timeout.ms": 300_000, "log_level": 0}
        producer = Producer({"bootstrap.servers": run.pipeline.settings.kafka_bootstrap, **settings})
        records = list(records_of(run.seed, events=run.events))
        for place, (number, version) in enumerate(records):
            while not self.stop.is_set() and time.monotonic() - run.begun < run.duration_s * place / len(records):
                producer.poll(0.02)
            self._send(producer, number, version)
        run.records = len(records)
        if left := producer.flush(60):
            self.failure = f"{left} records still under way"

    def _send(self, producer: Producer, number: int, version: int) -> None:
        run = self._run_of
        event = run.event_of(number, version)
        identity = self._ids.setdefault((number, version), fresh_id())
        headers = [
            ("ce_id", str(identity).encode()),
            ("ce_type", event.type.encode()),
            ("aggregate_version", str(version).encode()),
            ("correlation", event.key.encode()),
        ]
        producer.produce(
            run.pipeline.topic,
            value=encode(event).encode(),
            key=event.key.encode(),
            headers=headers,
            on_delivery=self._delivered,
        )

    def _delivered(self, error: object, _message: object) -> None:
        if error is not None:
            self.failure = str(error)
