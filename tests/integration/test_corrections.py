"""A correction brings rows and balances to what the event says, whatever its handler has done instead; a second one changes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from consumers.accounting.entries import net_of, voucher_of
from consumers.effects import NO_EFFECT
from consumers.funds.funds import deposit
from consumers.processors import EFFECTS, PROCESSORS
from ops.ledger.integrity import ledger_problems
from ops.reconcile.correct import correct
from ops.reconcile.findings import Kind
from ops.reconcile.present import effects_under
from ops.reconcile.verdict import Hole, Observed, judge
from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.errors import Refused
from outbox.settings import Settings
from schemas.codec import Envelope
from tests import loyalty
from tests.factories import balance_requested, envelope, settled
from tests.pipeline import engine_of, fresh_id
from tests.rebuilding import own_database

EXAMPLES = int(os.environ.get("PROPERTY_CORRECTIONS", "15"))
"""A larger run: PROPERTY_CORRECTIONS=1000 .venv/bin/python -m pytest tests/integration/test_corrections.py --timeout 0"""

CONSUMERS = ("funds", "points", "accounting", loyalty.NAME)
FAULTS = ("right", "right", "amount", "fee", "points", "payer", "merchant", "stray")
ROUNDS = 3
"""What is wholly missing is applied first; only then is what stands in its place one too many."""

BALANCES = {
    "funds": (
        "SELECT account_no AS account, balance_fen AS amount FROM funds.account WHERE account_no LIKE :like",
        """SELECT account_no AS account, sum(CASE kind WHEN 'debit' THEN -amount_fen ELSE amount_fen END) AS amount
           FROM funds.entry WHERE account_no LIKE :like GROUP BY 1""",
    ),
    "points": (
        "SELECT account_no AS account, balance AS amount FROM points.account WHERE account_no LIKE :like",
        "SELECT account_no AS account, sum(points) AS amount FROM points.entry WHERE account_no LIKE :like GROUP BY 1",
    ),
    "accounting": (
        """SELECT account, sum(debit_fen - credit_fen) AS amount FROM accounting.balance GROUP BY 1""",
        """SELECT account, sum(CASE side WHEN 'D' THEN amount_fen ELSE -amount_fen END) AS amount
           FROM accounting.entry GROUP BY 1""",
    ),
    loyalty.NAME: (
        "SELECT payer_no AS account, stamps AS amount FROM shop.card WHERE payer_no LIKE :like",
        "SELECT payer_no AS account, sum(stamps) AS amount FROM shop.stamp WHERE payer_no LIKE :like GROUP BY 1",
    ),
}
"""Of each consumer, its balances and what its rows add up to."""


@dataclass
class Database:
    """A database of the tests' own, and an engine for each role."""

    settings: Settings

    def __post_init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def engine(self, role: str) -> Engine:
        if role not in self._engines:
            self._engines[role] = engine_for(self.settings.dsn_of(role), name="test", pool_size=4)
        return self._engines[role]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.dispose()


@pytest.fixture(scope="module")
def database(stack: Any) -> Generator[Database]:
    with own_database(stack.settings) as settings:
        with engine_of(settings, "owner").begin() as owner:
            loyalty.make_tables(owner)
        made = Database(settings)
        yield made
        made.close()


