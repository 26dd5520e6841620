"""The recovery how-tos, run on a stack of their own under payments: after each, lost 0, doubled 0, and the ledger agrees."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator

import pytest
from confluent_kafka import Producer
from sqlalchemy import text

from connect.client import ConnectClient
from ops.stack.control import down, up
from ops.stack.state import StackFolder
from schemas.topics import PAYMENT_ORDER
from tests.howto import PAGES, Terminal, follow
from tests.pipeline import engine_of, fresh_id
from tests.shopping import shopping
from tests.waiting import eventually

Follow = Callable[..., None]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Generator[StackFolder]:
    """A stack for these pages alone: what is lost here was nobody else's."""
    if request.config.getoption("--stack") != "embedded":
        pytest.skip("breaks the embedded stack")
    made = StackFolder(name=f"recovery-{os.getpid()}")
    try:
        up(made, with_parent=True)
        yield made
    finally:
        down(made, wipe=True)


@pytest.fixture
def follow_page(request: pytest.FixtureRequest, folder: StackFolder) -> Follow:
    """Return what runs a page's commands on the stack and calls its hooks, by their names."""

    def follow_it(name: str, **hooks: Callable[[], object]) -> None:
        follow(PAGES / f"{name}.md", Terminal(folder).run, hooks, write=request.config.getoption("--write-howto"))

    return follow_it


def test_one_record_cannot_be_read(folder: StackFolder, follow_page: Follow) -> None:
    with shopping(folder, "poison") as shop:

        def poison() -> None:
            shop.pay(8)
            shop.holds()
            with engine_of(shop.settings, "ops").connect() as connection:
                key = connection.execute(
                    text("SELECT payment_no FROM payments.payment WHERE order_no = 'poison-O000000'")
                ).scalar_one()
            told = {
                "ce_id": str(fresh_id()),
                "ce_type": "payment.settled.v1",
                "aggregate_version": "9",
                "correlation": "poison-O000000",
            }
            producer = Producer({"bootstrap.servers": shop.settings.kafka_bootstrap})
            producer.produce(PAYMENT_ORDER.name, key=key, value='{"payment_no": "P', headers=list(told.items()))
            producer.flush(10)
            shop.pay(8)
            eventually(lambda: shop.proof().parked == 4 and not shop.proof().lost, what="parked at four, others flow")

        follow_page("recover-poison", poison=poison)
        shop.holds()


def test_the_slot_was_dropped(folder: StackFolder, follow_page: Follow) -> None:
    with shopping(folder, "slot") as shop:

        def dropped() -> None:
            shop.pay(6)
            shop.holds()
            client = ConnectClient(shop.settings.connect_url)
            client.stop(shop.settings.connector)
            client.wait_stopped(shop.settings.connector)
            with engine_of(shop.settings, "owner").execution_options(isolation_level="AUTOCOMMIT").connect() as owner:
                owner.execute(text("SELECT pg_drop_replication_slot(:slot)"), {"slot": shop.settings.slot})
            shop.pay(10)
            eventually(lambda: shop.count(SETTLED) >= 12, what="settled with the bank, told to nobody")

        follow_page("recover-slot", dropped=dropped, settled=shop.holds)


SETTLED = "SELECT count(*) FROM payments.payment WHERE merchant_no LIKE :like AND status = 'SETTLED'"
