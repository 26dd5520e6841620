"""An order's timeline: complete where all went well; each gap is named with the command that fixes it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import Producer
from sqlalchemy import text
from typer.testing import CliRunner

from consumers.accounting.ledger import reverse_voucher
from consumers.notification.control import pause, resume
from consumers.notification.queues import BANK, PLATFORM
from ops.cli.main import app
from ops.delivery.parked import ParkedFilter, events, skip
from ops.demo.run import run_demo
from ops.kafka.topics import topic_states
from ops.ledger.reads import check
from ops.reconcile.run import reconcile
from ops.timeline.facts import payments_of, read_facts
from ops.timeline.story import Story, timeline
from outbox.clock import first_id_at, utc_now
from outbox.inbox import Log, move_to
from outbox.parking import Act, Action, Cause, Parked, park
from outbox.settings import Settings
from tests.integration.test_payments import Shop
from tests.pipeline import Pipeline, engine_of, environment
from tests.providers import Stack
from tests.shopping import shopping
from tests.waiting import eventually


@pytest.fixture(scope="module")
def orders(stack: Stack) -> dict[str, str]:
    """One order of each way to be paid and each end, from a run that holds."""
    begun = utc_now()
    proof, _ = run_demo(stack.settings, stack.embedded, orders=10, seed=9, rate=None, watch=lambda *_: None)
    assert proof.holds, proof.findings
    with engine_of(stack.settings, "ops").connect() as connection:
        rows = connection.execute(
            text("""SELECT method || ' ' || status, max(order_no) FROM payments.payment
                    WHERE order_no LIKE :run AND created_at >= :begun GROUP BY method, status"""),
            {"run": f"D{begun:%y%m%d}%-O%", "begun": begun},
        )
        return dict(rows.all())


def lines_of(story: Story) -> list[tuple[str, str]]:
    return [(line.where.partition("/")[0], line.what) for line in story.lines]


AT_THE_BANK = [
    ("payments.payment", "CREATED"),
    ("bank.transaction", "SUCCESS"),
    ("bank.outbox", "bank.transaction_executed.v1"),
    ("bank.transaction", "bank.transaction_executed.v1"),
    ("bank.inbox", "applied"),
    ("bank.notify_record", "CREATED"),
    ("bank.notify_record_log", "SUCCESS"),
    ("bank.notify_record", "SUCCESS"),
    ("payments.bank_notification", "received"),
    ("payments.payment", "SETTLED"),
    ("payments.outbox", "payment.settled.v1"),
    ("payment.order", "payment.settled.v1"),
    *((f"{service}.inbox", "applied") for service in ("funds", "points", "accounting", "notification")),
    ("funds.entry", "credit"),
    ("points.entry", "earn"),
    ("accounting.voucher", "settlement"),
    ("notification.notify_record", "CREATED"),
    ("notification.notify_record_log", "SUCCESS"),
    ("notification.notify_record", "SUCCESS"),
]
FROM_THE_BALANCE = [
    ("payments.payment", "CREATED"),
    ("payments.payment", "PAYING"),
    ("payments.outbox", "payment.balance_requested.v1"),
    ("payment.order", "payment.balance_requested.v1"),
    ("funds.entry", "debit"),
    ("funds.outbox", "funds.balance_paid.v1"),
    ("funds.transfer", "funds.balance_paid.v1"),
    ("payments.inbox", "applied"),
    ("accounting.inbox", "applied"),
    *AT_THE_BANK[AT_THE_BANK.index(("payments.payment", "SETTLED")) :],
    *((f"{service}.inbox", "applied") for service in ("funds", "points", "accounting", "notification")),
]
FAILED = [
    *(
        line
        for line in AT_THE_BANK
        if line[1] not in ("SUCCESS", "SETTLED", "payment.settled.v1", "credit", "earn", "settlement")
    ),
    ("bank.transaction", "FAILED"),
    ("payments.payment", "FAILED"),
    ("payments.outbox", "payment.failed.v1"),
    ("payment.order", "payment.failed.v1"),
    *(
        (f"{service}.{table}", "SUCCESS")
        for service in ("bank", "notification")
        for table in ("notify_record", "notify_record_log")
    ),
]


@pytest.mark.parametrize(
    ("which", "expected"),
    [("bank_card SETTLED", AT_THE_BANK), ("balance SETTLED", FROM_THE_BALANCE), ("bank_card FAILED", FAILED)],
)
def test_a_whole_story_has_every_table_and_topic_once_and_causes_first(
    stack: Stack, orders: dict[str, str], which: str, expected: list[tuple[str, str]]
) -> None:
    [story] = timeline(stack.settings, orders[which])
    assert sorted(lines_of(story)) == sorted(expected)
    assert story.is_whole
    places = {line: place for place, line in reversed(list(enumerate(lines_of(story))))}
    for cause, effect in [(expected[0], line) for line in expected[1:]] + [
        (("payments.outbox", line[1]), line) for line in expected if line[0] == "payment.order"
    ]:
        assert places[cause] < places[effect] or cause == effect
    first, *rest = story.lines
    assert (first.since_first_ms, first.since_cause_ms) == (0, None)
    # Kafka tells milliseconds.
    assert all(line.since_cause_ms is not None and line.since_cause_ms > -1 for line in rest), story
    [by_payment] = timeline(stack.settings, story.payment_no)
    assert by_payment == story


def test_an_event_that_nobody_has_applied_is_found_by_when_its_row_says_it_happened(
    stack: Stack, orders: dict[str, str]
) -> None:
    later = utc_now() + timedelta(minutes=30)
    with engine_of(stack.settings, "owner").connect() as connection:
        [payment] = payments_of(connection, orders["bank_card SETTLED"])
        before = read_facts(connection, stack.settings, payment)
        [transaction] = before.bank
        about = {"number": transaction.transaction_no, "id": first_id_at(later), "at": later}
        insert = """INSERT INTO bank.outbox (id, topic, key, version, type, correlation, payload)
                    VALUES (:id, 'bank.transaction', :number, 2, 'bank.transaction_executed.v1', 'O', '{}')"""
        connection.execute(text(insert), about)
        assert len(read_facts(connection, stack.settings, payment).outbox) == len(before.outbox)
        connection.execute(text("UPDATE bank.transaction SET created_at = :at WHERE transaction_no = :number"), about)
        outbox = read_facts(connection, stack.settings, payment).outbox
        assert about["id"] in [row.id for row in outbox]
        connection.rollback()


def test_a_payment_that_arrives_after_its_order_has_expired_is_settled_and_nothing_disagrees(
    stack: Stack, prefix: str
) -> None:
    """The bank executes in time, and its notifications are held until the service's own loop has made the orders EXPIRED."""
    bank, owner = engine_of(stack.settings, "bank"), engine_of(stack.settings, "owner")
    held = {"reason": "an outage", "actor": "test"}
    about = {"like": f"{prefix}-%"}
    with shopping(stack.embedded, prefix) as shop:
        with bank.begin() as connection:
            pause(connection, BANK, PLATFORM, now=utc_now(), **held)
        try:
            shop.pay(6)
            with owner.begin() as connection:
                made = """UPDATE payments.payment SET expires_at = clock_timestamp() + interval '1 ms'
                          WHERE merchant_no LIKE :like AND status = 'CREATED' AND method = 'bank_card' RETURNING order_no"""
                orders = connection.execute(text(made), about).scalars().all()
            expired = "SELECT count(*) FROM payments.payment WHERE merchant_no LIKE :like AND status = 'EXPIRED'"
            eventually(lambda: shop.count(expired) == len(orders) > 0, what="all have expired")
        finally:
            with bank.begin() as connection:
                resume(connection, BANK, PLATFORM, now=utc_now(), **held)
        shop.holds()
    suspended = (
        "SELECT count(*) FROM payments.suspense JOIN payments.payment USING (payment_no) WHERE merchant_no LIKE :like"
    )
    assert shop.count(suspended) == 0
    assert [order for order in orders if not all(story.is_whole for story in timeline(stack.settings, order))] == []
    report = reconcile(stack.settings, grace=timedelta(seconds=1))
    assert [finding for finding in report.findings if finding.order_no in orders] == []
    differences = check(engine_of(stack.settings, "ops"), before=utc_now())
    with owner.connect() as connection:
        numbers = connection.execute(
            text("SELECT payment_no FROM payments.payment WHERE merchant_no LIKE :like"), about
        )
        assert {difference.subject for difference in differences}.isdisjoint(numbers.scalars())


