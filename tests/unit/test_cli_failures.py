"""However a command is called, and whatever answers it: one line, a documented exit code, no traceback. No stack."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import pytest
import typer

from ops.cli import main as edge
from ops.cli.output import Format
from ops.stack.state import StackFolder
from outbox.errors import Refused
from outbox.settings import READER, SERVICES
from tests.misbehaving import garbage, hanging, http, listening
from tests.waiting import eventually

COMMANDS = typer.main.get_command(edge.app)
ROOT = Path(__file__).resolve().parents[2]
CODES = {1, 2, 3}
ID = "019ab0e8-a400-7000-8000-000000000000"
HOSTILE = "a\x1b[2J\r\nb\u202e'; DROP TABLE x --" + "x" * 300


@dataclass(frozen=True)
class Ended:
    code: object
    out: str
    err: str
    raised: str
    """What came out of the command line instead of an exit code."""

    def is_one_line_error(self, codes: Sequence[int] | set[int] = CODES) -> bool:
        """Return whether it is one line, of visible characters, and a documented code, by somebody who foresaw it."""
        lines = self.err.splitlines()
        return (
            not self.raised
            and self.code in codes
            and len(self.err.split("\n")) == 2
            and len(lines) == 1
            and lines[0].isprintable()
            and lines[0].startswith("payrelay: ")
            and "unexpected" not in lines[0]
            and len(lines[0]) < 1_500
        )


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `payrelay …` as the entry point does, on settings whose servers are away; time-outs are short."""
    from connect import client
    from ops.kafka import groups, topics
    from ops.kafka import reader as records
    from ops.pipeline import source

    for name in [name for name in os.environ if name.startswith("PAYRELAY_")]:
        monkeypatch.delenv(name)
    for module in (records, topics, groups):
        monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(client, "CONNECT_TIMEOUT_S", 0.2)
    for function in (client.ConnectClient.__init__, source.standing):
        monkeypatch.setitem(function.__kwdefaults__, "patience_s", 0.0)
    monkeypatch.setattr("psycopg.connection.timeout_from_conninfo", lambda _: 0.2)
    monkeypatch.setenv("PAYRELAY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("typer.main.get_command", lambda _: COMMANDS)  # built once, not for each of hundreds of calls

    def run(*arguments: str, **environment: str) -> Ended:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["payrelay", *arguments])
            for name, value in environment.items():
                patch.setenv(name, value)
            code, raised = None, ""
            try:
                edge.main()
            except SystemExit as end:
                code = end.code
            except BaseException as error:  # noqa: BLE001 - what the interpreter would print a traceback of
                raised = repr(error)
            said = capsys.readouterr()
        return Ended(code, said.out, said.err, raised)

    return run


# ---- where servers are ---------------------------------------------------------------------------------------------


def addresses(port: int, *, connect: str = "") -> dict[str, str]:
    dsn = f"postgresql://payrelay:secret@127.0.0.1:{port}/payrelay"
    return {
        "PAYRELAY_KAFKA_BOOTSTRAP": f"127.0.0.1:{port}",
        "PAYRELAY_CONNECT_URL": connect or f"http://127.0.0.1:{port}",
        "PAYRELAY_DATABASE_URL": dsn,
        "PAYRELAY_CONNECTOR_DSN": dsn,
        "PAYRELAY_CONNECTOR_PASSWORD_REF": "${file:/x:y}",
        **{f"PAYRELAY_DSN__{service.upper()}": dsn for service in (*SERVICES, READER)},
    }


# ---- wrong inputs ---------------------------------------------------------------------------------------------------

