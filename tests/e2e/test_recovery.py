"""The recovery how-tos, run on a stack of their own under payments: after each, lost 0, doubled 0, and the ledger agrees."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from consumers.accounting.ledger import correct_voucher, find_voucher, reverse_voucher
from ops.delivery.redeliver import redeliver_events
from ops.pipeline.checks import examine
from ops.pipeline.health import slot_state
from ops.pipeline.repair import plan_repair
from ops.pipeline.source import standing
from ops.stack.control import down, stop, up
from ops.stack.parts import PostgresPlace
from ops.stack.state import StackFolder
from ops.stack.tools import POSTGRES
from outbox.clock import utc_now
from outbox.migrate import ensure_publication
from outbox.publication import PUBLICATION
from tests.howto import PAGES, ROOT, Terminal, follow
from tests.pipeline import Pipeline, engine_of
from tests.shopping import Shopping, shopping
from tests.waiting import eventually
from tests.warm import warm_commands

Follow = Callable[..., None]


@pytest.fixture(scope="module")
def embedded(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--stack") != "embedded":
        pytest.skip("breaks the embedded stack")


@pytest.fixture(scope="module")
def folder(embedded: None) -> Generator[StackFolder]:
    """A stack for these pages alone: what is lost here was nobody else's."""
    made = StackFolder(name=f"recovery-{os.getpid()}")
    try:
        up(made, with_parent=True)
        yield made
    finally:
        down(made, wipe=True)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    with warm_commands(tmp_path_factory.mktemp("bin"), ROOT) as made:
        yield made


@pytest.fixture
def follow_page(request: pytest.FixtureRequest, commands: Path, tmp_path: Path) -> Follow:
    """Return what runs a page's commands on a stack and calls its hooks, by their names."""

    def follow_it(name: str, folder: StackFolder, **hooks: Callable[[], object]) -> None:
        terminal = terminal_on(folder, commands, tmp_path)
        follow(PAGES / f"{name}.md", terminal.run, hooks, write=request.config.getoption("--write-pages"))

    return follow_it


def terminal_on(folder: StackFolder, commands: Path, backups: Path) -> Terminal:
    """Return an operator's terminal; programs of PostgreSQL are an old version's, as a distribution may have them."""
    for name in POSTGRES:
        old = backups / name
        old.write_text(
            f"#!/bin/sh\necho '{name} (PostgreSQL) 15.14'\necho 'aborting because of server version mismatch' >&2\nexit 1\n"
        )
        old.chmod(0o755)
    return Terminal(folder, [commands, backups], {"BACKUPS": str(backups)})