def test_a_reversed_voucher_is_part_of_the_story(stack: Stack, orders: dict[str, str]) -> None:
    [story] = timeline(stack.settings, orders["bank_card SETTLED"])
    with engine_of(
        stack.settings, "accounting"
    ).connect() as connection:  # seen through the same eyes, then rolled back
        number = connection.execute(
            text("SELECT voucher_no FROM voucher WHERE business_no = :no"), {"no": story.payment_no}
        ).scalar_one()
    with engine_of(stack.settings, "accounting").begin() as connection:
        reversal = reverse_voucher(connection, number, reason="for the test", actor="test", at=utc_now())
    [story] = timeline(stack.settings, orders["bank_card SETTLED"])
    line = story.lines[-1]
    assert (line.where, line.what) == ("accounting.voucher", "reversal")
    assert line.detail.startswith(f"voucher {reversal} ")
    assert line.detail.endswith("by test: for the test")
    assert line.since_cause_ms is not None


@pytest.fixture
def shop(pipeline: Pipeline) -> Shop:
    """Its payments' events go to the real topics, and to those of the pipeline only as the test puts them there."""
    return Shop(engine_of(pipeline.settings, "payments"), pipeline.settings.topic_prefix)


def holes(settings: Settings, number: str) -> dict[str, tuple[str, str]]:
    """Return what is said to be missing or to wait, by table or topic."""
    [story] = timeline(settings, number)
    assert story.is_whole == all(line.what != "missing" for line in story.lines)
    return {
        line.where: (line.what, line.fix)
        for line in story.lines
        if line.what in ("missing", "waiting") and not line.where.startswith("notification.notify")
    }