@dataclass
class Handled:
    """A consumer's rows after its handler has taken some events otherwise than they are."""

    database: Database
    name: str
    prefix: str

    def __post_init__(self) -> None:
        self.effects = EFFECTS[self.name]
        self.engine = self.database.engine(PROCESSORS[self.name].service)
        self.reader = self.database.engine("ops")
        self.recorded: list[Envelope] = []
        self.strays: list[Envelope] = []

    def handle(self, event: Envelope) -> None:
        with self.engine.begin() as connection:
            PROCESSORS[self.name].handle(connection, [event])

    def take(self, number: int, fault: str, by: int) -> None:
        """The event of this number is recorded, unless it is stray, and handled with this fault."""
        event: Any = settled(prefix=self.prefix, number=number)
        if self.name == "funds" and number % 3 == 0:
            names = ("payment_no", "merchant_no", "payer_no", "amount_fen")
            event = balance_requested(**{name: getattr(event, name) for name in names})
        recorded = envelope(event, identity=fresh_id())
        changed = {
            "amount": {"amount_fen": event.amount_fen + by},
            "fee": {"fee_fen": event.fee_fen + by},
            "points": {"points": event.points + by},
            "payer": {"payer_no": f"{self.prefix}U-other"},
            "merchant": {"merchant_no": f"{self.prefix}M-other"},
        }.get(fault, {})
        (self.strays if fault == "stray" else self.recorded).append(recorded)
        self.handle(envelope(msgspec.structs.replace(event, **changed), identity=recorded.id))

    def present(self, event: Envelope) -> dict[str, str]:
        with self.reader.connect() as connection:
            return effects_under(connection, self.effects, [event.event.key]).get(event.event.key, {})

    def holes(self, event: Envelope) -> Sequence[Hole]:
        present = self.present(event)
        if event in self.strays:
            return [
                (Kind.STRAY_EFFECT, effect, "")
                for effect, value in present.items()
                if value not in NO_EFFECT and effect != "decision"
            ]
        return judge(self.effects.expected(event, present), Observed(known=True, present=present)) or []

    def correct(self, event: Envelope, effect: str, *, stray: bool) -> int:
        return correct(
            self.engine, self.effects, event.event.key, effect, None if stray else event, event_id=event.id,
            reason="r", actor="a", at=utc_now(),
        )  # fmt: skip

    def fix(self) -> None:
        """Every hole is fixed, as `reconcile --fix` does it."""
        for _ in range(ROUNDS):
            for event in (*self.recorded, *self.strays):
                for kind, effect, _ in self.holes(event):
                    if kind is Kind.NO_EFFECT:
                        self.handle(event)
                    elif effect != "decision":
                        self.correct(event, effect, stray=kind is Kind.STRAY_EFFECT)

    def sums(self) -> list[dict[str, int]]:
        with self.reader.connect() as connection:
            return [
                {
                    row.account: int(row.amount)
                    for row in connection.execute(text(statement), {"like": f"%{self.prefix}%"})
                    if row.amount
                }
                for statement in BALANCES[self.name]
            ]

    def rows(self) -> list[Any]:
        """Return every row that a correction could write or change."""
        tables = {
            "funds": ("entry", "account"), "points": ("entry", "account"), "accounting": ("voucher", "entry", "balance"),
            loyalty.NAME: ("stamp", "card"),
        }[self.name]  # fmt: skip
        with self.reader.connect() as connection:
            service = PROCESSORS[self.name].service
            return [sorted(map(str, connection.execute(text(f"SELECT * FROM {service}.{table}")))) for table in tables]

    def called_for(self) -> dict[str, int]:
        """Return what the recorded events move on each account."""
        sums: Counter[str] = Counter()
        for event in self.recorded:
            if self.name == "accounting":
                voucher = voucher_of(event)
                sums.update(net_of(voucher.entries) if voucher is not None else {})
                continue
            wanted = self.effects.expected(event, self.present(event))
            sums.update({account: int(amount) for account, amount in wanted.items() if account != "decision"})
        return {account: amount for account, amount in sums.items() if amount}


@pytest.fixture
def handled(database: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Handled]:
    loyalty.register(monkeypatch)

    def make(name: str) -> Handled:
        made = Handled(database, name, f"t{uuid4().hex[:8]}-")
        if name == "accounting":
            with engine_of(database.settings, "owner").begin() as owner:
                owner.execute(text("SET LOCAL session_replication_role = replica"))
                owner.execute(text("TRUNCATE accounting.voucher, accounting.entry, accounting.balance"))
        return made

    return make


