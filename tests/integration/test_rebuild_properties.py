"""Any history rebuilds without difference, whatever was parked, skipped, retried and reversed in it; and any planted one is found."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from sqlalchemy import text

from consumers.accounting.agent import PROCESSOR as ACCOUNTING
from consumers.accounting.ledger import reverse_voucher
from consumers.delivery.loop import Delivery
from consumers.delivery.retry import retry_key, skip
from ops.rebuild.difference import IS_DIFFERENCE, What
from outbox.clock import utc_now
from outbox.errors import Refused
from outbox.parking import Act, Action
from outbox.settings import Settings
from schemas.events import Event
from tests.factories import deposited, settled, suspense
from tests.pipeline import engine_of, fresh_id
from tests.rebuilding import Shop, own_database, rejecting

EXAMPLES = int(os.environ.get("PROPERTY_REBUILDS", "4"))
"""A larger run: PROPERTY_REBUILDS=200 .venv/bin/python -m pytest tests/integration/test_rebuild_properties.py --timeout 0"""

REJECTED = (3, 4)
NUMBERS = st.integers(0, 9)
SEND = st.tuples(st.sampled_from(["settled"] * 6 + ["suspense", "deposit", "repeat", "second", "unreadable"]), NUMBERS)
ACT = st.tuples(st.sampled_from(["live"] * 3 + ["skip", "retry", "reverse", "rebuild"]), NUMBERS)
PLANTED = st.sampled_from(["gone", "amount", "account", "balance", "extra"])


@pytest.fixture(scope="module")
def database(stack: Any) -> Generator[Settings]:
    with own_database(stack.settings) as settings:
        yield settings


@dataclass
class History:
    """A ledger's history as it happens."""

    shop: Shop
    prefix: str
    sent: list[tuple[Event, UUID, bool]] = field(default_factory=list)
    waiting: list[tuple[Event, UUID, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = engine_of(self.shop.settings, "accounting")
        self.live = rejecting(ACCOUNTING, {self.payment(number).key for number in REJECTED})

    def payment(self, number: int) -> Event:
        return settled(prefix=self.prefix, number=number)

    def event(self, kind: str, number: int) -> Event:
        if kind == "suspense":
            return suspense(payment_no=f"{self.prefix}P{number:06d}", bank_transaction_no=f"{self.prefix}S{number}")
        if kind == "deposit":
            return deposited(deposit_no=f"{self.prefix}D{number}", payer_no=f"{self.prefix}U{number}")
        return self.payment(number)

    def send(self, kind: str, number: int) -> None:
        everything = [*self.sent, *self.waiting]
        if kind == "repeat" and everything:
            self.waiting.append(everything[number % len(everything)])
        else:
            self.waiting.append((self.event(kind, number), fresh_id(), kind == "unreadable"))

    def act(self, what: str, number: int) -> None:
        match what:
            case "live":
                self.deliver()
            case "skip" if parked := self.rows("SELECT id FROM accounting.parked ORDER BY id"):
                act = Act(action=Action.SKIP, actor="test", reason="r")
                skip(self.engine, self.shop.consumer, parked[number % len(parked)].id, act)
            case "retry" if parked := self.rows("SELECT key FROM accounting.parked ORDER BY id"):
                delivery = Delivery(self.live, self.engine, consumer=self.shop.consumer, clock=utc_now)
                key = parked[number % len(parked)].key
                retry_key(self.engine, delivery, key, Act(action=Action.RETRY, actor="test"))
            case "reverse" if posted := self.rows("SELECT voucher_no FROM accounting.voucher ORDER BY voucher_no"):
                try:
                    with self.engine.begin() as connection:
                        number = posted[number % len(posted)].voucher_no
                        reverse_voucher(connection, number, reason="r", actor="a", at=utc_now())
                except Refused:
                    pass  # it was, or is one
            case "rebuild":
                self.shop.rebuild(self.live)

    def deliver(self) -> None:
        self.shop.produce(self.waiting)
        self.sent += self.waiting
        self.waiting = []
        self.shop.live(self.live)

    def rows(self, statement: str) -> list[Any]:
        return self.shop.rows(statement)

    def plant(self, kind: str) -> str:
        """Return what must be named of a difference that now is there."""
        last = """(SELECT max(voucher_no) FROM accounting.voucher WHERE event_id IS NOT NULL AND NOT EXISTS
                   (SELECT FROM accounting.voucher AS later WHERE later.reverses = voucher.voucher_no))"""
        statements = {
            "gone": f"""WITH gone AS (DELETE FROM accounting.voucher WHERE voucher_no = {last} RETURNING voucher_no, kind, business_no),
                        entries AS (DELETE FROM accounting.entry USING gone WHERE entry.voucher_no = gone.voucher_no)
                        SELECT kind || ' ' || business_no FROM gone""",
            "amount": f"""WITH changed AS (UPDATE accounting.entry SET amount_fen = amount_fen + 1 WHERE voucher_no = {last} RETURNING voucher_no)
                          SELECT DISTINCT kind || ' ' || business_no FROM changed JOIN accounting.voucher USING (voucher_no)""",
            "account": f"""WITH changed AS (UPDATE accounting.entry
                                            SET account = CASE account WHEN 'suspense' THEN 'fee_income' ELSE 'suspense' END
                                            WHERE voucher_no = {last} AND line = 2 RETURNING voucher_no)
                           SELECT kind || ' ' || business_no FROM changed JOIN accounting.voucher USING (voucher_no)""",
            "balance": """UPDATE accounting.balance SET credit_fen = credit_fen + 1
                          WHERE (account, currency, stripe) = (SELECT account, currency, stripe FROM accounting.balance LIMIT 1)
                          RETURNING account || ' ' || currency""",
            "extra": f"""WITH made AS (INSERT INTO accounting.voucher (business_no, kind, event_id, currency, occurred_at, lines)
                                      SELECT 'planted', 'settlement', '{fresh_id()}', 'CNY', now(), 2 RETURNING voucher_no),
                         lines AS (INSERT INTO accounting.entry SELECT voucher_no, line, 'suspense', side, 1
                                   FROM made, (VALUES (1, 'D'), (2, 'C')) AS of (line, side))
                         SELECT 'settlement planted' FROM made""",
        }
        with self.shop.tampering() as owner:
            return str(owner.execute(text(statements[kind])).scalar() or "")


def play(history: History, steps: list[tuple[str, int]]) -> None:
    acts = ("live", "skip", "retry", "reverse", "rebuild")
    for what, number in steps:
        (history.act if what in acts else history.send)(what, number)
    history.deliver()


def test_any_history_rebuilds_without_difference_and_any_planted_one_is_named(database: Settings) -> None:
    @given_settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(SEND | ACT, min_size=15, max_size=30), PLANTED, st.booleans())
    def property_(steps: list[tuple[str, int]], planted: str, mended: bool) -> None:
        prefix = f"t{uuid4().hex[:8]}-"
        shop = Shop(database.model_copy(update={"topic_prefix": prefix, "group_prefix": prefix}))
        history = History(shop, prefix)
        try:
            play(history, steps)
            handler = ACCOUNTING if mended else history.live
            rebuilt = shop.rebuild(handler, anew=mended)
            assert rebuilt.difference.is_empty, rebuilt.difference.findings
            assert {finding.what for finding in rebuilt.difference.findings} <= {What.PARKED}
            if not history.rows("SELECT FROM accounting.parked WHERE event_id IS NOT NULL"):
                assert rebuilt.difference.findings == []
            if named := history.plant(planted):
                again = shop.rebuild(handler)
                assert named in {
                    finding.subject for finding in again.difference.findings if finding.what in IS_DIFFERENCE
                }
        finally:
            shop.wipe()

    property_()
