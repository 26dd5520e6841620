"""Metrics of the real thing: every endpoint of a running stack, a worker before and after events, lag, backlog, Faust's own."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from sqlalchemy import text

from ops.cli.metrics_reference import rows
from ops.kafka.reader import append_times, bounds
from ops.monitoring.exporter import database_samples, lag_samples
from ops.pipeline.backlog import PENDING_MAX, backlog
from outbox.clock import first_id_at, time_of, utc_now
from outbox.settings import Settings
from tests.contract.test_monitoring import EXPRESSIONS, SCRAPERS, metrics_of
from tests.pipeline import Pipeline, engine_of
from tests.providers import Stack
from tests.scrape import Scrape, free_port
from tests.waiting import eventually


def test_every_metric_that_is_listed_or_asked_for_is_exported_by_a_running_stack_and_nothing_else(stack: Stack) -> None:
    ports = {
        name.removeprefix("metrics:"): port
        for name, port in stack.embedded.read("ports.json").items()
        if name.startswith("metrics:")
    }
    scrapes = {part: Scrape(port) for part, port in ports.items()}
    exported = set().union(*(scrape.names() for scrape in scrapes.values()))
    shown = set().union(*(metrics_of(expression) for expressions in EXPRESSIONS.values() for expression in expressions))
    assert shown <= exported | SCRAPERS
    ours = {
        name for scrape in scrapes.values() for name in scrape.families if not name.startswith(("python_", "process_"))
    }
    listed = {re.sub("_total$", "", name): (kind, of) for name, kind, _, of, _ in rows()}
    assert ours == listed.keys()
    of_part = {
        "worker:accounting": "worker",
        "worker:notifier:merchant": "notifier",
        "worker:notifier:bank": "notifier",
        "service:bank": "service",
        "exporter": "exporter",
    }
    for part, kind_of_part in of_part.items():
        for name, (kind, of) in listed.items():
            if kind_of_part in of:
                assert scrapes[part].families[name].type == kind, f"{part} exports {name}"
    exporter = scrapes["exporter"]
    assert {labels["source"] for labels in _labels(exporter, "exporter_source_up")} == {"database", "lag"}
    assert exporter.value("exporter_source_up") == 2
    assert exporter.value("outbox_slot_active") == 1
    assert exporter.value("connector_heartbeat_age_seconds") < 30
    assert exporter.value("partition_days_ahead") >= 13
    assert exporter.value("ledger_imbalance") == 0
    secrets = stack.embedded.secrets().values()
    for port in ports.values():
        content = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        assert not any(secret in content for secret in secrets)


def _labels(scrape: Scrape, sample: str) -> list[dict[str, str]]:
    return [point.labels for family in scrape.families.values() for point in family.samples if point.name == sample]


def test_services_count_requests_by_route_and_status_whatever_paths_are_asked_for(stack: Stack) -> None:
    port = stack.embedded.read("ports.json")["metrics:service:payments"]
    before = Scrape(port)
    url = stack.settings.payments_url
    for path in ("/payments/P-1", "/payments/P-2", "/no-such-path", "/nor-this"):
        requests.get(url + path, timeout=10)

    def counted(route: str, status: str) -> float:
        labels = {"service": "payments", "route": route, "status": status}
        return after.value("http_requests_total", **labels) - before.value("http_requests_total", **labels)

    after = Scrape(port)
    assert (counted("/payments/{payment_no}", "401"), counted("none", "404")) == (2, 2)
    assert after.value("http_request_seconds_count", route="none") >= 2
    public = requests.get(f"{url}/metrics", timeout=10)
    assert public.status_code == 404, "not on the public port"


def test_a_worker_counts_what_came_once_and_what_came_again_and_so_do_fausts_sensors(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitored = pipeline.folder / "monitored.json"
    monkeypatch.setenv("MONITORED", str(monitored))
    port = free_port()
    pipeline.ready(pipeline.start(entry=["tests.integration.monitored_worker"], metrics_port=port))
    pipeline.send(pipeline.events(300), twice=True)
    pipeline.all_posted()
    consumer = {"consumer": pipeline.consumer}

    def done() -> bool:
        return Scrape(port).value("delivery_batch_events_sum", **consumer) == 600

    eventually(done, what="both deliveries counted")
    scrape = Scrape(port)
    results = {
        result: scrape.value("events_processed_total", result=result, **consumer)
        for result in ("applied", "repeated", "parked")
    }
    assert results == {"applied": 300, "repeated": 300, "parked": 0}
    transactions = scrape.value("delivery_batch_events_count", **consumer)
    assert transactions == scrape.value("delivery_transaction_seconds_count", **consumer)
    assert 1 <= scrape.value("delivery_latency_seconds_count", **consumer) <= transactions
    assert scrape.value("delivery_handler_seconds_sum", **consumer) > 0
    assert scrape.value("delivery_handler_seconds_sum", **consumer) <= scrape.value("delivery_transaction_seconds_sum", **consumer)  # fmt: skip
    assert not _labels(scrape, "worker_condition_seconds")
    spans = bounds(pipeline.settings, [pipeline.topic])
    ends = {f"{topic}/{number}": high for (topic, number), (_, high) in spans.items() if high}

    def monitor_is_done() -> dict[str, Any]:
        figures: dict[str, Any] = json.loads(monitored.read_text())
        return figures if figures["committed"] == ends and not figures["messages_active"] else {}

    figures = eventually(monitor_is_done, what="Faust's monitor knows what was committed")
    assert figures["commits"] >= 1
    assert (figures["received"], figures["by_topic"]) == (600, {pipeline.topic: 600})
    assert (figures["events"], figures["by_stream"], figures["events_active"]) == (600, 600, 0)
    assert figures["sensor"] == {"in": 600, "event in": 600, "event out": 600, "out": 600}
    assert figures["places"] == 600, "each record by its own offset"
    pipeline.prove()


def test_poison_is_counted_as_parked_and_a_brake_has_an_age(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    broken = pipeline.folder / "broken"
    broken.touch()
    monkeypatch.setenv("BROKEN", str(broken))
    pipeline.ready(pipeline.start(entry=["tests.faults.broken_worker"], metrics_port=port))
    pipeline.send(pipeline.events(60))

    def braked_s() -> float:
        return max(
            (point.value for point in Scrape(port).families["worker_condition_seconds"].samples if point.labels["condition"] == "braked"),
            default=0.0,
        )  # fmt: skip

    eventually(lambda: braked_s() > 3, what="longer than one try")
    assert Scrape(port).value("events_processed_total", consumer=pipeline.consumer) == 0
    broken.unlink()
    pipeline.all_posted()
    eventually(lambda: not Scrape(port).families["worker_condition_seconds"].samples, what="all is well")
    poison, good = pipeline.events(2)
    pipeline.send([poison], poison=True, twice=True)
    pipeline.send([good])
    eventually(lambda: Scrape(port).value("events_processed_total", result="parked") == 2, what="poison counted")
    assert pipeline.parked() == 2, "what cannot be read has no id, so both lie there"
    with engine_of(pipeline.settings, "ops").connect() as connection:
        samples = list(database_samples(connection, pipeline.settings))
    parked = {labels: value for name, labels, value in samples if name == "parked_events"}
    assert sum(value for (consumer, _), value in parked.items() if consumer == pipeline.consumer) == 2


def test_lag_in_messages_and_in_seconds_with_one_client_for_all(pipeline: Pipeline) -> None:
    worker = pipeline.ready(pipeline.start())
    pipeline.send(pipeline.events(30), twice=True)
    pipeline.all_posted()

    def lag(name: str) -> list[float]:
        return [value for metric, labels, value in lag_samples(pipeline.settings) if metric == name and labels[0] == pipeline.consumer]  # fmt: skip

    eventually(lambda: sum(lag("kafka_consumergroup_lag")) == 0, what="no lag")
    assert set(lag("kafka_consumergroup_group_lag_seconds")) == {0.0}
    worker.end()
    begun = utc_now()
    pipeline.send(pipeline.events(30), twice=True)
    assert sum(lag("kafka_consumergroup_lag")) == 60
    ages = lag("kafka_consumergroup_group_lag_seconds")
    assert 0 < max(ages) <= (utc_now() - begun).total_seconds() + 1
    ends = bounds(pipeline.settings, [pipeline.topic])
    places = {(place, offset) for place, (low, high) in ends.items() for offset in range(low, min(high, low + 3))}
    times = append_times(pipeline.settings, places)
    assert times.keys() == places
    assert all(
        times[place, offset] <= times[place, offset + 1] for place, offset in places if (place, offset + 1) in places
    )


def test_the_backlog_is_what_lies_beyond_the_slots_position(settings: Settings) -> None:
    kept = timedelta(days=15)
    with engine_of(settings, "owner").connect() as connection:
        confirmed = connection.execute(text("SELECT pg_current_wal_insert_lsn() - CAST('0/0' AS pg_lsn)")).scalar_one()
        beyond = backlog(connection, "points", confirmed_lsn=int(confirmed) + 1, kept=kept)
        assert (beyond.pending, beyond.oldest_age_s) == (0, 0.0)
        # Rows of hours ago, written now, and never committed: so nobody publishes them.
        now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one().astimezone(UTC)
        connection.execute(text("ALTER TABLE points.outbox DROP CONSTRAINT outbox_topic_is_own"))
        ids = [_id_at(now - timedelta(minutes=minutes)) for minutes in (5, 3, 1)]
        connection.execute(
            text("""INSERT INTO points.outbox (id, topic, key, version, type, correlation, payload)
                    SELECT id, 'metrics', 'k', 1, 't', 'c', '{}' FROM unnest(CAST(:ids AS uuid[])) AS id"""),
            {"ids": ids},
        )
        waiting = backlog(connection, "points", confirmed_lsn=int(confirmed), kept=kept)
        assert waiting.pending == 3
        assert 300 <= waiting.oldest_age_s < 330
        connection.rollback()
    assert PENDING_MAX == 100_000, "told in the metric's help"


def _id_at(at: datetime) -> str:
    made = first_id_at(at)
    identity = type(made)(int=made.int | 7 << 76 | 2 << 62)
    assert time_of(identity)
    return str(identity)


def test_the_look_ups_of_the_backlog_go_by_primary_key(settings: Settings) -> None:
    """Also without statistics: a plan that sorts or reads whole days would be as slow as the outbox is long."""
    with engine_of(settings, "ops").connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))  # the tables of a test are too small to be worth an index
        plan = connection.execute(
            text("EXPLAIN SELECT lsn FROM payments.outbox WHERE id < :id ORDER BY id DESC LIMIT 1"),
            {"id": first_id_at(utc_now())},
        ).scalars()
        shown = "\n".join(plan)
    assert "Index Scan Backward using outbox_" in shown
    assert "Sort" not in shown
