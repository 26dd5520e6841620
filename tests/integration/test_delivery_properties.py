"""Delivery in any order of events, on real PostgreSQL, beside a model of it.

Owners fetch slices and deliver them, late, again, after a sibling has, or die at it; records are poison; the topic is made
again; what is parked is tried again or given up. Whatever the order: each event is applied at most once and in its key's order, everything before progress is applied or
parked, later events of a parked key behind it, and balances are the applied events' sums.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from consumers.accounting.agent import PROCESSOR
from consumers.delivery.brake import Braked
from consumers.delivery.loop import Delivered, Delivery, OffsetGap
from consumers.delivery.messages import Slice
from consumers.delivery.processor import is_transient
from consumers.delivery.retry import retry_key, settle_lot, skip
from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.inbox import Log, begin_log, positions
from outbox.parking import Act, Action, Cause
from outbox.settings import Settings
from schemas.accounts import merchant_payable
from schemas.codec import Envelope, encode
from schemas.events import Event
from tests.applied import applied, apply, make_applied
from tests.factories import settled, suspense
from tests.pipeline import engine_of, fresh_id

EXAMPLES, STEPS = (int(count) for count in os.environ.get("PROPERTY_RUN", "30x40").split("x"))
"""A larger run: PROPERTY_RUN=1000x100 .venv/bin/python -m pytest tests/integration/test_delivery_properties.py --timeout 0"""

KEYS, PARTITIONS = 6, 2
GENERATIONS = 4
KINDS = st.sampled_from(["good"] * 20 + ["unreadable", "rejected", "second", "repeat", "repeat"])
NUMBERS = st.integers(0, 99)
OWNERS = st.integers(0, 1)


@dataclass(frozen=True, kw_only=True)
class Item:
    """A record's content: an event of a key, or what should have been one."""

    key: int
    version: int
    kind: str = "good"
    """good, or unreadable: no event at all; rejected by the handler; a second event for the key's first fact"""
    id: UUID = field(default_factory=fresh_id)

    @property
    def is_first_fact(self) -> bool:
        return self.version == 1 or self.kind == "second"


class Model:
    """What must be true of a consumer's rows, in memory."""

    def __init__(self) -> None:
        self.logs: dict[Log, list[Item]] = {}
        self.progress: Counter[Log] = Counter()
        self.applied: list[Item] = []
        self.skipped: list[Item] = []
        self.parked: list[tuple[Log, int, Item, Cause]] = []
        self.is_fixed = False

    def deliver(self, log: Log, start: int, stop: int) -> None:
        """The log's items of these offsets are applied or parked, but for those that were before."""
        for offset in range(max(start, self.progress[log]), stop):
            item = self.logs[log][offset]
            cause = self.cause(item)
            if item.key in self.blocked():
                self._park(log, offset, item, Cause.UNDECODABLE if item.kind == "unreadable" else Cause.BEHIND_PARKED)
            elif cause is not None:
                self._park(log, offset, item, cause)
            elif not self.is_known(item):
                self.applied.append(item)
        self.progress[log] = max(self.progress[log], stop)

    def may_brake(self, log: Log, start: int, stop: int) -> bool:
        """Whether the slice holds poison that must wait until others have passed."""
        items = self.logs[log][max(start, self.progress[log]) : stop]
        waits = (Cause.UNDECODABLE, Cause.REJECTED)
        return any(self.cause(item) in waits and item.key not in self.blocked() for item in items)

    def retry(self, key: int) -> None:
        """The key's parked items are applied in order, up to the first that fails still."""
        while (head := self.head(key)) is not None:
            log, offset, item, _ = self.parked[head]
            if (cause := self.cause(item)) is not None:
                self.parked[head] = (log, offset, item, cause)
                return
            del self.parked[head]
            if not self.is_known(item):
                self.applied.append(item)

    def skip(self, place: int) -> tuple[Log, int]:
        """What is parked there will not be applied, nor will a repeat of it; returns where it lay."""
        log, offset, item, _ = self.parked.pop(place)
        if item.kind != "unreadable" and not self.is_known(item):
            self.skipped.append(item)
        return log, offset

    def is_known(self, item: Item) -> bool:
        """Whether the item is done with."""
        return item in self.applied or item in self.skipped

    def head(self, key: int) -> int | None:
        """Return the place of the first that is parked of a key."""
        return next((place for place, (_, _, item, _) in enumerate(self.parked) if item.key == key), None)

    def blocked(self) -> set[int]:
        """Return the keys that have something parked."""
        return {item.key for _, _, item, _ in self.parked}

    def cause(self, item: Item) -> Cause | None:
        """Return why an item cannot be applied; None if it can, or was."""
        if item.kind == "unreadable":
            return Cause.UNDECODABLE
        if self.is_known(item):
            return None
        if item.kind == "rejected" and not self.is_fixed:
            return Cause.REJECTED
        if item.is_first_fact and any(earlier.key == item.key and earlier.is_first_fact for earlier in self.applied):
            return Cause.DUPLICATE_FACT
        return None

    def _park(self, log: Log, offset: int, item: Item, cause: Cause) -> None:
        if item.kind == "unreadable" or all(item != parked for _, _, parked, _ in self.parked):
            self.parked.append((log, offset, item, cause))

    def balances(self, prefix: str) -> Counter[str]:
        """Return what each merchant is owed."""
        owed: Counter[str] = Counter()
        for item in self.applied:
            if item.is_first_fact:
                event = settled(prefix=prefix, number=item.key)
                owed[merchant_payable(event.merchant_no)] += event.amount_fen - event.fee_fen
        return owed


