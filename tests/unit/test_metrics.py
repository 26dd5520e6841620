"""The endpoint, what is counted in bulk, and what the exporter does about a source that hangs."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from threading import Event
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.types import TP

from consumers.delivery.messages import Slice
from consumers.runtime.sensors import BatchSensors
from ops.monitoring.exporter import OLDEST, SOURCE_UP, Exporter, Source, run
from ops.pipeline.backlog import NEAR, turning_point
from outbox.errors import Refused
from outbox.inbox import Log
from outbox.metrics import CONNECTIONS_MAX, serve_metrics
from outbox.settings import Settings
from outbox.status import RELAPSE_S, Condition
from tests.scrape import Scrape, free_port

BEGIN = datetime(2026, 11, 9, tzinfo=UTC)
END = BEGIN + timedelta(days=15)


def test_metrics_are_off_and_on_the_loopback_unless_told_otherwise() -> None:
    assert (Settings().metrics_host, Settings().metrics_port) == ("127.0.0.1", 0)
    assert not serve_metrics(Settings())


def test_an_endpoint_serves_one_path_refuses_a_taken_port_and_answers_whatever_else_is_connected() -> None:
    port = free_port()
    assert serve_metrics(Settings(metrics_port=port))
    assert "python_info" in Scrape(port).families
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
    refused.value.close()
    with pytest.raises(Refused, match=f"no metrics at 127.0.0.1:{port} .*PAYRELAY_METRICS_PORT"):
        serve_metrics(Settings(metrics_port=port))
    with ExitStack() as stack:
        for _ in range(2 * CONNECTIONS_MAX):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert "python_info" in Scrape(port).families, "who sends nothing keeps nobody away"


def test_a_condition_has_an_age_and_a_moment_of_health_is_none() -> None:
    now = [100.0]
    condition = Condition(None, "accounting", now=lambda: now[0])
    assert condition.ages() == {}
    condition.tell("accounting t/0", "braked: a")
    now[0] += 10
    condition.tell("accounting t/0", "")
    now[0] += 1
    assert condition.ages() == {("accounting t/0", "braked"): 11}
    condition.tell("accounting t/0", "braked: b")
    now[0] += 1
    assert condition.ages() == {("accounting t/0", "braked"): 12}
    condition.tell("accounting t/0", "waiting for the database: c")
    now[0] += 1
    assert condition.ages() == {("accounting t/0", "waiting"): 1}
    condition.tell("accounting t/0", "")
    now[0] += RELAPSE_S + 1
    assert condition.ages() == {}
    condition.tell("kafka", "does not answer at host:9092: x")
    assert condition.ages() == {("kafka", "other"): 0}


class Counting(faust.Sensor):  # type: ignore[misc]
    """A sensor with methods of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, TP, int]] = []

    def on_message_in(self, tp: TP, offset: int, *_: Any) -> None:
        self.seen.append(("in", tp, offset))

    def on_stream_event_in(self, tp: TP, offset: int, *_: Any) -> None:
        self.seen.append(("event", tp, offset))

    def on_message_out(self, tp: TP, offset: int, *_: Any) -> None:
        self.seen.append(("out", tp, offset))


class Stream:
    def __init__(self) -> None:
        self.task_owner = faust.Sensor()


def slice_of(partition: int, count: int) -> Slice:
    log = Log(cluster_id="c", topic="t", topic_id="i", partition=partition)
    return Slice(log=log, start=0, end=count, messages=[SimpleNamespace(offset=number) for number in range(count)])


def test_a_monitor_counts_records_in_bulk_as_another_sensor_counts_them_one_by_one() -> None:
    sensors = BatchSensors(SimpleNamespace(beacon=SimpleNamespace(new=lambda _: None)))
    monitor, counting = faust.Monitor(), Counting()
    sensors.add(monitor)
    sensors.add(counting)
    stream = Stream()
    note = SimpleNamespace(message=SimpleNamespace(time_in=None))
    sensors.on_stream_event_in(TP("t", 0), 0, stream, note)
    assert monitor.events_total == 0, "a note is no event"
    slices = [slice_of(0, 300), slice_of(1, 1), slice_of(2, 0)]
    sensors.took(slices)
    assert (monitor.messages_received_total, monitor.messages_active, monitor.events_total) == (301, 301, 0)
    sensors.handled(slices[1:], began=0.0)
    assert monitor.events_total == 1
    sensors.handled(slices[:1], began=0.0)
    sensors.let_go(slices)
    assert (monitor.messages_active, monitor.events_total, monitor.events_active) == (0, 301, 0)
    assert monitor.messages_received_by_topic == {"t": 301}
    assert list(monitor.events_by_stream.values()) == list(monitor.events_by_task.values()) == [301]
    assert monitor.tp_read_offsets == {TP("t", 0): 299, TP("t", 1): 0}
    assert len(monitor.events_runtime) == 2
    for what in ("in", "event", "out"):
        assert sorted(seen[1:] for seen in counting.seen if seen[0] == what) == [
            *((TP("t", 0), offset) for offset in range(300)),
            (TP("t", 1), 0),
        ]


@pytest.mark.parametrize("at", [BEGIN, BEGIN + timedelta(seconds=1), BEGIN + timedelta(days=7), END])
def test_the_turning_point_is_found_in_few_steps(at: datetime) -> None:
    instants: list[datetime] = []

    def is_published(instant: datetime) -> bool:
        instants.append(instant)
        return instant <= at

    turn = turning_point(is_published, begin=BEGIN, end=END)
    assert len(instants) <= 30
    assert turn is None if at == END else turn is not None and at - NEAR <= turn <= at


def test_what_was_never_published_begins_at_the_beginning() -> None:
    assert turning_point(lambda _: False, begin=BEGIN, end=END) == BEGIN


def test_a_source_that_hangs_or_fails_is_left_out_and_the_others_are_served() -> None:
    let_go, calls = Event(), []

    def hang() -> list[Any]:
        calls.append(1)
        assert let_go.wait(30)
        return []

    def fail() -> list[Any]:
        raise OSError("away")

    sources = [
        Source("hangs", hang),
        Source("fails", fail),
        Source("answers", lambda: [(OLDEST, ("payments",), 7.0)]),
    ]
    exporter = Exporter(sources, scrape_s=0.2)
    try:
        for _ in range(2):
            families = {family.name: family for family in exporter.collect()}
            up = {sample.labels["source"]: sample.value for sample in families[SOURCE_UP].samples}
            assert up == {"hangs": 0.0, "fails": 0.0, "answers": 1.0}
            assert [sample.value for sample in families[OLDEST].samples] == [7.0]
        assert len(calls) == 1, "one reading of a source at a time"
    finally:
        let_go.set()


def test_an_exporter_without_an_address_is_refused() -> None:
    with pytest.raises(Refused, match="PAYRELAY_METRICS_PORT is not set"):
        run(Settings())
