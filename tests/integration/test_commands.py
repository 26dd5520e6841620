"""Commands on the real database: names that nothing has, values beyond it, and servers that are away beside it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from sqlalchemy import make_url

from ops.cli import main as edge
from ops.cli.main import app
from outbox.settings import Settings
from tests.contract.test_output_options import leaves, output_of
from tests.misbehaving import garbage, hanging, listening
from tests.pipeline import Pipeline, environment

NOBODY = "00000000-0000-7000-8000-000000000000"
Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `payrelay …` as the entry point does; gives exit code, output and what was said."""
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["payrelay", *arguments])
        code: object = None
        try:
            edge.main()
        except SystemExit as end:
            code = end.code
        except Exception as error:  # noqa: BLE001 - what would be a traceback
            code = repr(error)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.mark.parametrize("arguments", [
    ("timeline", "no-such-order"),
    ("notify", "show", NOBODY),
    ("notify", "pause", "M1", "--queue", "nobody", "--reason", "r"),
    ("parked", "show", "accounting:987654321"),
    ("notify", "resend", NOBODY, "--reason", "r"),
    ("notify", "resend", NOBODY, "--reason", "r", "--execute", "--yes"),
    ("parked", "retry", "accounting:987654321"),
    ("parked", "skip", "accounting:987654321", "--reason", "r", "--execute", "--yes"),
    ("connect", "snapshot", "--event", NOBODY),
    ("offsets", "reset", "nobody", "--to-earliest"),
    ("replay", "redeliver", "--consumer", "nobody"),
    ("replay", "rebuild", "nobody"),
    ("replay", "drop", "nobody"),
    ("offsets", "describe", "nobody"),
    ("offsets", "export", "nobody"),
    ("offsets", "peek", "nobody"),
    ("offsets", "delete", "nobody"),
    ("offsets", "describe", "accounting", "--topic", "nothing"),
    ("offsets", "describe", "accounting", "--topic", "payment.order:77"),
    ("ledger", "reverse", "9223372036854775807", "--reason", "r"),
    ("ledger", "correct", "9223372036854775807", "--reason", "r", "--debit", "suspense=1", "--credit", "suspense=1"),
    ("connect", "snapshot", "--service", "nobody", "--order", "O1"),
])  # fmt: skip
def test_an_unknown_name_is_exit_code_2_in_every_command(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, said = run(*arguments)
    assert (code, out, said.count("\n")) == (2, "", 1), said


def test_an_unknown_connector_is_exit_code_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYRELAY_CONNECTOR", "nobody")
    for command in ("status", "restart", "pause"):
        code, _, said = run("connect", command)
        assert (code, said) == (2, "payrelay: there is no connector nobody: payrelay connect apply --execute\n")


def test_an_amount_beyond_the_database_is_refused_before_it_is_shown(run: Run) -> None:
    for amount in ("99999999999999999999", "9" * 5_000):
        given = ("--debit", f"suspense={amount}", "--credit", f"suspense={amount}", "--reason", "r")
        code, out, said = run("ledger", "correct", "1", *given)
        assert (code, out, said.count("\n")) == (2, "", 1), said[:300]


def test_a_file_that_cannot_be_written_is_refused(run: Run) -> None:
    for file in ("/nope/x.csv", "/dev/full/x.csv", "."):
        code, out, said = run("offsets", "export", "accounting", "--file", file)
        assert (code, out, said.count("\n")) == (1, "", 1), said
        assert f"{file} cannot be written" in said


def test_a_condition_that_takes_too_long_is_not_a_database_that_is_away(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.pipeline.snapshot.LOOK_UP_MS", 200)
    code, _, said = run("connect", "snapshot", "--where", "(SELECT count(*) FROM generate_series(1, 300000000)) > 0")
    assert code == 1, said
    assert "PostgreSQL does not answer" not in said
    assert "narrow it" in said


DOCUMENTS = {
    "doctor": [], "upkeep": ["--catch-up"], "reconcile": ["--grace", "10m"], "topics list": [], "topics apply": [],
    "connect apply": [], "connect status": [], "connect wait": [], "connect snapshot": ["--order", "nobody"], "connect offsets get": [],
    "ledger accounts": [], "ledger statement": ["suspense"], "ledger trial-balance": [], "ledger check": [], "ledger suspense": [],
    "notify list": [], "notify resend": ["--merchant", "nobody", "--reason", "r"], "notify lateness": [], "notify rule list": [],
    "notify rule explain": ["merchant"], "notify rule set": ["merchant", '{"1":0}', "--reason", "r"], "offsets list": [],
    "offsets describe": ["accounting"], "offsets reset": ["accounting", "--to-current"], "offsets delete": ["accounting"],
    "offsets peek": ["accounting"], "parked list": [], "parked retry": ["--consumer", "nobody"],
    "parked skip": ["--consumer", "nobody", "--reason", "r"], "replay redeliver": ["--consumer", "accounting", "--event", NOBODY],
    "replay drop": [],
}  # fmt: skip
"""What is shown, and nothing done."""
ELSEWHERE = {
    "status", "demo", "bench", "timeline", "topics tail", "notify show", "parked show", "ledger reverse", "ledger correct",
    "offsets undo", "replay rebuild",
}  # fmt: skip
"""Whose JSON other tests read: they need a payment, a voucher, an undo file, minutes, or a stack of their own."""
ELSEWHERE_CALLED = {
    "event": "event_id", "order": "order_no", "merchant": "merchant_no", "payment": "payment_no", "voucher": "voucher_no",
    "account_no": "account",
}  # fmt: skip


def keys_of(document: object) -> set[str]:
    if isinstance(document, dict):
        return {*document, *(key for value in document.values() for key in keys_of(value))}
    return {key for item in document for key in keys_of(item)} if isinstance(document, list) else set()


def test_with_o_json_each_command_prints_one_document_whose_keys_are_called_as_everywhere(run: Run) -> None:
    shown = {path for path, command in leaves(typer.main.get_command(app)) if output_of(command) is not None}
    assert shown == DOCUMENTS.keys() | ELSEWHERE
    for path, arguments in DOCUMENTS.items():
        code, out, said = run(*path.split(), *arguments, "-o", "json")
        assert code in (0, 1), (path, said)
        document = json.loads(out)
        if path != "connect offsets get":  # as Kafka Connect calls it
            assert not keys_of(document) & ELSEWHERE_CALLED.keys(), path


READING_KAFKA = [
    ("topics", "list"), ("timeline", "no-such-order"), ("offsets", "list"), ("offsets", "describe", "accounting"),
    ("offsets", "reset", "accounting", "--to-earliest"), ("replay", "redeliver", "--consumer", "accounting", "--event", NOBODY),
    ("replay", "rebuild", "accounting"), ("topics", "apply"),
]  # fmt: skip


@pytest.mark.parametrize("answer", [None, hanging, garbage], ids=["absent", "hanging", "garbage"])
def test_kafka_away_beside_a_database_that_answers_is_exit_code_3(
    run: Run, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., None] | None
) -> None:
    for module in ("ops.kafka.reader", "ops.kafka.topics", "ops.kafka.groups"):
        monkeypatch.setattr(f"{module}.TIMEOUT_S", 0.3)
    with listening(answer) as port:
        monkeypatch.setenv("PAYRELAY_KAFKA_BOOTSTRAP", f"127.0.0.1:{port}")
        for arguments in READING_KAFKA:
            code, _, said = run(*arguments)
            assert (code, "Kafka" in said, "unexpected" in said) == (3, True, False), (arguments, code, said)
            assert said.count("\n") == 1, said


def test_a_condition_that_postgresql_refuses_is_not_a_database_that_is_away(run: Run) -> None:
    code, _, said = run("connect", "snapshot", "--where", "1" + "+1" * 50_000 + " > 0")
    assert (code, said.count("\n")) == (1, 1), said[:300]
    assert "stack depth limit exceeded" in said
    assert "does not answer" not in said


def test_programs_get_the_whole_dsn(
    run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A host among the parameters, TLS too; and no service of the operator's own that names another server."""
    url = make_url(settings.database_url.get_secret_value())
    moved = url.set(host=None, port=None, query={"host": url.host or "", "port": str(url.port), "sslmode": "prefer"})
    monkeypatch.setenv("PAYRELAY_DATABASE_URL", moved.render_as_string(hide_password=False))
    services = tmp_path / "services"
    services.write_text("[another]\nhost=127.0.0.1\nport=1\ndbname=another\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    monkeypatch.setenv("PGSERVICE", "another")
    dumped = tmp_path / "shop.sql"
    code, _, said = run("tool", "pg_dump", "--schema=shop", f"--file={dumped}")
    assert (code, said) == (0, ""), said
    assert "CREATE SCHEMA shop" in dumped.read_text()


def test_an_old_program_on_the_path_is_not_taken_for_the_servers(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("pg_dump", "psql"):
        old = tmp_path / name
        old.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) 15.14'\nexit 1\n")
        old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    dumped = tmp_path / "shop.sql"
    code, _, said = run("tool", "pg_dump", "--schema=shop", f"--file={dumped}")
    assert (code, said) == (0, "")
    assert "CREATE SCHEMA shop" in dumped.read_text()
    assert run("tool", "psql", "--quiet", "--command", "SELECT nothing")[0] == 1, "its failure is the command's"

    monkeypatch.setattr("ops.stack.tools.postgres_bin", lambda: tmp_path / "none")
    code, _, said = run("tool", "pg_dump", "--schema=shop")
    assert (code, said.count("\n")) == (1, 1)
    assert f"{tmp_path}/pg_dump is of version 15" in said


def test_topics_apply_shows_and_ends_with_1_and_does_it_with_execute(
    run: Run, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(pipeline.settings).items():
        monkeypatch.setenv(name, value)
    assert run("topics", "apply") == (0, "", "every topic is as declared: nothing to do\n")
    pipeline.delete_topic()
    code, out, said = run("topics", "apply", "-o", "json")
    assert (code, said) == (1, "1 topics would change; nothing was done: --execute changes them\n")
    assert [change["change"].split(":")[0] for change in json.loads(out)] == [f"create {pipeline.topic}"]
    code, _, said = run("topics", "apply", "--execute")
    assert (code, said.splitlines()[-1]) == (0, "1 topics changed")
    assert run("topics", "apply")[0] == 0


def test_connect_apply_shows_and_ends_with_1_where_something_would_change(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAYRELAY_HEARTBEAT_INTERVAL_MS", "1234")
    code, out, said = run("connect", "apply", "-o", "json")
    assert (code, said.splitlines()[-1].endswith("would change; nothing was done: --execute changes them")) == (1, True)
    assert "1234" in {change["new"] for change in json.loads(out)}
    assert run("connect", "apply", "-o", "json")[1] == out, "and nothing was changed"