LEAD = {
    ("console", "user"): ["ann"],
    ("timeline",): ["P1"],
    ("bench",): ["latency"],
    ("stop",): ["worker:points"],
    ("start",): ["worker:points"],
    ("restart",): ["worker:points"],
    ("topics", "tail"): ["payment.order"],
    ("ledger", "statement"): ["suspense"],
    ("ledger", "reverse"): ["1", "--reason", "r"],
    ("ledger", "correct"): ["1", "--reason", "r", "--debit", "suspense=1", "--credit", "suspense=1"],
    ("notify", "show"): [ID],
    ("notify", "resend"): [ID, "--reason", "r"],
    ("notify", "pause"): ["M1", "--reason", "r"],
    ("notify", "resume"): ["M1", "--reason", "r"],
    ("notify", "rule", "explain"): ['{"1":0}'],
    ("notify", "rule", "set"): ["merchant", '{"1":0}', "--reason", "r"],
    ("offsets", "describe"): ["accounting"],
    ("offsets", "reset"): ["accounting"],
    ("offsets", "undo"): ["accounting"],
    ("offsets", "export"): ["accounting"],
    ("offsets", "delete"): ["accounting"],
    ("offsets", "peek"): ["accounting"],
    ("parked", "show"): ["accounting:1"],
    ("parked", "skip"): ["accounting:1", "--reason", "r"],
    ("replay", "redeliver"): ["--consumer", "accounting"],
    ("replay", "rebuild"): ["accounting"],
    ("replay", "checkpoint"): ["accounting"],
    ("tool",): [],
}
"""What a command needs before anything else is looked at."""

WRONG: dict[type, tuple[str, ...]] = {
    int: ("x", "", "1.5", "1e3", "-99999999999999999999", "99999999999999999999999999999999999", "9" * 5_000),
    float: ("x", "", "nan", "inf", "-inf", "1e300", "-1", "1,5"),
    datetime: ("x", "", "yesterday", "2026-13-01", "2026-02-30T00:00:00Z", "2026-11-25T25:00:00Z"),
    UUID: ("x", "", "019ab0e8", f"{ID}0"),
    Format: ("x", "", "JSON ", "xml"),
}


def kind_of(parameter: Any) -> type:
    """Return the type that a parameter's value has, the items' of a list."""
    kind = parameter.type_descriptor.annotation
    while given := [member for member in get_args(kind) if member is not type(None)]:
        kind = given[0]
    return kind if isinstance(kind, type) else str


NEVER = {("setup",), ("up",), ("down",), ("stop",), ("start",), ("restart",), ("status",), ("logs",), ("bench",)}
"""Of the local stack, which is no server."""
SERVING = {("worker",), ("serve",), ("exporter",), ("console", "user")}
"""They run until they are ended, whoever answers."""


def typed_wrongly() -> Iterator[list[str]]:
    """Give calls with a value that its option or argument cannot take."""
    for path, command in leaves(COMMANDS, ()):
        lead = [*path, *LEAD.get(path, [])]
        yield [*lead, "--no-such-option"]
        for parameter in command.params:
            if (
                parameter.param_type_name == "option"
                and not parameter.is_flag
                and parameter.name != "help"
                and hasattr(parameter, "type_descriptor")
            ):
                for value in WRONG.get(kind_of(parameter), ()):
                    yield [*lead, f"{parameter.opts[0]}={value}"]
            elif parameter.param_type_name == "argument" and parameter.required:
                yield [*path, "--"]
                for value in WRONG.get(kind_of(parameter), ()):
                    yield [*path, "--", value]


def leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if children := getattr(command, "commands", None):
        for name, child in children.items():
            yield from leaves(child, (*path, name))
    else:
        yield path, command


def test_a_value_that_an_option_cannot_take_is_a_usage_error_in_a_line(run: Run) -> None:
    calls = list(typed_wrongly())
    wrong = {
        " ".join(call)[:120]: ended
        for call in calls
        if not (ended := run(*call, **addresses(1))).is_one_line_error([2])
    }
    assert not wrong, f"{len(wrong)} of {len(calls)}"
    assert len(calls) >= 300