class Crash(BaseException):
    """The process ends here."""


class Owner:
    """A worker: how far it has fetched, and what it holds."""

    def __init__(self, make: Callable[[], Delivery]) -> None:
        self._make = make
        self.delivery = make()
        self.fetched: dict[Log, int] = {}
        self.held: dict[Log, tuple[int, int]] = {}

    def restart(self) -> None:
        """Whatever it knew is forgotten."""
        self.delivery, self.fetched, self.held = self._make(), {}, {}


class Machine(RuleBasedStateMachine):
    """One consumer of one topic, and two workers that both take it for theirs."""

    def __init__(self, engine: Engine, reader: Connection) -> None:
        super().__init__()
        self.engine, self.reader = engine, reader
        self.prefix = f"t{uuid4().hex[:10]}-"
        self.consumer = f"{self.prefix}consumer"
        self.trouble: Callable[[Connection], None] = lambda _: None
        self.model = Model()
        self.versions: Counter[int] = Counter()
        self.logs: list[Log] = []
        self.generations = 0
        processor = replace(PROCESSOR, handle=self._handle)
        self.owners = [
            Owner(lambda: Delivery(processor, engine, consumer=self.consumer, clock=utc_now)) for _ in range(2)
        ]
        self._begin_topic([[] for _ in range(PARTITIONS)])

    def _handle(self, connection: Connection, events: Sequence[Envelope]) -> None:
        if not self.model.is_fixed and any(event.correlation == "rejected" for event in events):
            raise ValueError("rejected")
        apply(connection, events)
        self.trouble(connection)

    def _begin_topic(self, contents: Sequence[list[Item]]) -> None:
        self.generations += 1
        self.logs = [
            Log(cluster_id="c", topic=self.prefix, topic_id=f"{self.generations}", partition=number)
            for number in range(PARTITIONS)
        ]
        with self.engine.begin() as connection:
            for log in self.logs:
                begin_log(connection, self.consumer, log, next_offset=0)
        self.model.logs.update(zip(self.logs, contents, strict=True))
        for owner in self.owners:
            owner.fetched = {}  # but what it holds of the old one, it still holds

    # ---- rules -------------------------------------------------------------------------------------------------

    @initialize(items=st.lists(st.tuples(KINDS, NUMBERS), min_size=6, max_size=12))
    def begin(self, items: list[tuple[str, int]]) -> None:
        """There is something in the log."""
        self._record_items(items)

    @rule(items=st.lists(st.tuples(KINDS, NUMBERS), min_size=2, max_size=8))
    def record(self, items: list[tuple[str, int]]) -> None:
        """More is in the log."""
        self._record_items(items)

    @rule(which=OWNERS, length=st.integers(1, 8), trouble=st.sampled_from(["", "", "killed", "cut off", "forgets"]))
    def work(self, which: int, length: int, trouble: str) -> None:
        """A worker fetches of all partitions and delivers what it holds; or dies at it, before its commit or after."""
        owner = self.owners[which]
        self._fetch(owner, self.logs, length)
        self._deliver(owner, trouble)
        if trouble:
            owner.restart()

    @rule(which=OWNERS, length=st.integers(1, 8), logs=st.sampled_from([[0], [1], [0, 1]]))
    def fetch(self, which: int, length: int, logs: list[int]) -> None:
        """A worker holds the next slice of some partitions, by what it knows."""
        self._fetch(self.owners[which], [self.logs[number] for number in logs], length)

    @precondition(lambda self: any(owner.held for owner in self.owners))
    @rule(data=st.data())
    def deliver_late(self, data: st.DataObject) -> None:
        """A worker delivers what it holds, however stale."""
        self._deliver(data.draw(st.sampled_from([owner for owner in self.owners if owner.held])), "")

    @precondition(lambda self: self.model.applied)
    @rule(which=OWNERS, data=st.data())
    def redeliver(self, which: int, data: st.DataObject) -> None:
        """A slice from anywhere before the progress comes again, also of a topic that is no more."""
        logs = [log for log, content in self.model.logs.items() if content and self.model.progress[log]]
        log = data.draw(st.sampled_from(logs or self.logs), label="log")
        start = data.draw(st.integers(0, self.model.progress[log]), label="start")
        stop = data.draw(st.integers(start, len(self.model.logs[log])), label="stop")
        self._attempt(self.owners[which], {log: (start, stop)} if stop > start else {}, "")

    @precondition(lambda self: any(self.model.progress[log] + 1 < len(self.model.logs[log]) for log in self.logs))
    @rule(which=OWNERS)
    def deliver_ahead(self, which: int) -> None:
        """A slice that does not follow on the progress is refused."""
        for log in self.logs:
            start, stop = self.model.progress[log] + 1, len(self.model.logs[log])
            if stop > start:
                [outcome] = self.owners[which].delivery.deliver([self._slice(log, start, stop)]).values()
                assert isinstance(outcome, OffsetGap)

    @precondition(lambda self: self.generations < GENERATIONS and len(self.model.applied) >= 5 * self.generations)
    @rule()
    def make_topic_again(self) -> None:
        """The same events under other offsets: what was repeated is there once."""
        self._begin_topic([list(dict.fromkeys(self.model.logs[log])) for log in self.logs])

    @precondition(lambda self: self.model.parked)
    @rule(is_fixed=st.booleans(), data=st.data())
    def retry(self, is_fixed: bool, data: st.DataObject) -> None:
        """A parked key is tried again, with the handler fixed or still broken: it drains in order, up to the first failure."""
        self.model.is_fixed = is_fixed
        self._retry(data.draw(st.sampled_from(sorted(self.model.blocked())), label="key"))

    def _retry(self, key: int) -> None:
        act = Act(action=Action.RETRY, actor="property")
        retry_key(self.engine, self.owners[0].delivery, self._key(key), act)
        settle_lot(self.engine, self.consumer)
        self.model.retry(key)

    @precondition(lambda self: self.model.parked)
    @rule(data=st.data())
    def skip(self, data: st.DataObject) -> None:
        """A parked event is skipped, mostly one that can never succeed; the events behind it may be tried again."""
        places = range(len(self.model.parked))
        hopeless = [place for place in places if self.model.parked[place][2].kind in ("unreadable", "second")]
        self._skip(data.draw(st.sampled_from([*hopeless * 3, *places]), label="place"))

    def _skip(self, place: int) -> None:
        log, offset = self.model.skip(place)
        number = self.reader.execute(
            text("""SELECT id FROM accounting.parked WHERE consumer = :consumer AND topic_id = :topic_id
                    AND partition = :partition AND "offset" = :offset"""),
            {"consumer": self.consumer, "topic_id": log.topic_id, "partition": log.partition, "offset": offset},
        ).scalar_one()
        assert skip(self.engine, self.consumer, number, Act(action=Action.SKIP, actor="property", reason="given up"))

    # ---- what must be true -------------------------------------------------------------------------------------

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        model = self.model
        of_consumer = {"consumer": self.consumer, "like": f"%:{self.prefix}%"}
        done = applied(self.reader, self.prefix)
        assert done == [(self._event(item).key, item.version) for item in model.applied]
        assert len(done) == len(set(done)), "applied twice"
        for key in {key for key, _ in done}:
            versions = [version for owner, version in done if owner == key]
            assert versions == sorted(versions), "order of a key broken"
        inbox = self.reader.execute(
            text("SELECT event_id FROM accounting.inbox WHERE consumer = :consumer"), of_consumer
        )
        assert Counter(inbox.scalars()) == Counter(item.id for item in (*model.applied, *model.skipped))
        assert self._stored() == {log: model.progress[log] for log in model.logs}
        parked = self.reader.execute(
            text("""SELECT topic_id, partition, "offset", cause FROM accounting.parked
                    WHERE consumer = :consumer ORDER BY id"""),
            of_consumer,
        )
        expected = [(log.topic_id, log.partition, offset, cause) for log, offset, _, cause in model.parked]
        # Of several partitions parked in one transaction, each is in order.
        assert sorted(map(tuple, parked), key=lambda row: row[:2]) == sorted(expected, key=lambda row: row[:2])
        balances = self.reader.execute(
            text("SELECT account, credit_fen FROM accounting.balance WHERE account LIKE :like"), of_consumer
        )
        assert {row.account: row.credit_fen for row in balances} == model.balances(self.prefix)

    def teardown(self) -> None:
        """Once good events of each type have come, nothing waits any more."""
        for log in self.logs:
            for number in (1, 2):
                self.model.logs[log].append(Item(key=KEYS + log.partition, version=number))
        owner = self.owners[0]
        for _ in range(4):
            for log in self.logs:
                start, stop = self.model.progress[log], len(self.model.logs[log])
                if stop > start:
                    self._attempt(owner, {log: (start, stop)}, "")
        assert {log: self.model.progress[log] for log in self.logs} == {
            log: len(self.model.logs[log]) for log in self.logs
        }
        self.rows_are_as_the_model_says()

    # ---- how it is done ----------------------------------------------------------------------------------------

    def _record_items(self, items: list[tuple[str, int]]) -> None:
        for kind, number in items:
            key = number % KEYS
            content = self.model.logs[self.logs[key % PARTITIONS]]
            earlier = [item for item in content if item.key == key]
            if kind == "repeat" and earlier:
                content.append(earlier[number % len(earlier)])
                continue
            self.versions[key] += 1
            if kind == "repeat" or (kind == "second" and self.versions[key] == 1):
                kind = "good"
            content.append(Item(key=key, version=self.versions[key], kind=kind))

    def _fetch(self, owner: Owner, logs: Sequence[Log], length: int) -> None:
        for log in logs:
            start = owner.fetched.setdefault(log, self.model.progress[log])
            stop = min(start + length, len(self.model.logs[log]))
            if log not in owner.held and stop > start:
                owner.held[log], owner.fetched[log] = (start, stop), stop

    def _deliver(self, owner: Owner, trouble: str) -> None:
        held, owner.held = owner.held, {}
        self._attempt(owner, held, trouble)

    def _attempt(self, owner: Owner, spans: dict[Log, tuple[int, int]], trouble: str) -> None:
        slices = [self._slice(log, start, stop) for log, (start, stop) in spans.items()]
        self.trouble = {"killed": _die, "cut off": _cut_off}.get(trouble, lambda _: None)
        outcomes: dict[Log, Delivered | Braked | OffsetGap] = {}
        try:
            outcomes = dict(owner.delivery.deliver(slices)) if slices else {}
        except Crash:
            pass
        except OperationalError as error:
            if trouble != "cut off" or not is_transient(error):
                raise
        finally:
            self.trouble = lambda _: None
        stored = self._stored()
        for log, (start, stop) in spans.items():
            match outcomes.get(log):
                case Delivered():
                    self.model.deliver(log, start, stop)
                case Braked():
                    assert self.model.may_brake(log, start, stop), "nothing in it had to wait"
                    owner.fetched.pop(log, None)
                case OffsetGap():
                    assert start > self.model.progress[log]
                    owner.fetched.pop(log, None)
                case None:  # it died: one slice may be committed, another not, but each as a whole
                    if stored[log] != self.model.progress[log]:
                        self.model.deliver(log, start, stop)

    def _stored(self) -> dict[Log, int]:
        with self.engine.begin() as connection:
            stored = positions(connection, self.consumer, list(self.model.logs))
        return {log: next_offset for log, (next_offset, _) in stored.items()}

    def _slice(self, log: Log, start: int, stop: int) -> Slice:
        records = [self._record(offset, self.model.logs[log][offset]) for offset in range(start, stop)]
        return Slice(log=log, start=start, end=stop, messages=records)

    def _key(self, number: int) -> bytes:
        return settled(prefix=self.prefix, number=number).key.encode()

    def _event(self, item: Item) -> Event:
        first = settled(prefix=self.prefix, number=item.key)
        if item.is_first_fact:
            return first
        return suspense(payment_no=first.payment_no, bank_transaction_no=f"{first.payment_no}-{item.version}")

    def _record(self, offset: int, item: Item) -> Any:
        event = self._event(item)
        headers = {
            "ce_id": str(item.id).encode(),
            "ce_type": event.type.encode(),
            "aggregate_version": str(item.version).encode(),
            "correlation": item.kind.encode(),
        }
        value = b"{}" if item.kind == "unreadable" else encode(event).encode()
        return SimpleNamespace(offset=offset, key=event.key.encode(), value=value, headers=list(headers.items()))


def _die(_connection: Connection) -> None:
    raise Crash


def _cut_off(connection: Connection) -> None:
    connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@pytest.mark.timeout(600)
def test_delivery_keeps_its_promises_in_any_order_of_events(settings: Settings) -> None:
    make_applied(settings)
    engine = engine_for(settings.dsn_of("accounting"), name="properties")
    profile = given_settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    try:
        with engine_of(settings, "ops").execution_options(isolation_level="AUTOCOMMIT").connect() as reader:
            run_state_machine_as_test(lambda: Machine(engine, reader), settings=profile)
    finally:
        engine.dispose()
