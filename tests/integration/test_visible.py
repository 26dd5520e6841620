"""What an operator looks into: a topic's messages, bodies at a group's position, the database by psql."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ops.cli.main import app
from outbox.settings import SERVICES, Settings
from tests.pipeline import Pipeline, environment

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def payrelay(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Command:
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, str, str]:
        ended = CliRunner().invoke(app, arguments)
        said = str(getattr(ended.exception, "message", ""))
        return ended.exit_code, ended.stdout, ended.stderr + said

    return run


def test_tail_shows_keys_headers_and_bodies(pipeline: Pipeline, payrelay: Command) -> None:
    pipeline.send(pipeline.events(3))
    whole = ("topics", "tail", pipeline.topic, "--from-beginning", "--no-follow")
    code, out, _ = payrelay(*whole, "-o", "json")
    messages = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {message["key"]: message["body"]["payment_no"] for message in messages} == {
        event.key: event.payment_no for event in pipeline.sent
    }
    assert {message["headers"]["ce_type"] for message in messages} == {"payment.settled.v1"}
    first = pipeline.sent[0]
    code, out, _ = payrelay(*whole, "--key", first.key)
    lines = out.splitlines()
    assert (code, lines[0].startswith(f"{pipeline.topic}/"), lines[0].endswith(f"key {first.key}")) == (0, True, True)
    assert "  ce_type: payment.settled.v1" in lines
    assert json.loads(lines[-1])["payment_no"] == first.payment_no
    assert len(payrelay(*whole, "--limit", "2", "-o", "json")[1].splitlines()) == 2


def test_tail_shows_what_is_no_event_without_steering_a_terminal(pipeline: Pipeline, payrelay: Command) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": pipeline.settings.kafka_bootstrap})
    producer.produce(pipeline.topic, key=b"\xff", value=b"\x1b[2J", headers=[("h", None)])
    producer.produce(pipeline.topic, key=b"gone", value=None)
    assert producer.flush(30) == 0
    code, out, _ = payrelay("topics", "tail", pipeline.topic, "--from-beginning", "--no-follow")
    assert code == 0
    assert all(line.isprintable() for line in out.splitlines())
    assert "(no body)" in out
    assert "\\x1b[2J" in out


def test_tail_goes_on_live(pipeline: Pipeline, settings: Settings) -> None:
    command = [
        sys.executable,
        "-m",
        "ops.cli.main",
        "topics",
        "tail",
        pipeline.topic,
        "--from-beginning",
        "--limit",
        "2",
        "-o",
        "json",
    ]
    pipeline.send(pipeline.events(1))
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment(settings)}, text=True, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        pipeline.send(pipeline.events(1))
        second = json.loads(process.stdout.readline())
        assert process.wait(30) == 0
    assert [first["key"], second["key"]] == [event.key for event in pipeline.sent]


def test_an_unknown_topic_is_refused(payrelay: Command) -> None:
    code, _, said = payrelay("topics", "tail", "nothing.here", "--from-beginning", "--no-follow")
    assert code != 0
    assert "there is no topic 'nothing.here'. The topics are shown by: payrelay topics list" in said


def test_peek_shows_bodies(pipeline: Pipeline, payrelay: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.ready(pipeline.start())
    pipeline.send(pipeline.events(2))
    pipeline.all_posted()
    for name, value in environment(pipeline.settings).items():
        monkeypatch.setenv(name, value)
    code, out, said = payrelay(
        "offsets", "peek", pipeline.consumer, "--topic", pipeline.topic, "--before", "9", "-o", "json"
    )
    assert code == 0, said
    bodies = {json.loads(row["value"])["payment_no"] for row in json.loads(out)}
    assert bodies == {event.payment_no for event in pipeline.sent}


# ---- psql -----------------------------------------------------------------------------------------------------------


def sql(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.cli.main", "sql", *arguments],
        cwd=ROOT, env={**os.environ, **environment(settings)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_sql_reads_as_ops_and_writes_nothing(settings: Settings) -> None:
    read = sql(settings, "-c", "SELECT current_user, count(*) >= 0 FROM accounting.voucher", "--", "-At")
    assert (read.returncode, read.stdout) == (0, "ops|t\n"), read.stderr
    written = sql(settings, "-c", "CREATE TABLE reconcile.x ()")
    assert written.returncode == 1
    assert "read-only transaction" in written.stderr


def test_sql_as_a_service_is_refused_outside_the_local_stack(settings: Settings) -> None:
    assert "PAYRELAY_KAFKA_BOOTSTRAP" in environment(settings)
    refused = sql(settings, "--as", "funds", "-c", "SELECT 1")
    assert (refused.returncode, refused.stderr.startswith("payrelay: --as works on the local stack only")) == (1, True)
    unknown = sql(settings, "--as", "nobody", "-c", "SELECT 1")
    assert unknown.returncode == 2
    assert all(service in unknown.stderr for service in SERVICES)
