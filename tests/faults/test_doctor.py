"""`payrelay doctor`: each thing broken is found, and the hint that doctor prints fixes it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, OffsetSpec, ResourceType
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from connect.client import ConnectClient
from ops.kafka.topics import admin_client
from ops.stack.control import stop
from outbox.database import driver_url
from outbox.errors import Refused
from outbox.inbox import Log, begin_log
from outbox.migrate import ensure_slot
from outbox.parking import Cause, Parked, park
from outbox.settings import Settings
from schemas.codec import encode
from schemas.topics import BANK_TRANSACTION
from tests.pipeline import Pipeline, engine_of, environment, headers_of
from tests.providers import Stack
from tests.waiting import eventually
from tests.warm import warm_commands

ROOT = Path(__file__).resolve().parents[2]


class Operator:
    """Somebody at a terminal."""

    def __init__(self, commands: Path, environment: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **environment, "PATH": f"{commands}:{os.environ['PATH']}"}

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            env=self._environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def doctor(self) -> dict[str, dict[str, Any]]:
        """Return doctor's rows by check."""
        printed = self.run("payrelay doctor -o json").stdout
        return {row["check"]: row for row in json.loads(printed)}

    def findings(self) -> set[str]:
        """Return the checks that are not well; other tests leave events parked."""
        return {name for name, row in self.doctor().items() if not row["ok"]} - {"parked"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    with warm_commands(tmp_path_factory.mktemp("bin"), ROOT) as made:
        yield made


@pytest.fixture
def operator(stack: Stack, commands: Path) -> Operator:
    return Operator(commands, {"PAYRELAY_STACK": stack.embedded.name})


def drop_days(settings: Settings) -> None:
    """No outbox of points has a day after the seventh from today."""
    with engine_of(settings, "owner").begin() as connection:
        days = connection.execute(
            text("""SELECT CAST(inhrelid AS regclass)::text FROM pg_inherits
                    WHERE inhparent = CAST('points.outbox' AS regclass) ORDER BY 1 DESC LIMIT 9""")
        ).scalars()
        for day in list(days):
            connection.execute(text(f"DROP TABLE {day}"))


def change_retention(settings: Settings) -> None:
    resource = ConfigResource(ResourceType.TOPIC, BANK_TRANSACTION.name)
    entry = ConfigEntry("retention.ms", "3600000", incremental_operation=AlterConfigOpType.SET)
    resource.add_incremental_config(entry)
    admin = admin_client(settings)
    admin.incremental_alter_configs([resource])[resource].result(20)


def stop_connector(settings: Settings) -> None:
    client = ConnectClient(settings.connect_url)
    client.stop(settings.connector)
    client.wait_stopped(settings.connector)


BREAKS: dict[str, tuple[str, Callable[[Stack], object]]] = {
    "the connector is stopped": ("connector", lambda stack: stop_connector(stack.settings)),
    "the connector is deleted": (
        "connector",
        lambda stack: ConnectClient(stack.settings.connect_url).delete(stack.settings.connector),
    ),
    "a processor is stopped": ("processors", lambda stack: stop(stack.embedded, ["worker:points"])),
    "the notifiers are stopped": (
        "notifiers",
        lambda stack: stop(
            stack.embedded, [s.name for s in stack.embedded.states() if s.name.startswith("worker:notifier")]
        ),
    ),
    "a service is stopped": ("services", lambda stack: stop(stack.embedded, ["service:bank"])),
    "Kafka Connect is stopped": ("connector", lambda stack: stop(stack.embedded, ["connect"])),
    "Kafka is stopped": ("topics", lambda stack: stop(stack.embedded, ["kafka"])),
    "PostgreSQL is stopped": ("heartbeat", lambda stack: stop(stack.embedded, ["postgres"])),
    "a topic's retention is changed": ("topics", lambda stack: change_retention(stack.settings)),
    "days ahead are missing": ("days ahead", lambda stack: drop_days(stack.settings)),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_what_is_broken_is_found_and_its_hint_fixes_it(stack: Stack, operator: Operator, broken: str) -> None:
    check, break_it = BREAKS[broken]
    eventually(lambda: not operator.findings(), within_s=60, what="all well before")
    break_it(stack)
    row = operator.doctor().get(check, {"ok": True})
    assert not row["ok"], f"doctor does not notice that {broken}"
    hint = operator.run(row["fix"])
    assert hint.returncode == 0, (row["fix"], hint.stderr[-1000:])
    eventually(lambda: not operator.findings(), within_s=60, what=f"all well again after: {row['fix']}")


def test_of_partitions_that_were_added_doctor_asks_to_declare_them(pipeline: Pipeline, commands: Path) -> None:
    pipeline.add_partitions(4)
    operator = Operator(commands, environment(pipeline.settings))
    row = operator.doctor()["topics"]
    assert not row["ok"]
    assert "payrelay topics apply" not in row["fix"], "which changes nothing"
    printed = operator.run(f"{row['fix']}; payrelay topics list")
    assert printed.returncode == 0, printed.stdout


def test_a_position_outside_its_log_is_found_and_its_hint_brings_it_in(pipeline: Pipeline, commands: Path) -> None:
    worker = pipeline.ready(pipeline.start())
    pipeline.send(pipeline.events(30))
    pipeline.all_posted()
    assert worker.end() == 0
    pipeline.send(pipeline.events(30))
    places = [TopicPartition(pipeline.topic, number) for number in range(3)]
    ends = pipeline.admin.list_offsets({place: OffsetSpec.latest() for place in places})
    cuts = [TopicPartition(place.topic, place.partition, end.result(20).offset) for place, end in ends.items()]
    for future in pipeline.admin.delete_records(cuts).values():
        future.result(20)
    operator = Operator(commands, environment(pipeline.settings))
    row = operator.doctor()["positions"]
    assert not row["ok"]
    hint = operator.run(row["fix"])
    assert hint.returncode == 0, (row["fix"], hint.stderr[-1000:])
    assert operator.doctor()["positions"]["ok"]


def test_a_parked_event_is_found_and_its_hint_applies_it_now_that_its_handler_is_right(
    pipeline: Pipeline, commands: Path
) -> None:
    [event] = pipeline.events(1)
    headers = {name: value.decode() for name, value in headers_of(event)}
    log = Log(cluster_id="c", topic=pipeline.topic, topic_id=f"{pipeline.topic}-id", partition=0)
    parked = Parked(
        offset=0, event_id=UUID(headers["ce_id"]), key=event.key.encode(), type=event.type, version=1, headers=headers,
        value=encode(event).encode(), cause=Cause.REJECTED, error="ValueError: a handler with a bug",
    )  # fmt: skip
    with engine_of(pipeline.settings, "accounting").begin() as connection:
        begin_log(connection, pipeline.consumer, log, next_offset=1)
        park(connection, pipeline.consumer, {log: [parked]})
    assert pipeline.parked() == 1
    operator = Operator(commands, environment(pipeline.settings))
    row = operator.doctor()["parked"]
    assert not row["ok"]
    operator.run(row["fix"])  # other tests leave events that nothing can apply
    assert (pipeline.parked(), pipeline.posted()) == (0, 1)


def test_a_slot_of_another_database_is_none_of_ours(settings: Settings) -> None:
    """Slots are the server's: one of this name that decodes another database publishes nothing of this one."""
    url = driver_url(settings.database_url.get_secret_value()).set(database="postgres")
    elsewhere = create_engine(url, poolclass=NullPool).execution_options(isolation_level="AUTOCOMMIT")
    with elsewhere.connect() as connection, pytest.raises(Refused, match="belongs to database payrelay"):
        ensure_slot(connection, settings.slot)
