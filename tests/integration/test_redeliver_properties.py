"""Redelivery in any order with everything else, beside the model of delivery, on real PostgreSQL.

The stream is moved past events, as by somebody's reset; any of what lies behind it, or all of it as if read from the outbox, is
handed over again, twice, killed inside, beside parking, retry and skip. Whatever the order: each event is applied at most once,
never past what is parked of its key, and once everything is fixed nothing is missing.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from consumers.accounting.agent import PROCESSOR
from consumers.delivery.loop import Delivery
from consumers.delivery.processor import is_transient
from consumers.delivery.redeliver import FROM_OUTBOX, PastMessage, Redelivered, redeliver
from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.inbox import Log, move_to
from outbox.parking import Cause
from outbox.settings import Settings
from tests.applied import applied, make_applied
from tests.integration.test_delivery_properties import Crash, Machine, Model, _cut_off, _die
from tests.pipeline import engine_of

EXAMPLES, STEPS = (int(count) for count in os.environ.get("PROPERTY_RUN", "10x25").split("x"))


class HolesModel(Model):
    """The model, with a stream that may be moved past events."""

    def move(self, log: Log, stop: int) -> None:
        self.progress[log] = stop

    def redeliver(self, places: list[tuple[Log, int]]) -> Redelivered:
        """The items at these places are applied in this order, unless something stands in the way; returns what became of them."""
        outcome = Redelivered()
        failing: dict[int, UUID] = {}
        for log, offset in places:
            item = self.logs[log][offset]
            first = self.first_parked(item.key)
            if item.kind == "unreadable":
                outcome.unreadable += 1
            elif offset >= self.progress[log]:
                outcome.waiting += 1
            elif first is not None and item.version >= first:
                outcome.parked += 1
            elif self.is_known(item):
                outcome.known += 1
            elif item.key in failing:
                outcome.failed[item.id] = "behind"
            elif self.cause(item) is not None:
                outcome.failed[item.id] = "fails"
                failing[item.key] = item.id
            else:
                outcome.applied += 1
                self.applied.append(item)
        return outcome

    def first_parked(self, key: int) -> int | None:
        """Return the smallest version that is parked of a key; 0 where one shows none."""
        versions = [
            0 if item.kind == "unreadable" else item.version for _, _, item, _ in self.parked if item.key == key
        ]
        return min(versions, default=None)


class Holes(Machine):
    """The machine of delivery, whose stream is moved past events, and to which they are handed over again."""

    def __init__(self, engine: Engine, reader: Connection) -> None:
        super().__init__(engine, reader)
        self.model: HolesModel = HolesModel()
        self.model.logs.update(zip(self.logs, ([] for _ in self.logs), strict=True))

    @precondition(lambda self: any(len(self.model.logs[log]) > self.model.progress[log] for log in self.logs))
    @rule(number=st.integers(0, 1), length=st.integers(1, 6))
    def move(self, number: int, length: int) -> None:
        """The stream goes on further on, as after a reset to latest."""
        log = self.logs[number]
        stop = min(self.model.progress[log] + length, len(self.model.logs[log]))
        with self.engine.begin() as connection:
            move_to(connection, self.consumer, log, stop)
        self.model.move(log, stop)

    @precondition(lambda self: any(self.model.progress[log] for log in self.logs))
    @rule(data=st.data(), is_fixed=st.booleans(), trouble=st.sampled_from(["", "", "killed", "cut off"]))
    def hand_over(self, data: st.DataObject, is_fixed: bool, trouble: str) -> None:
        """A stretch of one log is handed over again, up to beyond the progress; twice; killed inside, it changes nothing by halves."""
        log = data.draw(st.sampled_from([log for log in self.logs if self.model.progress[log]]), label="log")
        stop = data.draw(st.integers(1, len(self.model.logs[log])), label="stop")
        start = data.draw(st.integers(0, stop - 1), label="start")
        places = [(log, offset) for offset in range(start, stop)]
        self.model.is_fixed = is_fixed
        if trouble:
            self.trouble = {"killed": _die, "cut off": _cut_off}[trouble]
            self._redeliver_troubled(places)
        for _ in range(2):
            assert self._again(places) == _fields_of(self.model.redeliver(places))

    @precondition(lambda self: any(self.model.progress[log] for log in self.logs))
    @rule()
    def hand_over_from_outbox(self) -> None:
        """Everything below the progress, in the order of versions, without a place."""
        places = [(log, offset) for log in self.logs for offset in range(self.model.progress[log])]
        places.sort(key=lambda place: self.model.logs[place[0]][place[1]].version)
        for _ in range(2):
            assert self._again(places, from_outbox=True) == _fields_of(self.model.redeliver(places))

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        """As in the machine of delivery, but for a key's order: what was passed over is applied out of its turn."""
        done = Counter(applied(self.reader, self.prefix))
        assert done == Counter((self._event(item).key, item.version) for item in self.model.applied)
        assert max(done.values(), default=1) == 1, "applied twice"
        of_consumer = {"consumer": self.consumer, "like": f"%:{self.prefix}%"}
        inbox = self.reader.execute(
            text("SELECT event_id FROM accounting.inbox WHERE consumer = :consumer"), of_consumer
        )
        known = Counter(item.id for item in (*self.model.applied, *self.model.skipped))
        assert Counter(inbox.scalars()) == known
        assert self._stored() == {log: self.model.progress[log] for log in self.model.logs}
        parked = self.reader.execute(
            text('SELECT topic_id, partition, "offset", cause FROM accounting.parked WHERE consumer = :consumer'),
            of_consumer,
        )
        expected = [(log.topic_id, log.partition, offset, cause) for log, offset, _, cause in self.model.parked]
        assert sorted(map(tuple, parked)) == sorted(expected)
        balances = self.reader.execute(
            text("SELECT account, credit_fen FROM accounting.balance WHERE account LIKE :like"), of_consumer
        )
        assert {row.account: row.credit_fen for row in balances} == self.model.balances(self.prefix)

    def teardown(self) -> None:
        """Once the handler is fixed and nothing is parked, one redelivery of everything leaves no gap."""
        super().teardown()
        self.model.is_fixed = True
        for key in sorted(self.model.blocked()):
            while self.model.head(key) is not None:
                self._retry(key)
                if (head := self.model.head(key)) is not None:
                    self._skip(head)
        places = [(log, offset) for log in self.logs for offset in range(len(self.model.logs[log]))]
        for place in places:  # each by itself: what is a second fact holds up no later one
            assert self._again([place]) == _fields_of(self.model.redeliver([place]))
        items = [self.model.logs[log][offset] for log, offset in places]
        left = [item for item in items if item.kind != "unreadable" and not self.model.is_known(item)]
        assert {self.model.cause(item) for item in left} <= {Cause.DUPLICATE_FACT}
        self.rows_are_as_the_model_says()

    def _redeliver_troubled(self, places: list[tuple[Log, int]]) -> None:
        before = applied(self.reader, self.prefix)
        try:
            self._again(places)
        except Crash:
            pass
        except OperationalError as error:
            if not is_transient(error):
                raise
        finally:
            self.trouble = lambda _: None
        assert applied(self.reader, self.prefix) == before, "nothing by halves"

    def _again(self, places: list[tuple[Log, int]], *, from_outbox: bool = False) -> dict[str, Any]:
        delivery = Delivery(replace(PROCESSOR, handle=self._handle), self.engine, consumer=self.consumer, clock=utc_now)
        records = []
        for log, offset in places:
            record = self._record(offset, self.model.logs[log][offset])
            nowhere = replace(log, cluster_id="", topic_id="", partition=FROM_OUTBOX)
            records.append(
                PastMessage(
                    log=nowhere if from_outbox else log,
                    offset=FROM_OUTBOX if from_outbox else offset,
                    key=record.key,
                    headers=record.headers,
                    value=record.value,
                )
            )
        return _fields_of(redeliver(self.engine, delivery, records))


def _fields_of(outcome: Redelivered) -> dict[str, Any]:
    return vars(outcome) | {"failed": set(outcome.failed)}


@pytest.mark.timeout(600)
def test_redelivery_keeps_its_promises_in_any_order_of_events(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.delivery.retry.TRIES_MAX", 1)  # what is cut off is reported at once
    make_applied(settings)
    engine = engine_for(settings.dsn_of("accounting"), name="redeliver properties")
    profile = given_settings(
        max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None, print_blob=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    try:
        with engine_of(settings, "ops").execution_options(isolation_level="AUTOCOMMIT").connect() as reader:
            run_state_machine_as_test(lambda: Holes(engine, reader), settings=profile)
    finally:
        engine.dispose()
