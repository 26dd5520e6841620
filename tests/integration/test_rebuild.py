"""Rows rebuilt from the topics, on real Kafka and PostgreSQL: all differences are found and nothing else, and they are corrected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from sqlalchemy import Connection, text
from typer.testing import CliRunner

from consumers.accounting.agent import PROCESSOR as ACCOUNTING
from consumers.accounting.entries import Entry
from consumers.accounting.ledger import correct_voucher, reverse_voucher
from consumers.delivery.loop import Delivery
from consumers.delivery.processor import Processor
from consumers.delivery.retry import retry_key, skip
from consumers.funds.funds import deposit
from consumers.points.agent import PROCESSOR as POINTS
from consumers.processors import EFFECTS
from ops.cli.main import app
from ops.kafka.topics import admin_client
from ops.ledger.reads import check
from ops.rebuild.checkpoint import take_checkpoint
from ops.rebuild.correct import correct, corrections_of
from ops.rebuild.difference import What
from ops.rebuild.rebuild import Rebuilt, alone
from ops.rebuild.schemas import find_schemas
from ops.rebuild.switch import require_switchable, switch
from ops.reconcile.correct import correct as correct_effect
from ops.stack.parts import tied
from outbox.clock import utc_now
from outbox.errors import PayrelayError, Refused
from outbox.migrate import owner_engine
from outbox.parking import Act, Action
from outbox.partitions import days_of, make_days
from outbox.settings import Settings
from schemas.codec import Envelope
from schemas.events import PaymentSettled
from tests import loyalty
from tests.factories import balance_requested, envelope, settled, suspense
from tests.pipeline import ROOT, engine_of, environment, fresh_id
from tests.rebuilding import Shop, own_database, rejecting
from tests.waiting import eventually

Differences = set[tuple[str, str, str]]


@pytest.fixture(scope="module")
def database(stack: Any) -> Generator[Settings]:
    with own_database(stack.settings) as settings:
        yield settings


@pytest.fixture
def of(database: Settings, prefix: str) -> Generator[Callable[[str], Shop]]:
    """Give a consumer's stretch by the processor's name."""
    settings = database.model_copy(
        update={"topic_prefix": prefix, "group_prefix": prefix, "metadata_max_age_s": 1.0, "batch_max": 50}
    )
    made: list[Shop] = []

    def shop_of(name: str) -> Shop:
        made.append(Shop(settings, name))
        return made[-1]

    yield shop_of
    made[0].wipe()


@pytest.fixture
def shop(of: Callable[[str], Shop]) -> Shop:
    return of("accounting")


def payments(shop: Shop, count: int, *, first: int = 0) -> list[PaymentSettled]:
    return [settled(prefix=shop.settings.topic_prefix, number=first + number) for number in range(count)]


def differences(rebuilt: Rebuilt) -> Differences:
    return {(finding.what.value, finding.kind, finding.subject) for finding in rebuilt.difference.findings}


def vouchers(shop: Shop) -> dict[str, int]:
    """Return the numbers of the vouchers that events caused, by business number."""
    rows = shop.rows("SELECT business_no, voucher_no FROM accounting.voucher WHERE event_id IS NOT NULL")
    return {row.business_no: row.voucher_no for row in rows}


def posts_wrong(processor: Processor, wrong: Callable[[PaymentSettled], PaymentSettled | None]) -> Processor:
    """Return a processor that takes a payment for what `wrong` makes of it."""

    def handle(connection: Connection, events: Sequence[Envelope]) -> None:
        seen = [
            replace(envelope, event=event)
            for envelope in events
            if (event := wrong(envelope.event) if isinstance(envelope.event, PaymentSettled) else envelope.event)
            is not None
        ]
        processor.handle(connection, seen)

    return replace(processor, handle=handle)


def without_fee(event: PaymentSettled) -> PaymentSettled:
    """The bug: no fee."""
    return PaymentSettled(**{name: getattr(event, name) for name in event.__struct_fields__} | {"fee_fen": 0})


def test_a_right_ledger_rebuilds_without_difference_and_each_planted_one_is_named(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = payments(shop, 40)
    identities = shop.send(of)
    assert shop.live() == 40
    shop.send(of[:5], ids=identities)  # the connector repeats itself
    shop.live()
    rebuilt = shop.rebuild()
    assert (rebuilt.records, rebuilt.difference.findings, rebuilt.difference.compared) == (45, [], 40)
    assert shop.rebuild().was_resumed
    monkeypatch.setattr("ops.rebuild.rebuild.code_of", lambda: "other code")
    assert not shop.rebuild().was_resumed
    numbers = vouchers(shop)
    with shop.tampering() as owner:
        changed, gone = numbers[of[0].payment_no], numbers[of[1].payment_no]
        owner.execute(
            text("UPDATE accounting.entry SET amount_fen = amount_fen + 1 WHERE voucher_no = :no"), {"no": changed}
        )
        owner.execute(text("DELETE FROM accounting.voucher WHERE voucher_no = :no"), {"no": gone})
        owner.execute(
            text(
                "UPDATE accounting.balance SET debit_fen = debit_fen + 7 WHERE account = 'fee_income' AND stripe = (SELECT min(stripe) FROM accounting.balance WHERE account = 'fee_income')"
            )
        )
        owner.execute(
            text("""INSERT INTO accounting.voucher (business_no, kind, event_id, currency, occurred_at, lines)
                    VALUES ('nobody', 'settlement', :id, 'CNY', now(), 2)"""), {"id": fresh_id()})  # fmt: skip
        owner.execute(
            text("""INSERT INTO accounting.entry SELECT voucher_no, line, 'suspense', side, 5 FROM accounting.voucher,
                    (VALUES (1, 'D'), (2, 'C')) AS of (line, side) WHERE business_no = 'nobody'"""))  # fmt: skip
    again = shop.rebuild()
    assert (again.was_resumed, again.records) == (True, 0)
    assert differences(again) == {
        ("different", "voucher", f"settlement {of[0].payment_no}"),
        ("missing", "voucher", f"settlement {of[1].payment_no}"),
        ("extra", "voucher", "settlement nobody"),
        ("different", "account", "fee_income CNY"),
    }
    [extra] = [finding for finding in again.difference.findings if finding.what is What.EXTRA]
    assert not extra.is_met
    assert not again.difference.is_empty
    assert "settlement nobody" not in {correction.finding.subject for correction in corrections_of(again)}


def settle_in_payments(shop: Shop, settled_: Sequence[PaymentSettled], *, suspense_no: str) -> None:
    """Payments has settled these, and put one amount into suspense: what `ledger check` holds the ledger against."""
    with shop.tampering() as owner:
        owner.execute(
            text("""INSERT INTO payments.payment (payment_no, merchant_no, order_no, payer_no, amount_fen, currency, request_sha256,
                      status, limit_day, fee_fen, points, cost_fen, bank_transaction_no, created_at, expires_at, finished_at)
                    VALUES (:payment_no, :merchant_no, :order_no, :payer_no, :amount_fen, 'CNY', '', 'SETTLED', now(), :fee_fen,
                            :points, 0, :bank_transaction_no, now(), now(), now())"""),
            [{name: getattr(event, name) for name in event.__struct_fields__} for event in settled_],
        )
        owner.execute(
            text("""INSERT INTO payments.suspense (bank_transaction_no, payment_no, amount_fen, currency, reason, recorded_at)
                    VALUES (:no, :no, 10000, 'CNY', 'expired', now())"""),
            {"no": suspense_no},
        )


def correct_by_hand(shop: Shop, voucher_no: int, event: PaymentSettled, *, fee_fen: int) -> None:
    with engine_of(shop.settings, "accounting").begin() as connection:
        reverse_voucher(connection, voucher_no, reason="by hand", actor="test", at=utc_now())
        entries = [
            Entry(account="bank_clearing", side="D", amount_fen=event.amount_fen),
            Entry(account="fee_income", side="C", amount_fen=fee_fen),
            Entry(account=f"merchant_payable:{event.merchant_no}", side="C", amount_fen=event.amount_fen - fee_fen),
        ]
        correct_voucher(connection, voucher_no, entries, reason="by hand", actor="test", at=utc_now())


def test_a_bug_of_an_hour_is_corrected_by_vouchers_once_and_what_people_did_stands(shop: Shop, prefix: str) -> None:
    """History before the bug, wrong and missing vouchers of it, reversals and corrections by hand, and traffic after it."""
    everything = payments(shop, 70)
    bug = everything[30:60]
    wrong, dropped = bug[:20], {payment.payment_no for payment in bug[20:25]}
    settle_in_payments(shop, everything, suspense_no=f"{prefix}B")
    shop.send(everything[:30])
    shop.live()
    shop.send(bug)
    shop.live(
        posts_wrong(
            ACCOUNTING,
            lambda event: None if event.payment_no in dropped else without_fee(event) if event in wrong else event,
        )
    )
    shop.send([suspense(payment_no=f"{prefix}S", bank_transaction_no=f"{prefix}B")])
    shop.live()
    numbers = vouchers(shop)
    by: dict[str, Any] = {"reason": "the handler forgot fees", "actor": "test", "at": utc_now()}
    with engine_of(shop.settings, "accounting").begin() as connection:
        reverse_voucher(connection, numbers[f"{prefix}B"], **by)  # resolved: right, and taken back
        reverse_voucher(connection, numbers[wrong[0].payment_no], **by)  # wrong, and taken back
    correct_by_hand(shop, numbers[wrong[1].payment_no], wrong[1], fee_fen=60)  # as it should have been
    correct_by_hand(shop, numbers[wrong[2].payment_no], wrong[2], fee_fen=99)  # as somebody has decided
    rebuilt = shop.rebuild()
    whats = Counter(finding.what for finding in rebuilt.difference.findings if finding.kind == "voucher")
    assert whats == {What.DIFFERENT: 18, What.MISSING: 5, What.BY_HAND: 1}
    chosen = corrections_of(rebuilt)
    assert Counter(correction.action for correction in chosen) == {"reverse and correct": 17, "correct": 1, "post": 5}
    shop.send(everything[60:])
    shop.live()
    posted = [done for _, done in correct(shop.settings, rebuilt, chosen, **by)]
    assert not [done for done in posted if done.startswith("nothing")]
    again = shop.rebuild()
    assert differences(again) == {("by hand", "voucher", f"settlement {wrong[2].payment_no}")}
    assert again.difference.is_empty
    assert all(done.startswith("nothing") for _, done in correct(shop.settings, rebuilt, chosen, **by))
    assert corrections_of(again) == []
    assert check(engine_of(shop.settings, "ops"), before=utc_now() + timedelta(hours=1)) == []
    assert shop.rebuild(anew=True).difference.is_empty


def test_a_voucher_that_the_handler_makes_no_more_is_reversed(shop: Shop) -> None:
    shop.send(payments(shop, 10))
    shop.live()
    fixed = posts_wrong(ACCOUNTING, lambda event: None if event.payment_no.endswith("3") else event)
    rebuilt = shop.rebuild(fixed)
    assert [finding.what for finding in rebuilt.difference.findings if finding.kind == "voucher"] == [What.EXTRA]
    by: dict[str, Any] = {"reason": "r", "actor": "a", "at": utc_now()}
    shown, rebuilt = rebuilt, shop.rebuild(fixed, anew=True)  # somebody else's: its vouchers' numbers are others
    with pytest.raises(Refused, match="made again or dropped since it was compared"):
        list(correct(shop.settings, shown, corrections_of(shown), **by))
    with pytest.raises(Refused, match="made again or dropped since it was compared"):
        switch(shop.settings, shown)
    with engine_of(shop.settings, "accounting").connect() as holder, ThreadPoolExecutor(1) as pool:
        holder.execute(text("LOCK TABLE accounting.balance IN SHARE MODE"))
        correcting = pool.submit(list, correct(shop.settings, rebuilt, corrections_of(rebuilt), **by))
        ended = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'accounting.balance'::regclass AND NOT granted"
        eventually(lambda: shop.rows(ended, "owner"), what="its first attempt has been ended")
        holder.rollback()
        [(_, done)] = correcting.result()
    assert done.startswith("reversed")
    assert shop.rebuild(fixed).difference.findings == []


def test_what_is_parked_is_named_so_and_what_was_skipped_is_skipped_again(shop: Shop) -> None:
    bad = payments(shop, 12)
    rejected = {payment.payment_no for payment in bad[:4]}
    shop.send(bad[:6])
    shop.send(bad[6:8], poison=True)
    shop.send(bad[8:])
    shop.live(rejecting(ACCOUNTING, rejected))
    act = Act(action=Action.SKIP, actor="test", reason="not ours")
    engine = engine_of(shop.settings, "accounting")
    lot = shop.rows("SELECT id, cause FROM accounting.parked ORDER BY id")
    rejections = [row.id for row in lot if row.cause == "REJECTED"]
    unreadable = [row.id for row in lot if row.cause == "UNDECODABLE"]
    assert (len(rejections), len(unreadable)) == (4, 2)
    for number in (rejections[0], unreadable[0]):
        assert skip(engine, shop.consumer, number, act)
    rebuilt = shop.rebuild()  # with the handler fixed
    assert [finding.what for finding in rebuilt.difference.findings] == [What.PARKED] * 3
    assert rebuilt.difference.is_empty
    assert rebuilt.parked == 1
    delivery = Delivery(ACCOUNTING, engine, consumer=shop.consumer, clock=utc_now)
    for key in rejected:
        retry_key(engine, delivery, key.encode(), Act(action=Action.RETRY, actor="test"))
    assert shop.rebuild().difference.findings == []
    assert skip(engine, shop.consumer, unreadable[1], act)
    assert not (later := shop.rebuild()).was_resumed
    assert (later.difference.findings, later.parked) == ([], 0)


def test_a_cut_history_is_refused_and_goes_on_from_a_checkpoint(shop: Shop) -> None:
    shop.send(payments(shop, 20))
    shop.live()
    with engine_of(shop.settings, "accounting").begin() as connection:
        reverse_voucher(
            connection, vouchers(shop)[payments(shop, 1)[0].payment_no], reason="r", actor="a", at=utc_now()
        )
    made = take_checkpoint(shop.settings, shop.consumer)
    shop.send(payments(shop, 20, first=20))
    shop.live()
    logs = shop.rebuild().positions
    topic = {log.partition: log.topic for log in logs if log.topic.endswith("payment.order")}
    cut = [TopicPartition(name, partition, 3) for partition, name in topic.items()]
    admin = admin_client(shop.settings)
    for future in admin.delete_records(cut).values():
        future.result(20)
    assert shop.rebuild().shadow.base == made.name
    rebuilt = shop.rebuild(checkpoint=made.name)
    assert (rebuilt.was_resumed, rebuilt.difference.findings, rebuilt.difference.compared) == (True, [], 40)
    with shop.tampering() as owner:
        owner.execute(
            text(
                f"UPDATE {made.name}.balance SET debit_fen = debit_fen + 1 WHERE account = 'bank_clearing' AND stripe = (SELECT max(stripe) FROM {made.name}.balance WHERE account = 'bank_clearing')"
            )
        )
    with pytest.raises(Refused, match="no sound beginning"):
        shop.rebuild(anew=True)
    with shop.tampering() as owner:
        owner.execute(text(f"DROP SCHEMA {made.name} CASCADE"))
    with pytest.raises(Refused, match=f"not whole.*payrelay replay checkpoint {shop.consumer}"):
        shop.rebuild()


def test_positions_that_were_set_back_or_lie_in_an_older_topic_are_refused(shop: Shop) -> None:
    shop.send(payments(shop, 20))
    shop.live()
    with shop.owner() as owner:
        owner.execute(text("UPDATE accounting.progress SET next_offset = 1 WHERE next_offset > 1"))
    with pytest.raises(Refused, match="was set back"):
        shop.rebuild()
    shop.live()
    with shop.owner() as owner:
        owner.execute(text("UPDATE accounting.progress SET topic_id = 'older'"))
    with pytest.raises(Refused, match=f"made again.*payrelay replay checkpoint {shop.consumer}"):
        shop.rebuild()
    made = take_checkpoint(shop.settings, shop.consumer)
    with shop.owner() as owner:  # the topic made again holds fewer records
        owner.execute(text("UPDATE accounting.progress SET next_offset = next_offset + 100"))
        owner.execute(text(f"UPDATE {made.name}.progress SET next_offset = next_offset + 100"))
    shop.send(payments(shop, 5, first=20))
    shop.live()
    rebuilt = shop.rebuild()
    assert (rebuilt.shadow.base, rebuilt.difference.findings, rebuilt.difference.compared) == (made.name, [], 25)


def test_old_events_beyond_positions_that_were_set_back_are_seen_too(shop: Shop) -> None:
    """A consumer that has yet to read what is older than its inbox knows such events by another table."""
    shop.send(payments(shop, 5))
    shop.live()
    columns = 'consumer, event_id, topic, partition, "offset", applied_at'
    with shop.owner() as owner:
        owner.execute(
            text(f"""WITH old AS (DELETE FROM accounting.inbox WHERE consumer = :consumer RETURNING {columns})
                     INSERT INTO accounting.inbox_behind ({columns}) SELECT {columns} FROM old"""),
            {"consumer": shop.consumer},
        )
        owner.execute(text("UPDATE accounting.progress SET next_offset = 0"))
    with pytest.raises(Refused, match="was set back"):
        shop.rebuild()


def test_records_of_an_aborted_transaction_are_read_as_live_reads_them_and_an_open_one_holds_up_nobody(
    shop: Shop,
) -> None:
    first, second = payments(shop, 2)
    shop.send([first])
    producer = Producer({"bootstrap.servers": shop.settings.kafka_bootstrap, "transactional.id": shop.consumer})
    producer.init_transactions(20)
    producer.begin_transaction()
    shop.produce([(second, fresh_id(), False)], producer)
    assert shop.live() == 2
    assert shop.rebuild().difference.findings == []
    producer.abort_transaction(20)
    assert (shop.live(), shop.rebuild(anew=True).difference.compared) == (0, 2)


def test_what_cannot_be_rebuilt_says_why_and_two_at_once_are_refused(shop: Shop) -> None:
    for name in ("settlement", "notification"):
        with pytest.raises(Refused, match=f"{name} cannot be rebuilt: its rows"):
            shop.rebuild(replace(ACCOUNTING, name=name))
    with alone(shop.settings, shop.consumer), pytest.raises(Refused, match="somebody else"):
        shop.rebuild()


def test_funds_is_compared_by_its_credits_with_what_it_decided_taken_as_it_stands(
    of: Callable[[str], Shop], prefix: str
) -> None:
    shop = of("funds")
    with engine_of(shop.settings, "funds").begin() as connection:
        deposit(connection, f"{prefix}D1", payer_no=f"{prefix}U", amount_fen=15_000, currency="CNY", at=utc_now())
    shop.send(payments(shop, 10))
    for number in (1, 2):  # the second one is refused: the balance is not enough
        request = balance_requested(
            payment_no=f"{prefix}B{number}", payer_no=f"{prefix}U", merchant_no=f"{prefix}M1", amount_fen=10_000
        )
        shop.send([request])
    shop.live()
    mistaken = payments(shop, 1)[0]
    account = {"no": mistaken.merchant_no, "payment_no": mistaken.payment_no}
    with shop.owner() as owner:  # credited 100 too little, and put right by an entry beside
        owner.execute(
            text("UPDATE funds.entry SET amount_fen = amount_fen - 100 WHERE payment_no = :payment_no"), account
        )
        owner.execute(text("UPDATE funds.account SET balance_fen = balance_fen - 100 WHERE account_no = :no"), account)
    assert len(shop.rebuild().difference.findings) == 2
    at_merchant = (EFFECTS["funds"], mistaken.payment_no, mistaken.merchant_no, envelope(mistaken, identity=fresh_id()))
    correct_effect(engine_of(shop.settings, "funds"), *at_merchant, reason="r", actor="a", at=utc_now())
    rebuilt = shop.rebuild()
    assert (rebuilt.difference.findings, rebuilt.difference.compared) == ([], 10)
    assert shop.rows(f"SELECT FROM {rebuilt.shadow.name}.outbox") == []
    with shop.owner() as owner:
        owner.execute(
            text("UPDATE funds.account SET balance_fen = balance_fen + 1 WHERE account_no = :no"), {"no": f"{prefix}M1"}
        )
    again = shop.rebuild()
    assert differences(again) == {("different", "account", f"{prefix}M1")}
    with pytest.raises(Refused, match="never swapped"), engine_of(shop.settings, "ops").connect() as connection:
        require_switchable(connection, again)


def described(shop: Shop, service: str) -> list[tuple[str, ...]]:
    """Return what the catalog says of a service's tables, but for its days."""
    tables = """(SELECT oid, relname, reloptions, relacl, relkind FROM pg_class
                 WHERE relnamespace = CAST(:service AS regnamespace) AND relkind IN ('r', 'p') AND NOT relispartition) AS t"""
    statements = (
        f"SELECT relname, relkind::text, reloptions::text, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(relacl) AS a)::text FROM {tables}",
        f"""SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull::text, attidentity::text, attacl::text,
                   (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum)
            FROM {tables} JOIN pg_attribute ON attrelid = t.oid AND attnum > 0""",
        f"SELECT relname, conname, pg_get_constraintdef(c.oid) FROM {tables} JOIN pg_constraint c ON conrelid = t.oid",
        f"SELECT relname, pg_get_indexdef(indexrelid), '' FROM {tables} JOIN pg_index ON indrelid = t.oid",
        f"SELECT relname, tgname, pg_get_triggerdef(g.oid) FROM {tables} JOIN pg_trigger g ON tgrelid = t.oid AND NOT tgisinternal",
    )
    return sorted(
        tuple(map(str, row)) for statement in statements for row in shop.rows(statement, "owner", service=service)
    )