FILES = ("/nope/x.csv", ".", "/dev/null/x")
MEANT_WRONGLY: list[tuple[list[str], int, str]] = [
    (["connect", "snapshot", "--since", "2026-11-25", "--tz", "Asia"], 2, "no zone 'Asia'"),
    (["connect", "snapshot", "--since", "2026-11-25", "--tz", "x" * 300], 2, "no zone"),
    (["connect", "snapshot", "--since", "2026-11-25", "--tz", "../../etc/passwd"], 2, "no zone"),
    (["connect", "snapshot", "--since", "2026-11-25"], 2, "names no zone"),
    (["connect", "snapshot", "--since", "0001-01-01T00:00:00+23:00"], 2, "before the year 1"),
    (["connect", "snapshot", "--service", "nobody", "--order", "O1"], 2, "no service 'nobody'"),
    (["connect", "snapshot"], 2, "say which rows"),
    (["replay", "redeliver", "--consumer", "accounting", "--from", "2026-11-25", "--tz", "Europe"], 2, "no zone 'Europe'"),
    (["replay", "redeliver", "--consumer", "nobody"], 2, "consumer 'nobody'"),
    (["replay", "redeliver", "--consumer", "accounting", "--topic", "nothing"], 2, "does not read nothing"),
    (["replay", "redeliver", "--consumer", "accounting", "--topic", "x\npayrelay: all is well"], 2, "does not read x\\npayrelay"),
    (["replay", "rebuild", "nobody"], 2, "consumer 'nobody'"),
    (["replay", "checkpoint", "nobody"], 2, "consumer 'nobody'"),
    (["replay", "rebuild", "accounting", "--correct", "--switch"], 2, "one of them"),
    (["replay", "rebuild", "accounting", "--execute"], 2, "--execute needs"),
    (["offsets", "reset", "g", "--to-datetime", "2026-11-25T08:00:00", "--tz", "Asia"], 2, "no zone 'Asia'"),
    (["offsets", "reset", "g", "--to-datetime", "9" * 5_000], 2, ""),
    (["offsets", "reset", "g", "--by-duration", "9" * 300 + "d"], 2, ""),
    (["offsets", "reset", "g", "--map", "{" * 5_000, "--topic", "t"], 2, "--map"),
    (["offsets", "reset", "g", "--to-earliest", "--wait", "soon"], 2, "'soon'"),
    (["offsets", "reset", "g"], 2, "say once where to"),
    *[(["offsets", "reset", "g", "--from-file", file], 2, file) for file in ("/nope/x.csv", ".")],
    *[(["connect", "offsets", "reset", "--from-file", file], 2, "") for file in FILES],
    *[(["offsets", "undo", "g", file], 2, "") for file in FILES],
    (["ledger", "correct", "1", "--reason", "r", "--debit", "suspense=99999999999999999999", "--credit", "suspense=1"], 2, "whole number from 1 to"),
    (["ledger", "correct", "1", "--reason", "r", "--debit", "suspense=" + "9" * 5_000, "--credit", "suspense=1"], 2, "not ACCOUNT=FEN"),
    (["ledger", "correct", "1", "--reason", "r", "--debit", "suspense=-1", "--credit", "suspense=1"], 2, "not ACCOUNT=FEN"),
    (["ledger", "correct", "1", "--reason", "r", "--debit", "suspense=٣", "--credit", "suspense=1"], 2, "not ACCOUNT=FEN"),
    (["ledger", "statement", "nobody"], 2, "payrelay ledger accounts"),
    (["ledger", "reverse", "1", "--reason", " "], 2, "--reason is empty"),
    (["notify", "list", "--status", "LOST"], 2, "'LOST' is no status"),
    (["notify", "list", "--http-status", "teapot"], 2, "no HTTP status"),
    (["notify", "list", "--from", "1900-01-01", "--tz", "Asia/Shanghai"], 2, "before 1970"),
    (["notify", "resend", "--reason", "r"], 2, "name an ID"),
    (["notify", "pause", "M1", "--queue", "nobody", "--reason", "r"], 2, "no queue 'nobody'"),
    (["notify", "rule", "explain", "{"], 2, "not JSON"),
    (["notify", "rule", "explain", "[" * 5_000], 2, ""),
    (["notify", "rule", "set", "nobody", "{}", "--reason", "r"], 2, "no queue 'nobody'"),
    (["parked", "show", "12"], 2, "no id of a parked event"),
    (["parked", "show", "accounting:" + "9" * 5_000], 2, "no id of a parked event"),
    (["parked", "retry", "x"], 2, "no id of a parked event"),
    (["parked", "skip", "--reason", "r"], 2, "name an ID"),
    (["reconcile", "--grace", "soon"], 2, "no span"),
    (["reconcile", "--grace", "9" * 5_000 + "d"], 2, ""),
    (["reconcile", "--grace", "٣s"], 2, "no span"),
    (["bench", "nothing"], 2, "there are"),
    (["tool", "nobody"], 2, "there are"),
    (["worker", "nobody"], 2, "there are"),
    (["worker", "points", "notifier"], 2, "of their own"),
    (["serve", "nobody"], 2, "there are"),
    (["logs", "nobody"], 2, "no log of 'nobody'"),
    (["nothing"], 2, "No such command"),
    (["offsets", "nothing"], 2, "No such command"),
    (["timeline", "\udcff"], 2, "no text"),
    (["offsets", "export", "g", "\udcff"], 2, "no text"),
    (["\x1b[31m"], 2, "No such command"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    MEANT_WRONGLY,
    ids=lambda value: "-" if not isinstance(value, list) else " ".join(value)[:60],
)
def test_what_cannot_be_meant_is_told_in_a_line(run: Run, arguments: list[str], code: int, words: str) -> None:
    ended = run(*arguments, **addresses(1))
    assert ended.is_one_line_error([code]), ended
    assert words in ended.err


def test_text_that_steers_a_terminal_is_written_out_wherever_it_was_typed(run: Run) -> None:
    wrong: dict[str, Ended] = {}
    calls = 0
    for path, command in leaves(COMMANDS, ()):
        if path in NEVER or path in SERVING:
            continue
        for parameter in command.params:
            if kind_of(parameter) is str and parameter.param_type_name == "option":
                call = [*path, *LEAD.get(path, []), f"{parameter.opts[0]}={HOSTILE}"]
                calls += 1
                ended = run(*call, **addresses(1))
                if (
                    ended.raised
                    or ended.code not in (0, *CODES)
                    or any(not line.isprintable() for line in ended.err.split("\n"))
                ):
                    wrong[" ".join(call)[:80]] = ended
    assert not wrong, f"{len(wrong)} of {calls}"


# ---- wrong servers --------------------------------------------------------------------------------------------------

ASKING: dict[tuple[str, ...], list[str]] = {
    **{path: list(arguments) for path, arguments in LEAD.items() if path not in NEVER | SERVING},
    ("migrate",): [],
    ("demo",): ["--orders", "1"],
    ("doctor",): [],
    ("upkeep",): [],
    ("reconcile",): [],
    ("topics", "list"): [],
    ("topics", "apply"): [],
    ("connect", "apply"): [],
    ("connect", "status"): [],
    ("connect", "wait"): ["--timeout", "0.3"],
    ("connect", "restart"): ["--timeout", "0.3"],
    ("connect", "pause"): [],
    ("connect", "resume"): ["--timeout", "0.3"],
    ("connect", "stop"): ["--timeout", "0.3"],
    ("connect", "offsets", "get"): [],
    ("connect", "offsets", "reset"): [],
    ("connect", "snapshot"): ["--order", "O1"],
    ("ledger", "accounts"): [],
    ("ledger", "trial-balance"): [],
    ("ledger", "check"): [],
    ("ledger", "suspense"): [],
    ("notify", "list"): [],
    ("notify", "lateness"): [],
    ("notify", "rule", "list"): [],
    ("notify", "rule", "explain"): ["merchant"],
    ("notify", "rule", "set"): ["merchant", '{"1":0}', "--reason", "r", "--execute", "--yes"],
    ("offsets", "list"): [],
    ("offsets", "reset"): ["accounting", "--to-earliest"],
    ("parked", "list"): [],
    ("parked", "retry"): [],
    ("replay", "drop"): [],
    ("tool",): ["psql"],
    ("sql",): [],
}
"""Every command that asks a server, as an operator calls it."""
TABLES = {("doctor",), ("upkeep",)}
"""They say in their table what does not answer, and end with 1."""


def test_every_command_is_called_on_servers_that_are_away() -> None:
    assert {path for path, _ in leaves(COMMANDS, ())} == set(ASKING) | NEVER | SERVING


@pytest.mark.parametrize(
    "answer",
    [None, hanging, garbage, http("200 OK", "<html>hello</html>")],
    ids=["absent", "hanging", "garbage", "html"],
)
def test_servers_that_are_away_hang_or_talk_nonsense_are_a_line_and_a_code(run: Run, answer: Any) -> None:
    wrong: dict[str, Ended] = {}
    with listening(answer) as port:
        for path, arguments in ASKING.items():
            ended = run(*path, *arguments, **addresses(port))
            tables = path in TABLES and not ended.raised and ended.code == 1
            names = re.search("PostgreSQL|Kafka", ended.err)
            if not (tables or (ended.is_one_line_error([3]) and names)):
                wrong[" ".join(path)] = ended
    assert not wrong


CONNECT_ANSWERS = {
    "html": http("200 OK", "<html>welcome</html>", then="content-type: text/html\r\n"),
    "html 404": http("404 Not Found", "<html>not here</html>", then="content-type: text/html\r\n"),
    "another path's 404": http("404 Not Found", '{"error_code":404,"message":"HTTP 404 Not Found"}'),
    "html 500": http("500 Oops", "<html>\x1b[31mbroken</html>"),
    "empty": http("200 OK"),
    "empty 404": http("404 Not Found"),
    "redirects": http("301 Moved", then="location: /again\r\n"),
    "cut off": http("200 OK", '{"name":', then="content-length: 5000\r\n"),
    "cut off chunk": http("200 OK", '10\r\n{"na', then="transfer-encoding: chunked\r\n"),
    "no packing": http("200 OK", "not packed", then="content-encoding: gzip\r\n"),
    "a list": http("200 OK", "[1, 2]"),
    "a text": http("200 OK", '"RUNNING"'),
    "null": http("200 OK", "null"),
    "other keys": http("200 OK", '{"status": "up"}'),
    "other types": http(
        "200 OK", '{"name": 1, "connector": [], "tasks": 5, "offsets": 7, "configs": 1, "message": {}}'
    ),
    "deep": http("200 OK", "[" * 100_000),
}


@pytest.mark.parametrize("name", CONNECT_ANSWERS)
def test_what_is_no_kafka_connect_is_told_as_such(run: Run, name: str) -> None:
    commands = (
        ["connect", "status"],
        ["connect", "offsets", "get"],
        ["connect", "pause"],
        ["connect", "restart"],
        ["connect", "apply"],
    )
    with listening(CONNECT_ANSWERS[name]) as port:
        ended = {" ".join(command): run(*command, **addresses(port)) for command in commands}
        pages = {command: result.err for command, result in ended.items()}
        assert all(
            result.is_one_line_error([3]) or (name == "html 500" and result.is_one_line_error([1, 3]))
            for result in ended.values()
        ), ended
        assert f"http://127.0.0.1:{port}" in pages["connect status"]
        assert not any("no connector" in said for said in pages.values())


def test_only_a_404_that_names_the_connector_says_that_there_is_none(run: Run) -> None:
    with listening(
        http("404 Not Found", '{"error_code":404,"message":"No status found for connector payrelay-outbox"}')
    ) as port:
        ended = run("connect", "status", **addresses(port))
    assert ended.is_one_line_error([2]), ended
    assert "no connector payrelay-outbox: payrelay connect apply --execute" in ended.err


def test_an_answer_in_drops_or_without_an_end_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from connect import client

    def drops(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not gone.wait(0.05):
            connection.sendall(b" ")

    def floods(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" " * 65_536)

    gone = threading.Event()
    monkeypatch.setattr(client, "BYTES_MAX", 1_000_000, raising=False)
    for answer, words in ((drops, "took longer than"), (floods, "longer than 1000000 bytes")):
        with listening(answer) as port:
            ended = run("connect", "status", **addresses(port))
        assert ended.is_one_line_error([3]), ended
        assert words in ended.err
    gone.set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONNECTOR", "pay/relay"), ("CONNECTOR", ".."), ("CONNECTOR", ""), ("CONNECTOR", "a\n"), ("CONNECTOR", "x" * 300),
        ("SLOT", "Pay-Relay"), ("SLOT", ""), ("TOPIC_PREFIX", "a/b"), ("GROUP_PREFIX", "a b"),
        ("ZONE", "Asia"), ("ZONE", "x" * 300), ("ZONE", "Nowhere/Else"), ("ZONE", ""), ("ZONE", "../etc"),
        ("CONNECT_URL", "127.0.0.1:8083"), ("CONNECT_URL", "ftp://127.0.0.1"), ("CONNECT_URL", "http://"),
        ("CONNECT_URL", "http://[::1"), ("CONNECT_URL", "http://127.0.0.1:99999"), ("BANK_URL", "nowhere"),
        ("BATCH_MAX", "many"), ("BATCH_MAX", "0"), ("BANK_PORT", "99999"), ("DSN", "no json"), ("ORDER_TTL_S", "9" * 5_000),
        ("DSN__OPS", "mysql://a@b/c"), ("DSN__OPS", "postgresql://a@b:port/c"), ("DSN__OPS", "nothing"), ("DSN__OPS", ""),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_by_its_name(run: Run, name: str, value: str) -> None:
    for command in (["topics", "list"], ["ledger", "accounts"])[name.startswith("DSN__") :]:
        ended = run(*command, **{**addresses(1), f"PAYRELAY_{name}": value})
        assert ended.is_one_line_error([2]), ended
        assert f"PAYRELAY_{name}" in ended.err or (name.startswith("DSN") and "settings" in ended.err)
        assert not (name.startswith("DSN__") and value) or value not in ended.err, "it may hold a password"


SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
SECRETS = {"PAYRELAY_BANK_NOTIFY_SECRET": SECRET, "PAYRELAY_BANK_LINK_SECRET": SECRET}


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["serve", "payments"], {"PAYRELAY_BANK_NOTIFY_SECRET": ""}),
        (["serve", "bank"], {"PAYRELAY_BANK_LINK_SECRET": "whsec_short"}),
        (["exporter"], {}),
        (["console"], {}),
        (["console"], {"PAYRELAY_CONSOLE_USERS": '{"ann": "nobody"}'}),
        (["console"], {"PAYRELAY_CONSOLE_HOST": "0.0.0.0"}),
    ],
)
def test_what_serves_refuses_a_setting_that_cannot_work(run: Run, arguments: list[str], given: dict[str, str]) -> None:
    ended = run(*arguments, **{**addresses(1), **SECRETS, "PAYRELAY_CONSOLE_PORT": "0", **given})
    assert ended.is_one_line_error([2]), ended
    assert "PAYRELAY_" in ended.err


