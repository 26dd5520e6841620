"""Rows made again from the topics, on real Kafka and PostgreSQL: what differs is found, and nothing else."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from sqlalchemy import text

from ops.rebuild.difference import What
from outbox.settings import Settings
from tests.factories import settled
from tests.rebuilding import Shop, own_database


@pytest.fixture(scope="module")
def database(stack: Any) -> Generator[Settings]:
    with own_database(stack.settings) as settings:
        yield settings


@pytest.fixture
def shop(database: Settings, prefix: str) -> Generator[Shop]:
    made = Shop(database.model_copy(update={"topic_prefix": prefix, "group_prefix": prefix}))
    yield made
    made.wipe()


def test_a_right_ledger_rebuilds_without_difference_and_each_planted_one_is_found(shop: Shop, prefix: str) -> None:
    shop.send(settled(prefix=prefix, number=number) for number in range(50))
    assert shop.live() == 50
    rebuilt = shop.rebuild()
    assert (rebuilt.records, rebuilt.difference.findings, rebuilt.difference.compared) == (50, [], 50)
    with shop.tampering() as connection:
        connection.execute(text("UPDATE accounting.entry SET amount_fen = amount_fen + 1 WHERE voucher_no = 1"))
        connection.execute(text("DELETE FROM accounting.voucher WHERE voucher_no = 2"))
        connection.execute(
            text("UPDATE accounting.balance SET debit_fen = debit_fen + 7 WHERE account = 'channel_cost'")
        )
    again = shop.rebuild()
    assert again.was_resumed
    print(again.difference.findings)
    assert {(one.what, one.kind) for one in again.difference.findings} >= {
        (What.DIFFERENT, "voucher"),
        (What.MISSING, "voucher"),
    }