@pytest.mark.parametrize("name", CONSUMERS)
def test_a_correction_brings_rows_and_balances_to_what_events_say_and_a_second_changes_nothing(
    name: str, handled: Callable[[str], Handled]
) -> None:
    @given_settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(1, 9_000)), min_size=1, max_size=8))
    def property_(faults: list[tuple[str, int]]) -> None:
        made = handled(name)
        if name == "funds":
            with made.engine.begin() as connection:
                for payer in {f"{made.prefix}U{number % 7}" for number in range(10)} | {f"{made.prefix}U-other"}:
                    deposit(connection, f"D-{payer}", payer_no=payer, amount_fen=10**6, currency="CNY", at=utc_now())
        begin = made.sums()[0]
        for number, (fault, by) in enumerate(faults):
            made.take(number, fault, by)
        made.fix()
        assert [made.holes(event) for event in (*made.recorded, *made.strays)] == [[]] * len(faults)
        balances, entries = made.sums()
        moved = Counter(balances)
        moved.subtract(begin)
        assert balances == entries
        assert {account: amount for account, amount in moved.items() if amount} == made.called_for()
        if name == "accounting":
            with made.reader.connect() as connection:
                assert ledger_problems(connection) == []
        before = made.rows()
        for event in made.recorded:
            for effect in set(made.present(event)) - {"decision"}:
                assert made.correct(event, effect, stray=False) == 0
        made.fix()
        assert made.rows() == before

    property_()


@pytest.mark.parametrize("name", CONSUMERS)
def test_of_corrections_beside_each_other_one_is_written(name: str, handled: Callable[[str], Handled]) -> None:
    made = handled(name)
    made.take(1, "amount", 7_000)
    made.take(1 + 3 * 7, "points", 3)  # of the same payer
    [event, other] = made.recorded
    [hole, *_] = [hole for recorded in (event, other) for hole in made.holes(recorded)]

    def correct_once(_: int) -> int:
        try:
            return made.correct(event if name != "points" else other, hole[1], stray=False)
        except Refused:
            return 0  # the ledger says so where its voucher was reversed meanwhile

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(correct_once, range(8)))
    assert sorted(written)[:-1] == [0] * 7
    assert max(written) == 2
    balances, entries = made.sums()
    assert balances == entries == made.called_for()


def test_an_effect_is_corrected_once_and_never_below_a_floor(handled: Callable[[str], Handled]) -> None:
    made = handled("points")
    made.take(1, "points", 5)
    [event] = made.recorded
    account = event.event.payer_no  # type: ignore[attr-defined]
    assert made.correct(event, account, stray=False) == 2
    with pytest.raises(Refused, match=f"{event.event.key} was corrected before on account {account}"):
        made.correct(event, account, stray=True)
    funds = handled("funds")
    payer = f"{funds.prefix}U0"
    with funds.engine.begin() as connection:
        deposit(connection, f"D-{payer}", payer_no=payer, amount_fen=10_000, currency="CNY", at=utc_now())
    funds.take(0, "amount", -5_000)
    [request] = funds.recorded
    before = funds.rows()
    with funds.engine.begin() as connection:  # the rest is gone
        connection.execute(text("UPDATE account SET balance_fen = 0 WHERE account_no = :no"), {"no": f"payer:{payer}"})
    drained = funds.rows()
    with pytest.raises(IntegrityError):
        funds.correct(request, f"payer:{payer}", stray=False)
    assert funds.rows() == drained != before


def test_what_only_people_can_correct_is_refused_and_left(handled: Callable[[str], Handled]) -> None:
    made = handled("funds")
    made.take(3, "right", 1)
    before = made.rows()
    for effect, stray in (("decision", False), ("decision", True)):
        with pytest.raises(Refused, match="can only be set right by hand"):
            made.correct(made.recorded[0], effect, stray=stray)
    dollars = envelope(settled(prefix=made.prefix, number=4, currency="USD"), identity=fresh_id())
    with pytest.raises(Refused, match="it calls for 9944 USD"):
        made.correct(dollars, dollars.event.merchant_no, stray=False)  # type: ignore[attr-defined]
    assert made.rows() == before