def test_what_waits_is_told_from_what_is_missing_and_what_mends_it(
    shop: Shop, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, topic = pipeline.settings, pipeline.topic
    opened = shop.open("O1", now=utc_now())
    assert holes(settings, opened.payment_no) == {}
    shop.tell(opened.payment_no, now=utc_now(), no=f"{shop.prefix}B")
    row = shop.engine.connect().execute(text("SELECT * FROM outbox WHERE key = :no"), {"no": opened.payment_no}).one()
    assert holes(settings, f"{shop.prefix}O1") == {"payment.order": ("waiting", "payrelay doctor")}
    monkeypatch.setattr("ops.timeline.steps.GRACE", utc_now() - utc_now())
    lost = {"payment.order": ("missing", f"payrelay connect snapshot --event {row.id} --execute")}
    eventually(lambda: holes(settings, f"{shop.prefix}O1") == lost, what="the slot has passed the event")

    headers = [("ce_id", str(row.id).encode()), ("ce_type", row.type.encode())]
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap})
    producer.produce(topic, value=row.payload.encode(), key=row.key.encode(), headers=headers, partition=1)
    producer.flush(10)
    services = ("funds", "points", "accounting", "notification")
    waiting = {f"{service}.inbox": ("waiting", "payrelay status") for service in services}
    assert holes(settings, opened.payment_no) == waiting

    state = next(state for state in topic_states(settings) if state.topic == topic)
    with engine_of(settings, "ops").connect() as connection:
        cluster = connection.execute(text("SELECT cluster_id FROM accounting.progress LIMIT 1")).scalar_one()
    log = Log(cluster_id=cluster, topic=topic, topic_id=state.topic_id, partition=1)
    for service in ("accounting", "points"):
        with engine_of(settings, service).begin() as connection:
            move_to(connection, settings.group_prefix + service, log, 1)
    poison = Parked(
        offset=0, event_id=row.id, key=row.key.encode(), type=row.type, version=1, headers={}, value=b"", cause=Cause.REJECTED,
        error="no such account",
    )  # fmt: skip
    with engine_of(settings, "points").begin() as connection:
        park(connection, f"{settings.group_prefix}points", {log: [poison]})
    mend = f"payrelay replay redeliver --consumer {pipeline.consumer} --event {row.id} --execute"
    del waiting["points.inbox"]
    assert holes(settings, opened.payment_no) == waiting | {"accounting.inbox": ("missing", mend)}

    [story] = timeline(settings, opened.payment_no)
    [line] = [line for line in story.lines if line.where == "points.parked"]
    assert (line.what, "no such account" in line.detail) == ("REJECTED", True)
    with engine_of(settings, "ops").connect() as connection:
        chosen = events(
            connection, ParkedFilter(key=opened.payment_no, consumer=f"{settings.group_prefix}points"), limit=10
        )
    assert line.fix == f"payrelay parked retry {chosen[0].id} --execute"
    skip(settings, chosen, Act(action=Action.SKIP, actor="test", reason="told twice"))
    [story] = timeline(settings, opened.payment_no)
    points_lines = [line for line in story.lines if line.where.startswith("points")]
    assert [(line.where, line.what) for line in points_lines if line.where != "points.entry"] == [
        ("points.inbox", "skipped"),
        ("points.parked_audit", "SKIP SKIPPED"),
    ]
    assert "told twice" in points_lines[-1].detail


def test_money_in_suspense_and_a_number_of_two_merchants(
    shop: Shop, settings: Settings, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shop.open("2O1", now=utc_now())
    Shop(shop.engine, f"{prefix}2").open("O1", now=utc_now())
    shop.tell(first.payment_no, amount_fen=499, no=f"{prefix}B", now=utc_now())
    whole = eventually(
        lambda: (
            (stories := timeline(settings, f"{prefix}2O1"))
            and ("accounting.voucher", "suspense") in lines_of(stories[0])
            and stories
        ),
        what="the money in suspense has its voucher",
    )
    assert [story.merchant_no for story in whole] == [f"{prefix}M", f"{prefix}2M"]
    assert {("payments.suspense", "recorded"), ("payments.outbox", "payment.suspense_recorded.v1")} <= set(
        lines_of(whole[0])
    )
    assert lines_of(whole[1]) == [("payments.payment", "CREATED")]

    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    code, rows = payrelay(f"{prefix}2O1", "-o", "json")
    assert (code, len(json.loads(rows))) == (0, 2)
    code, rows = payrelay(f"{prefix}2O1", "--merchant", f"{prefix}2M", "-o", "csv")
    assert (code, rows.count("\n")) == (0, 2)
    code, rows = payrelay(f"{prefix}2O1")
    assert f"of order {prefix}2O1 at merchant {prefix}2M: CREATED" in rows
    assert payrelay(f"{prefix}nobody") == (1, "")


def payrelay(*arguments: str) -> tuple[int, Any]:
    result = CliRunner().invoke(app, ["timeline", *arguments])
    return result.exit_code, result.stdout