def test_one_payment_is_followed(
    folder: StackFolder, commands: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    terminal = terminal_on(folder, commands, tmp_path)
    follow(ROOT / "docs/how-it-works.md", terminal.run, {}, write=request.config.getoption("--write-pages"))


def test_one_record_cannot_be_read(folder: StackFolder, follow_page: Follow) -> None:
    with shopping(folder, "poison") as shop:

        def history() -> None:
            shop.pay(8)
            shop.holds()

        def poison() -> None:
            shop.pay(8)
            eventually(lambda: shop.proof().parked == 4 and not shop.proof().lost, what="parked at four, others flow")

        follow_page("recover-poison", folder, history=history, poison=poison)
        shop.holds()


def test_the_slot_was_dropped(folder: StackFolder, follow_page: Follow) -> None:
    with shopping(folder, "slot") as shop:

        def history() -> None:
            shop.pay(6)
            shop.holds()

        def unpublished() -> None:
            with engine_of(shop.settings, "owner").begin() as owner:
                owner.execute(text(f"DROP PUBLICATION {PUBLICATION}"))
            shop.pay(8)
            last = max(shop.count(f"SELECT max(lsn) FROM {service}.outbox") for service in ("bank", "payments"))
            eventually(lambda: shop.count(SENT) > last, what="PostgreSQL has passed over them")
            with engine_of(shop.settings, "owner").begin() as owner:
                assert ensure_publication(owner)
            eventually(
                lambda: slot_state(shop.settings).confirmed_lsn > last, what="the connector has passed over them"
            )

        follow_page(
            "recover-slot",
            folder,
            history=history,
            dropped=lambda: shop.pay(10),
            unpublished=unpublished,
            settled=shop.holds,
        )


SENT = """
    SELECT (sent_lsn - '0/0'::pg_lsn)::bigint FROM pg_stat_replication
    WHERE pid IN (SELECT active_pid FROM pg_replication_slots)"""


def published(shop: Shopping) -> None:
    """Every event that was recorded is on its topic."""
    shop.settled()
    eventually(lambda: not plan_repair(shop.settings, now=utc_now()).missing, what="everything recorded is published")


def noted(shop: Shopping) -> None:
    """Kafka Connect has noted that everything is published: started again, it emits none of it."""
    with engine_of(shop.settings, "owner").execution_options(isolation_level="AUTOCOMMIT").connect() as owner:
        owner.execute(text("SELECT pg_switch_wal()"))
        end = owner.execute(text("SELECT CAST(pg_current_wal_lsn() - '0/0' AS bigint)")).scalar_one()
    eventually(lambda: (standing(shop.settings).noted_lsn or 0) >= end, within_s=60, what="Connect has noted it")


def test_somebody_has_moved_a_consumer_group(folder: StackFolder, follow_page: Follow) -> None:
    with shopping(folder, "reset") as shop:

        def history() -> None:
            shop.pay(4)
            shop.holds()

        def meanwhile() -> None:
            shop.pay(8)
            published(shop)

        def went_on() -> None:
            shop.pay(4)
            eventually(lambda: shop.count(VOUCHERS) >= 4 + 8 + 4, what="what came after the reset has its vouchers")

        follow_page("recover-reset", folder, history=history, meanwhile=meanwhile, went_on=went_on, settled=shop.holds)


VOUCHERS = """
    SELECT count(DISTINCT voucher_no) FROM accounting.voucher JOIN accounting.entry USING (voucher_no)
    WHERE kind = 'settlement' AND account LIKE 'merchant_payable:' || :like"""


def test_a_handler_had_a_bug_for_an_hour(folder: StackFolder, follow_page: Follow, tmp_path: Path) -> None:
    with shopping(folder, "bug") as shop, ThreadPoolExecutor(1) as beside:
        paying: list[Future[object]] = []

        def bug() -> None:
            shop.pay(6)
            shop.holds()
            reverse_by_mistake(shop)
            stop(folder, ["worker:accounting"])
            hour = Pipeline(shop.settings, tmp_path)
            worker = hour.ready(hour.start(entry=["tests.faults.buggy_worker"]))
            shop.pay(10)
            published(shop)
            eventually(lambda: shop.count(APPLIED) == shop.count(RECORDED), what="the worker has applied everything")
            assert worker.end() == 0

        def settled() -> None:
            paying[0].result(60)
            shop.holds()

        follow_page(
            "recover-bug", folder, bug=bug, traffic=lambda: paying.append(beside.submit(shop.pay, 12)), settled=settled
        )


RECORDED = "SELECT count(*) FROM payments.outbox WHERE correlation LIKE :like"
APPLIED = """
    SELECT count(*) FROM accounting.inbox WHERE consumer = 'accounting' AND topic = 'payment.order' AND event_id IN (
      SELECT id FROM payments.outbox WHERE correlation LIKE :like)"""


def reverse_by_mistake(shop: Shopping) -> None:
    """A voucher was reversed by hand, and what is right posted in its place."""
    with engine_of(shop.settings, "accounting").begin() as connection:
        number = connection.execute(
            text("SELECT min(voucher_no) FROM entry WHERE account LIKE 'merchant_payable:' || :like"),
            {"like": f"{shop.name}-%"},
        ).scalar_one()
        how: Any = {"reason": "taken for another", "actor": "test", "at": utc_now()}
        reverse_voucher(connection, number, **how)
        correct_voucher(connection, number, find_voucher(connection, number).entries, **how)


def test_a_topic_was_deleted(folder: StackFolder, follow_page: Follow) -> None:
    """After this, nobody can rebuild the stack's history from its beginning: the old topic is gone."""
    with shopping(folder, "topic") as shop:

        def history() -> None:
            shop.pay(6)
            shop.holds()

        def unread() -> None:
            shop.pay(8)
            published(shop)
            noted(shop)  # or Connect, started again, would emit it to the new topic by itself

        def meanwhile() -> None:
            shop.pay(4)
            eventually(lambda: shop.count(VOUCHERS) > 6, within_s=90, what="what is recorded now flows")

        follow_page(
            "recover-topic",
            folder,
            history=history,
            unread=unread,
            deleted=lambda: shop.pay(4),
            meanwhile=meanwhile,
            settled=shop.holds,
        )


def test_a_database_was_restored_from_an_older_backup(
    folder: StackFolder, follow_page: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer's, a service's that others follow, and at last the whole: what was recorded after that copy stays lost to it.

    The last in this file: the ledger names those payments ever after.
    """
    monkeypatch.setenv("DATA", str(PostgresPlace.of(folder).data))
    with shopping(folder, "backup") as shop, shopping(folder, "gone") as gone:

        def day() -> None:
            shop.pay(10)
            shop.holds()

        def answered() -> None:
            eventually(lambda: shop.proof().parked, what="funds has answered again")
            eventually(lambda: not shop.proof().lost, what="funds has caught up")

        def afterwards() -> None:
            gone.pay(6)
            gone.holds()
            noted(shop)

        def unpublished() -> None:
            shop.pay(6)
            eventually(looks_well, within_s=60, what="the connector streams, by all that it says of itself")
            missing = sorted(plan_repair(shop.settings, now=utc_now()).missing)
            passed_over = redeliver_events(shop.settings, "bank_notification", missing, execute=False)
            assert passed_over.applied, "what was paid now is nowhere"
            assert not passed_over.waiting, "nothing will bring them"

        def looks_well() -> bool:
            checks = {check.check: check.ok for check in examine(shop.settings, now=utc_now())}
            return all(checks[name] for name in ("heartbeat", "slot", "publication", "connector"))

        follow_page(
            "recover-backup",
            folder,
            history=day,
            day=day,
            meanwhile=lambda: shop.pay(6),
            before=shop.holds,
            settled=shop.holds,
            answered=answered,
            afterwards=afterwards,
            unpublished=unpublished,
        )
        shop.holds()
