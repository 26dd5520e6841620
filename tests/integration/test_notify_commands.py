"""payrelay notify as an operator types it: find what failed, send all of it again, watch it succeed; pause, resume, rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from ops.cli.main import app
from outbox.errors import PayrelayError, Refused
from outbox.settings import Settings
from tests.integration.test_sender import running
from tests.notifier import Desk, desks
from tests.pipeline import environment
from tests.sink import Sink, sinking
from tests.waiting import eventually


@pytest.fixture
def desk(settings: Settings, prefix: str) -> Iterator[Desk]:
    """The queue of merchants itself, with merchants of the test's own."""
    with desks(settings, prefix) as opened:
        yield opened(prefix, lives_in="merchant")


@pytest.fixture
def sink() -> Iterator[Sink]:
    with sinking() as made:
        yield made


@pytest.fixture
def command(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any, str]]:
    """Run `payrelay notify …`; gives exit code, rows and what was said."""
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, Any, str]:
        result = CliRunner().invoke(app, ["notify", *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return (
            result.exit_code,
            json.loads(result.stdout) if result.stdout.startswith(("[", "{")) else None,
            result.stderr,
        )

    return run


def test_find_failed_ones_send_all_that_match_again_and_watch_them_succeed(
    settings: Settings, desk: Desk, sink: Sink, command: Any
) -> None:
    merchant = desk.merchant()
    desk.register(f"{sink.url}/good")
    desk.write(12, rule='{"1":0}')
    sink.refuse = {str(record.id) for record in desk.records()[:5]}
    with running(settings, desk):
        eventually(lambda: all(record.finished_at for record in desk.records()), what="all are final")

        code, rows, said = command("list", "--merchant", merchant, "--status", "failed", "-o", "json")
        assert (code, {row["id"] for row in rows}, "5 merchant FAILED" in said) == (0, sink.refuse, True)
        assert {(row["http_status"], row["last_error"]) for row in rows} == {(500, "status 500")}
        code, rows, _ = command("list", "--merchant", merchant, "--http-status", "500", "--limit", "2", "-o", "json")
        assert (code, len(rows)) == (0, 2)

        all_failed = ("resend", "--merchant", merchant, "--status", "FAILED", "--reason", "mended", "-o", "json")
        code, rows, said = command(*all_failed)
        assert (code, len(rows), "5 of 5 notifications would be sent again" in said) == (0, 5, True)
        assert sum(record.status == "FAILED" for record in desk.records()) == 5, "nothing was done"
        refused, sink.refuse = sink.refuse, set()
        code, rows, said = command(*all_failed, "--execute", "--yes")
        assert (code, {row["id"] for row in rows}, {row["due"] for row in rows}) == (0, refused, {True})
        eventually(lambda: {record.status for record in desk.records()} == {"SUCCESS"}, what="they succeed")
    assert {name: times for name, times in sink.times().items() if times > 1} == dict.fromkeys(refused, 2)

    identity = min(refused)
    code, shown, _ = command("show", identity)
    assert (code, shown["status"], shown["attempts"], shown["body"]) == (0, "SUCCESS", 2, '{"a": 1}')
    assert [(row["attempt"], row["result"], row["http_status"], row["response"]) for row in shown["log"]] == [
        (1, "HTTP_REQUEST_FAILED", 500, "not now"),
        (2, "SUCCESS", 200, " success\n"),
    ]
    assert [row["cause"] for row in shown["postponements"]] == ["RESEND"]
    assert [(row["action"], row["reason"], "@" in row["actor"]) for row in shown["audit"]] == [
        ("RESEND", "mended", True)
    ]
    code, rows, _ = command("lateness", "--queue", "merchant", "-o", "json")
    assert sum(row["attempts"] for row in rows) >= 17
    assert sum(row["not_postponed"] for row in rows) <= sum(row["attempts"] for row in rows) - 5


def test_a_receiver_is_paused_and_resumed(settings: Settings, desk: Desk, sink: Sink, command: Any) -> None:
    merchant = desk.merchant()
    desk.register(f"{sink.url}/good")
    assert f"{merchant} is paused in merchant\n" in command("pause", merchant, "--reason", "moving house")[2]
    assert "as it was" in command("pause", merchant, "--reason", "once more")[2]
    desk.write(3, rule='{"1":0}')
    _, rows, _ = command("list", "--blocked", "-o", "json")
    assert [row["state"] for row in rows if row["merchant_no"] == merchant] == ["PAUSED"]
    with running(settings, desk):
        other = desk.merchant(1)
        desk.register(f"{sink.url}/good", 1)
        desk.write(1, 1, rule='{"1":0}')
        eventually(lambda: [record.status for record in desk.records() if record.merchant_no == other] == ["SUCCESS"])
        assert not any(record.attempts for record in desk.records() if record.merchant_no == merchant)
        code, _, said = command("resume", merchant, "--reason", "moved")
        assert (code, "3 notifications wait" in said) == (0, True)
        eventually(lambda: {record.status for record in desk.records()} == {"SUCCESS"}, what="all are told")


def test_a_merchant_that_nobody_knows_is_refused_before_anything_is_asked(command: Any) -> None:
    for action in ("pause", "resume"):
        with pytest.raises(Refused, match="no merchant 'TYPO'"):
            command(action, "TYPO", "--reason", "x")
        assert command(action, "TYPO", "--reason", "x", "--execute")[0] == 2, "there is nothing to confirm"


def test_what_waits_for_its_receiver_is_not_said_to_be_sent(
    settings: Settings, desk: Desk, sink: Sink, command: Any
) -> None:
    desk.register(f"{sink.url}/good")
    desk.write(2, rule='{"1":0}')
    assert command("pause", desk.merchant(), "--reason", "moving")[0] == 0
    chosen = ("resend", "--merchant", desk.merchant(), "--reason", "x", "--execute", "--yes", "-o", "json")
    code, rows, said = command(*chosen)
    assert (code, [row.get("held_up_by") for row in rows]) == (0, ["PAUSED", "PAUSED"])
    assert "2 are due now; 2 of them wait: their receivers are paused or held up" in said
    assert command("resume", desk.merchant(), "--reason", "moved")[0] == 0
    code, rows, said = command(*chosen)
    assert [row.get("held_up_by") for row in rows] == [None, None]
    assert said.endswith("2 are due now\n")


def test_rules_are_listed_explained_and_set(settings: Settings, desk: Desk, command: Any) -> None:
    _, rows, _ = command("rule", "list", "-o", "json")
    [before] = [row["rule"] for row in rows if row["queue"] == "merchant"]
    _, rows, _ = command("rule", "explain", "merchant", "-o", "json")
    assert [row["since_made"] for row in rows] == ["0:00:00", "0:01:00", "0:03:00", "0:08:00", "0:23:00"]
    with pytest.raises(Refused, match="attempt 2"):
        command("rule", "set", "merchant", '{"1":0,"2":"soon"}', "--reason", "x", "--execute", "--yes")
    code, rows, said = command("rule", "set", "merchant", '{"1":0,"2":2}', "--reason", "slower", "-o", "json")
    assert (code, len(rows), "nothing was done" in said) == (0, 2, True)
    try:
        assert command("rule", "set", "merchant", '{"1":0,"2":2}', "--reason", "slower", "--execute", "--yes")[0] == 0
        desk.write(1)
        assert desk.record().rule == '{"1":0,"2":2}'
    finally:
        with desk.engine.begin() as connection:
            connection.execute(text("UPDATE notify_queue SET rule = :rule WHERE queue = 'merchant'"), {"rule": before})


@pytest.mark.parametrize("arguments", [
    ("resend", "--reason", "x"), ("resend", "--status", "FAILED", "--reason", " "), ("resend", "--status", "FAILED"),
    ("pause", "M", "--reason", ""), ("show", "no-id"), ("list", "--limit", "0"),
])  # fmt: skip
def test_what_is_not_meant_as_typed_is_refused(command: Any, arguments: tuple[str, ...]) -> None:
    assert command(*arguments)[0] == 2


@pytest.mark.parametrize("arguments", [
    ("show", "00000000-0000-7000-8000-000000000000"), ("pause", "M", "--queue", "nobody", "--reason", "x"),
    ("rule", "explain", "nobody"), ("list", "--queue", "nobody"), ("lateness", "--queue", "nobody"),
    ("resend", "--queue", "nobody", "--reason", "x"),
])  # fmt: skip
def test_what_is_not_there_is_told(command: Any, arguments: tuple[str, ...]) -> None:
    with pytest.raises(PayrelayError):
        command(*arguments)