@pytest.mark.parametrize("command", [["serve", "payments"], ["console"], ["exporter"]])
def test_an_address_that_is_taken_is_a_line(run: Run, command: list[str]) -> None:
    with listening(hanging) as port:
        taken = {f"PAYRELAY_{name}_PORT": str(port) for name in ("PAYMENTS", "CONSOLE", "METRICS")}
        if command[0] != "exporter":
            del taken["PAYRELAY_METRICS_PORT"]
        ended = run(*command, **{**addresses(1), **SECRETS, **taken})
    assert ended.is_one_line_error([1]), ended
    assert str(port) in ended.err
    assert "PAYRELAY_" in ended.err


@pytest.mark.parametrize(
    ("name", "content", "arguments"),
    [
        ("state.json", {"parts": [{"part": "kafka"}]}, ["status"]),
        ("state.json", {"parts": "kafka", "supervisor": 1}, ["status"]),
        ("state.json", {"parts": [{"name": "kafka", "state": "running", "pid": 1}]}, ["status"]),
        ("ports.json", {"postgres": "20000"}, ["doctor"]),
        ("ports.json", {"kafka": 20_000}, ["doctor"]),
    ],
)
def test_a_file_of_the_stack_from_another_version_is_a_line_and_what_to_do(
    run: Run, tmp_path: Path, name: str, content: dict[str, object], arguments: list[str]
) -> None:
    StackFolder(name="local", home=tmp_path).make()
    (tmp_path / "stacks" / "local" / name).write_text(json.dumps(content))
    ended = run(*arguments)
    assert ended.is_one_line_error([1]), ended
    assert name in ended.err
    assert "payrelay down, payrelay up" in ended.err


