"""The ledger's statements and trial balances on real PostgreSQL, over vouchers of the test's own merchant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection

from consumers.accounting.ledger import post
from ops.ledger import Balance, ledger_problems, statement, trial_balance
from outbox.settings import Settings
from schemas.codec import Envelope
from tests.factories import settled
from tests.pipeline import engine_of, fresh_id

DAY = timedelta(days=1)
# Long ago, so that a balance at a time holds nothing of other tests.
BEGIN = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.fixture
def account(settings: Settings, prefix: str) -> str:
    """Return the account of a merchant who was paid 100, 200 and 300 yuan on three days, less a fee of 1 yuan each."""
    events = [
        Envelope(
            id=fresh_id(),
            version=1,
            correlation="c",
            event=settled(
                prefix=prefix,
                number=number,
                merchant_no=f"{prefix}M",
                amount_fen=10_000 * number,
                fee_fen=100,
                settled_at=BEGIN + number * DAY,
            ),
        )
        for number in (1, 2, 3)
    ]
    with engine_of(settings, "accounting").begin() as connection:
        post(connection, events)
    return f"merchant_payable:{prefix}M"


@pytest.fixture
def reader(settings: Settings) -> Connection:
    return engine_of(settings, "ops").connect()


def test_a_statement_carries_its_balance_from_opening_to_closing(reader: Connection, account: str) -> None:
    whole = statement(reader, account, currency="CNY", begin=None, end=None)
    assert [line.balance_fen for line in whole] == [0, 9_900, 29_800, 59_700, 59_700]
    middle = statement(reader, account, currency="CNY", begin=BEGIN + 2 * DAY, end=BEGIN + 3 * DAY)
    assert [(line.kind, line.credit_fen, line.balance_fen) for line in middle] == [
        ("opening", 0, 9_900),
        ("settlement", 19_900, 29_800),
        ("closing", 0, 29_800),
    ]
    assert [line.balance_fen for line in statement(reader, account, currency="USD", begin=None, end=None)] == [0, 0]
    reader.close()


def test_a_trial_balance_now_and_at_a_time(reader: Connection, account: str) -> None:
    def of(balances: list[Balance]) -> list[tuple[int, int, int]]:
        return [(one.debit_fen, one.credit_fen, one.balance_fen) for one in balances if one.account == account]

    assert of(trial_balance(reader)) == [(0, 59_700, 59_700)]
    assert of(trial_balance(reader, at=BEGIN + 3 * DAY)) == [(0, 29_800, 29_800)]
    for balances in (trial_balance(reader), trial_balance(reader, at=BEGIN + 3 * DAY)):
        assert sum(one.debit_fen - one.credit_fen for one in balances) == 0
    assert of(trial_balance(reader, at=BEGIN)) == []
    assert ledger_problems(reader) == []
    reader.close()