def test_a_shadow_is_made_as_the_live_tables_are(of: Callable[[str], Shop]) -> None:
    def plain(rows: list[tuple[str, ...]], name: str) -> set[tuple[str, ...]]:
        return {tuple(cell.replace(f"{name}.", "").replace("ON ONLY", "ON") for cell in row) for row in rows}

    for service in ("accounting", "points", "funds"):
        shop = of(service)
        shadow = shop.rebuild().shadow.name
        live, made = plain(described(shop, service), service), plain(described(shop, shadow), shadow)
        # Not partitioned, and nothing for Debezium to read.
        differing = {row[0] for row in live ^ made}
        assert differing == {"inbox", "outbox"}
        assert not any("debezium" in cell for row in made for cell in row)


def test_points_are_switched_with_inbox_progress_and_lot_and_everything_else_is_as_before(
    of: Callable[[str], Shop],
) -> None:
    shop = of("points")
    of_all = payments(shop, 30)
    shop.send(of_all)
    rejected = {of_all[0].payment_no, of_all[1].payment_no}

    def half(event: PaymentSettled) -> PaymentSettled:
        return PaymentSettled(**{name: getattr(event, name) for name in event.__struct_fields__} | {"points": 50})

    shop.live(rejecting(posts_wrong(POINTS, half), rejected))
    before, made_at = described(shop, "points"), shop.rows("SELECT payment_no, created_at FROM points.entry ORDER BY 1")
    fixed = rejecting(POINTS, {of_all[1].payment_no, of_all[2].payment_no})
    rebuilt = shop.rebuild(fixed)
    assert not rebuilt.difference.is_empty
    shop.send(payments(shop, 5, first=30))
    shop.live(fixed)  # goes on, behind the rebuild's back
    stray_entry = {"id": fresh_id(), "payment_no": "nobody's", "account_no": of_all[0].payer_no}
    with shop.tampering() as owner:  # redelivered from the outbox since: on no topic
        owner.execute(
            text("""INSERT INTO points.entry (payment_no, account_no, kind, points, event_id)
                    VALUES (:payment_no, :account_no, 'earn', 1, :id)"""),
            stray_entry,
        )
    with pytest.raises(Refused, match="1 rows would be lost"):
        switch(shop.settings, rebuilt, processor=fixed)
    with shop.tampering() as owner:
        owner.execute(text("DELETE FROM points.entry WHERE event_id = :id"), stray_entry)
    done = switch(shop.settings, rebuilt, processor=fixed)
    assert (done.known, done.unknown, done.parked) == (1, 1, 2)
    assert described(shop, "points") == before
    assert shop.rows("SELECT sum(balance) AS all FROM points.account")[0].all == 3_300
    kept = {row.payment_no: row.created_at for row in made_at}
    for row in shop.rows("SELECT payment_no, created_at FROM points.entry"):
        assert kept.get(row.payment_no, row.created_at) == row.created_at
    assert {row.has_parked for row in shop.rows("SELECT has_parked FROM points.progress")} == {True}
    old = shop.rows(f"SELECT sum(points) AS all FROM {done.old}.entry")
    assert old[0].all == 28 * 50 + 5 * 100
    assert len(shop.rows(f"SELECT FROM {done.old}.parked")) == 2
    engine = engine_of(shop.settings, "points")
    delivery = Delivery(POINTS, engine, consumer=shop.consumer, clock=utc_now)
    for key in (of_all[1].payment_no, of_all[2].payment_no):
        retry_key(engine, delivery, key.encode(), Act(action=Action.RETRY, actor="test"))
    shop.send(of_all[:3])
    shop.live()
    assert shop.rebuild(anew=True).difference.is_empty
    assert shop.rows("SELECT sum(balance) AS all FROM points.account")[0].all == 3_500
    with owner_engine(shop.settings).connect() as owner:
        ahead = days_of(owner, "points", "inbox")
    assert make_days(owner_engine(shop.settings), ["points"], today=ahead[-1], days_ahead=1)