# ---- real processes -------------------------------------------------------------------------------------------------

PAYRELAY = [sys.executable, "-c", "from ops.cli.main import main; main()"]
SAMPLE: list[tuple[list[str], int]] = [
    (["offsets", "describe"], 2),
    (["offsets", "list"], 3),
    (["connect", "status"], 3),
    (["connect", "snapshot", "--since", "2026-11-25", "--tz", "Asia"], 2),
    (["connect", "snapshot", "--order", "\x1b[31m"], 3),
    (["ledger", "trial-balance", "--at", "2026-10-25T02:30:00"], 2),
    (["ledger", "accounts"], 3),
    (
        [
            "ledger",
            "correct",
            "1",
            "--reason",
            "r",
            "--debit",
            "suspense=99999999999999999999",
            "--credit",
            "suspense=1",
        ],
        2,
    ),
    (["notify", "list", "--status", "LOST"], 2),
    (["notify", "list"], 3),
    (["parked", "show", "x"], 2),
    (["parked", "list"], 3),
    (["reconcile", "--grace", "soon"], 2),
    (["replay", "rebuild", "nobody"], 2),
    (["timeline", "P1"], 3),
    (["topics", "list"], 3),
    (["logs", "nobody"], 2),
    (["nothing"], 2),
    (["migrate"], 3),
    (["doctor", "--since", "yesterday"], 2),
]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PAYRELAY_")}
    return {**kept, **addresses(1, connect="http://127.0.0.1:1"), "PAYRELAY_HOME": str(tmp_path), **more}


