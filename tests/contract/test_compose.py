"""docker-compose.yml is the embedded stack's twin: versions, settings, topics and connector in step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.stack.parts import (
    BROKER_SETTINGS,
    CONNECT_SETTINGS,
    KAFKA_CLUSTER,
    POSTGRES_SETTINGS,
    broker_properties,
)
from ops.stack.processes import INFRASTRUCTURE
from ops.stack.programs import DEBEZIUM_VERSION, KAFKA_VERSION, locked, postgres_version

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
CONNECT_BY_IMAGE = {  # the image's own names for what it writes into connect-distributed.properties
    "group.id": "GROUP_ID",
    "config.storage.topic": "CONFIG_STORAGE_TOPIC",
    "offset.storage.topic": "OFFSET_STORAGE_TOPIC",
    "status.storage.topic": "STATUS_STORAGE_TOPIC",
    "key.converter": "KEY_CONVERTER",
    "value.converter": "VALUE_CONVERTER",
}


def test_the_same_servers() -> None:
    assert set(SERVICES) == set(INFRASTRUCTURE)


def test_versions() -> None:
    assert SERVICES["postgres"]["image"] == f"postgres:{postgres_version()}"
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    assert SERVICES["connect"]["image"].endswith(f"/connect:{DEBEZIUM_VERSION}")
    versions = {program.version for program in locked() if program.group == "org.apache.kafka"}
    assert versions == {KAFKA_VERSION}
    assert {program.version for program in locked() if program.group == "io.debezium"} == {DEBEZIUM_VERSION}


def test_postgresql_settings() -> None:
    given = dict(word.split("=", 1) for word in SERVICES["postgres"]["command"] if "=" in word)
    assert given == POSTGRES_SETTINGS


def test_broker_settings() -> None:
    environment = SERVICES["kafka"]["environment"]
    given = {key: value for key, value in environment.items() if key.startswith("KAFKA_")}
    for key, value in BROKER_SETTINGS.items():
        assert given["KAFKA_" + key.upper().replace(".", "_")] == value, key
    names = {key.upper().replace(".", "_") for key in broker_properties({"controller": 1, "kafka": 2}, "/data")}
    assert {key.removeprefix("KAFKA_") for key in given} == names
    assert environment["CLUSTER_ID"] == KAFKA_CLUSTER


@pytest.mark.parametrize("key", CONNECT_SETTINGS)
def test_connect_settings(key: str) -> None:
    name = CONNECT_BY_IMAGE.get(key, "CONNECT_" + key.upper().replace(".", "_"))
    assert SERVICES["connect"]["environment"][name] == CONNECT_SETTINGS[key]


def test_every_part_has_a_health_check_and_listens_on_the_loopback_only() -> None:
    for name, service in SERVICES.items():
        assert service["healthcheck"]["test"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
    assert set(COMPOSE["volumes"]) == {"postgres", "kafka"}
