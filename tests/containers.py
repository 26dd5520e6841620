"""docker-compose.yml's containers under testcontainers, prepared like the embedded stack."""

from __future__ import annotations

import gc
import os
import secrets
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path

import pytest
import requests
from testcontainers.compose import DockerCompose

from connect.apply import apply_connector
from connect.client import ConnectClient
from ops.kafka.topics import apply_topics
from outbox.clock import utc_now
from outbox.migrate import migrate
from outbox.settings import CONNECTOR, READER, SEARCHER, SERVICES, Settings

ROOT = Path(__file__).resolve().parents[1]


def containers() -> Generator[Settings]:
    """Give the settings of a stack of containers, up for this run; skipped, saying why, where no engine answers."""
    if problem := _no_engine():
        pytest.skip(f"--stack=docker: no Docker engine answers: {problem}")
    passwords = {name: secrets.token_urlsafe(16) for name in (*SERVICES, READER, SEARCHER, CONNECTOR, "owner")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "connect.secrets"
        file.write_text(f"debezium={passwords[CONNECTOR]}\n")
        os.environ.update(PAYRELAY_OWNER_PASSWORD=passwords["owner"], PAYRELAY_CONNECT_SECRETS=str(file))
        with DockerCompose(str(ROOT), wait=True):
            settings = _settings(passwords)
            migrate(settings, today=utc_now().date())
            apply_topics(settings, execute=True)
            client = ConnectClient(settings.connect_url)
            apply_connector(client, settings)
            client.wait_running(settings.connector)
            yield settings


def _no_engine() -> str:
    """Return why no engine answers; empty where one does."""
    import docker

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its client leaves the socket open that it could not connect
        try:
            docker.from_env().ping()
        except (docker.errors.DockerException, requests.RequestException) as error:
            problem = str(error)
        else:
            return ""
        gc.collect()
    return problem


def _settings(passwords: dict[str, str]) -> Settings:
    def dsn(role: str, password: str, host: str = "127.0.0.1") -> str:
        return f"postgresql://{role}:{password}@{host}:5432/payrelay"

    return Settings(
        database_url=dsn("postgres", passwords["owner"]),
        dsn={role: dsn(role, passwords[role]) for role in (*SERVICES, READER, SEARCHER)},
        connector_dsn=dsn(CONNECTOR, passwords[CONNECTOR], "postgres"),
        connector_password_ref="${file:/run/secrets/connect:debezium}",
        kafka_bootstrap="127.0.0.1:9094",
        connect_url="http://127.0.0.1:8083",
        heartbeat_interval_ms=1000,
    )