def test_twenty_of_them_as_processes_leave_a_line_and_a_code(tmp_path: Path) -> None:
    """All at once: most of their time they wait for servers that are away."""
    with ExitStack() as running:
        processes = [
            running.enter_context(
                subprocess.Popen(
                    [*PAYRELAY, *arguments], cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                    env=environment(tmp_path, PAYRELAY_ZONE="Europe/Berlin"),
                )
            )
            for arguments, _ in SAMPLE
        ]  # fmt: skip
        for process in processes:
            running.callback(process.kill)
        ended = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    for (arguments, code), (err, returned) in zip(SAMPLE, ended, strict=True):
        assert Ended(returned, "", err, "").is_one_line_error([code]), (arguments, returned, err)


def test_ctrl_c_while_commands_are_imported_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        listening(hanging) as port,  # so that it has not ended by itself, however late the signal is
        subprocess.Popen(
            [*PAYRELAY, "connect", "status"], cwd=ROOT, text=True, stderr=subprocess.PIPE,
            env=environment(tmp_path, PAYRELAY_CONNECT_URL=f"http://127.0.0.1:{port}"),
        ) as process,
    ):  # fmt: skip
        maps = Path(f"/proc/{process.pid}/maps")
        eventually(lambda: "_pydantic_core" in maps.read_text(), what="imports have begun")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