def test_a_switch_beside_a_live_consumer_loses_and_doubles_nothing(of: Callable[[str], Shop]) -> None:
    shop = of("points")
    shop.send(payments(shop, 100))
    shop.live()
    with shop.owner() as owner:
        owner.execute(text("UPDATE points.entry SET points = 1 WHERE payment_no LIKE '%7'"))
    with shop.following() as delivered, ThreadPoolExecutor(1) as pool:
        rest = pool.submit(lambda: [shop.send(payments(shop, 10, first=first)) for first in range(100, 500, 10)])
        for _ in range(2):
            begun = len(delivered)
            eventually(lambda begun=begun: len(delivered) > begun, what="live goes on")
            switch(shop.settings, shop.rebuild())
        rest.result()
        eventually(lambda: len(shop.rows("SELECT FROM points.entry")) == 500, what="500 entries")
    assert shop.rows("SELECT sum(balance) AS all FROM points.account")[0].all == 50_000
    assert len(shop.rows("SELECT FROM points.inbox")) == 500
    assert shop.rebuild(anew=True).difference.findings == []
    assert len(shop.rows("SELECT FROM points.parked")) == 0


def command(shop: Shop, *arguments: str) -> subprocess.Popen[str]:
    """Return a started `payrelay replay` command, which ends with this process."""
    return subprocess.Popen(
        tied([sys.executable, "-m", "ops.cli.main", "replay", *arguments]),
        env={**os.environ, **environment(shop.settings)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_rebuild_that_is_killed_leaves_live_alone_and_goes_on(shop: Shop) -> None:
    shop.send(payments(shop, 3_000))
    shop.live()

    def live_rows() -> list[Any]:
        return shop.rows("SELECT * FROM accounting.balance ORDER BY account, currency, stripe")

    def fed() -> int:
        if shop.rows("SELECT to_regclass('accounting_rebuild.progress') AS found", "owner")[0].found is None:
            return 0
        return int(shop.rows("SELECT coalesce(sum(next_offset), 0) AS fed FROM accounting_rebuild.progress")[0].fed)

    before = live_rows()
    process = command(shop, "rebuild", shop.consumer)
    eventually(fed, what="the rebuild feeds")
    process.kill()
    process.communicate()
    eventually(
        lambda: not shop.rows("SELECT FROM pg_locks WHERE locktype = 'advisory'", "owner"), what="its end is seen"
    )
    assert live_rows() == before
    left = 3_000 - fed()
    again = shop.rebuild()
    assert (again.was_resumed, again.records, again.difference.compared) == (True, left, 3_000)
    assert again.difference.findings == []


def test_a_switch_that_is_killed_before_its_end_has_done_nothing(of: Callable[[str], Shop]) -> None:
    shop = of("points")
    shop.send(payments(shop, 20))
    shop.live()
    with shop.owner() as owner:
        owner.execute(text("UPDATE points.entry SET points = 1 WHERE payment_no LIKE '%7'"))

    def state() -> list[Any]:
        tables = ("account", "entry", "inbox", "progress", "parked")
        return [sorted(map(str, shop.rows(f"SELECT * FROM points.{table}"))) for table in tables]

    before, catalog = state(), described(shop, "points")
    with engine_of(shop.settings, "owner").begin() as holder:
        holder.execute(text("LOCK TABLE points.parked IN ROW EXCLUSIVE MODE"))  # the last lock that a switch takes
        process = command(shop, "rebuild", shop.consumer, "--switch", "--execute", "--yes")
        waits = "SELECT FROM pg_locks WHERE relation = 'points.parked'::regclass AND NOT granted"
        eventually(lambda: shop.rows(waits, "owner"), what="the switch waits for its last lock")
        process.kill()
        process.communicate()
    assert (state(), described(shop, "points")) == (before, catalog)
    switch(shop.settings, shop.rebuild())
    assert shop.rebuild().difference.findings == []
    assert shop.rows("SELECT sum(balance) AS all FROM points.account")[0].all == 2_000


def test_the_commands_show_first_and_do_what_is_meant(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(shop.settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["replay", *arguments])
        if isinstance(result.exception, PayrelayError):
            return result.exception.exit_code, "", str(result.exception)
        return result.exit_code, result.stdout, result.stderr

    shop.send(payments(shop, 12))
    shop.live(posts_wrong(ACCOUNTING, lambda event: without_fee(event) if event.payment_no.endswith("3") else event))
    code, out, said = run("rebuild", shop.consumer, "-o", "csv")
    assert (code, len(out.splitlines())) == (1, 4), said  # a voucher, its merchant, the fees
    assert run("rebuild", shop.consumer, "--correct")[0] == 2
    assert run("rebuild", shop.consumer, "--execute")[0] == 2
    correcting = ("rebuild", shop.consumer, "--correct", "--reason", "no fee for an hour", "-o", "json")
    code, out, said = run(*correcting)
    assert (code, json.loads(out)[0]["action"]) == (1, "reverse and correct")
    assert "nothing was done: --execute posts it" in said
    code, out, said = run(*correcting, "--execute", "--yes")
    assert (code, json.loads(out)[0]["done"].split()[0]) == (0, "reversed"), said
    assert run(*correcting, "--execute", "--yes")[:2] == (0, "[]\n")
    assert len(vouchers(shop)) == 12
    assert len(shop.rows("SELECT FROM accounting.voucher WHERE reason = 'no fee for an hour'")) == 2
    assert run("rebuild", shop.consumer, "--switch")[0] == 1
    assert run("checkpoint", shop.consumer)[0] == 0
    with shop.owner() as owner:
        names = [made.name for made in find_schemas(owner)]
    assert (len(names), names[1]) == (2, "accounting_rebuild")
    for name in names:
        assert "nothing was done" in run("drop", name)[2]
        assert run("drop", name, "--execute", "--yes")[0] == 0
    assert run("drop", "-o", "json")[:2] == (0, "[]\n")
    assert run("drop", "accounting", "--execute", "--yes")[0] == 2
    assert run("drop", "accounting")[0] == 2
    assert shop.rebuild().difference.is_empty


def test_a_consumer_of_a_test_that_states_its_effects_is_rebuilt(
    of: Callable[[str], Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loyalty.register(monkeypatch)
    shop = of(loyalty.NAME)
    with shop.owner() as owner:
        loyalty.make_tables(owner)
    make_days(owner_engine(shop.settings), ["shop"], today=utc_now().date())
    sent = payments(shop, 10)
    shop.send(sent)
    assert shop.live() == 10
    assert shop.rebuild().difference.findings == []
    with shop.tampering() as owner:
        owner.execute(text("UPDATE shop.stamp SET stamps = 9 WHERE payment_no = :no"), {"no": sent[0].payment_no})
        owner.execute(text("DELETE FROM shop.stamp WHERE payment_no = :no"), {"no": sent[1].payment_no})
        owner.execute(text("UPDATE shop.card SET stamps = 1 WHERE payer_no = :no"), {"no": sent[2].payer_no})
    assert differences(shop.rebuild()) == {
        ("different", "stamp", sent[0].payment_no),
        ("missing", "stamp", sent[1].payment_no),
        ("different", "account", sent[2].payer_no),
    }
    with shop.tampering() as owner:
        loyalty.drop_tables(owner)