@pytest.mark.parametrize("output", ["csv", "json", "table"])
def test_a_reader_that_goes_is_no_error(tmp_path: Path, output: str) -> None:
    script = f'set -o pipefail; "$0" -c "from ops.cli.main import main; main()" notify rule explain \'{{"1":0}}\' -o {output} | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["/bin/bash", "-c", script, sys.executable],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_a_full_disk_under_standard_output_is_a_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PAYRELAY, "notify", "rule", "explain", '{"1":0}'],
            cwd=ROOT,
            env=environment(tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert Ended(done.returncode, "", done.stderr, "").is_one_line_error([1]), done
    assert "No space left" in done.stderr


def test_lines_below_a_message_are_the_errors_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client's id, a group's name or a topic's may hold a line end: it makes no line."""

    def refuses(*_: object, **__: object) -> None:
        raise Refused("g\npayrelay: done is active:", details=["c1\npayrelay: moved  on h", "how to stop it"])

    monkeypatch.setattr("ops.kafka.topics.topic_states", refuses)
    ended = run("topics", "list", **addresses(1))
    assert (ended.code, ended.err.splitlines()) == (
        1,
        ["payrelay: g\\npayrelay: done is active:", "  c1\\npayrelay: moved  on h", "  how to stop it"],
    )


def test_the_traceback_is_to_be_had(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError("nobody\nforesaw\x1b[31m this")

    monkeypatch.setattr("ops.kafka.topics.topic_states", fails)
    ended = run("topics", "list", **addresses(1))
    assert (ended.code, ended.raised, ended.err.count("\n")) == (1, "", 1), ended
    assert "unexpected KeyError" in ended.err
    assert "PAYRELAY_TRACEBACK=1" in ended.err
    shown = run("topics", "list", **addresses(1), PAYRELAY_TRACEBACK="1")
    assert shown.err.startswith("Traceback (most recent call last)")
    assert shown.code == 1
