"""What commands write: no text of anybody's steers a terminal or a spreadsheet, and no width cuts an identifier. No stack."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from ops.cli import output
from ops.cli.main import app
from ops.cli.output import Format, print_json, print_object, print_rows, say
from ops.cli.table import measured, plain_table
from ops.offsets.files import as_csv, from_csv
from ops.reconcile.findings import Finding, Kind, fix_of
from ops.stack.state import PartState, StackFolder
from outbox.quoting import quoted

ROOT = Path(__file__).resolve().parents[2]
FORGED = "O1\x1b[2K\r\nO2  settled\x9b31m\u202e\x07\x00\u2028\ud800"
AT = datetime(2026, 11, 25, 15, 33, 51, 854995, tzinfo=UTC)
EVENT = UUID("01a213d1-fa8a-7beb-881b-dbd250be418f")
PAYMENT = "Pea6777a6a87d4b0daeb089cb8508a447"


@pytest.mark.parametrize("how", list(Format))
def test_text_in_a_row_forges_no_row_and_reaches_no_terminal(how: Format, capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([{"order": FORGED, "count": 1}, {"order": "O3", "count": 2}], how)
    written = capsys.readouterr().out
    lines = written.rstrip("\r\n").replace("\r\n", "\n").split("\n")
    assert all(line.isprintable() for line in lines), written
    if how is not Format.JSON:
        assert len(lines) == 3, written
    else:
        assert json.loads(written)[0]["order"] == FORGED
    assert "O2" in written


def test_a_message_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"group {FORGED} is gone")
    written = capsys.readouterr().err
    assert written.count("\n") == 1, written
    assert written.rstrip("\n").isprintable()
    assert "\\x1b[2K\\r\\nO2" in written


def test_json_holds_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": "\x7f\x1b\x80"})
    written = capsys.readouterr().out
    assert written.isascii()
    assert "\x7f" not in written
    assert json.loads(written) == {"a": "\x7f\x1b\x80"}


def test_what_is_printed_again_and_again_is_a_json_document_in_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    for count in range(3):
        print_rows([{"name": FORGED, "count": count}], Format.JSON, again=True)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [[{"name": FORGED, "count": count}] for count in range(3)]


def test_one_thing_is_json_or_a_line_for_each_of_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    thing = {"id": EVENT, "at": AT, "error": FORGED, "log": [{"attempt": 1}], "lane": None}
    print_object(thing, Format.JSON)
    assert json.loads(capsys.readouterr().out)["log"] == [{"attempt": 1}]
    print_object(thing, Format.CSV)
    read = dict(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert (read["field"], read["id"], read["log"], read["lane"]) == ("value", str(EVENT), '[{"attempt": 1}]', "")
    print_object(thing, Format.TABLE)
    assert capsys.readouterr().out.count("\n") == 1 + len(thing)


FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", '=cmd|"/c calc"!A1', "＝1+1", "-M1"]
PLAIN = ["M1", "1-1", "a=b", "", "-5", "+5", "-5.25", "中文", "a\u3000b"]


def test_a_spreadsheet_calculates_nothing_that_is_in_a_cell(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"text": text, "fen": -12, "ms": -0.5} for text in FORMULAS + PLAIN]
    print_rows(rows, Format.CSV)
    read = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert [len(row) for row in read] == [3] * (len(rows) + 1)
    cells = [row[0] for row in read[1:]]
    calculated = [
        cell for cell in cells if cell[:1] in set("=+-@\t\r＝") and not re.fullmatch(r"[+-]?\d+(\.\d+)?", cell)
    ]
    assert calculated == []
    assert cells[len(FORMULAS) :] == PLAIN, "what is harmless stays as it is"
    assert {(row[1], row[2]) for row in read[1:]} == {("-12", "-0.5")}, "numbers stay numbers"


@pytest.mark.parametrize("group", ["=g", "-g", "@g", "g\x1b[31m", "a,b"])
def test_files_of_offsets_are_exact_and_read_back(group: str) -> None:
    offsets = {("t.1", 0): 7, ("-t", 3): 0}
    assert from_csv(as_csv({group: offsets, "another": {}}), group) == offsets


def test_commands_write_in_one_place_only() -> None:
    """So that what is escaped there is escaped everywhere; JSON and files of offsets are escaped or exact by themselves."""
    writing = re.compile(r"typer\.(confirm|echo|secho)\(|console\.print\(|errors\.print\(|(?<![\w.])print\(")
    others = {
        f"{path.name}: {match[0]}"
        for path in (ROOT / "ops/cli").glob("*.py")
        if path.name != "output.py"
        for match in writing.finditer(path.read_text())
    }
    assert others == set()


# ---- widths ---------------------------------------------------------------------------------------------------------

TABLES: dict[str, dict[str, Any]] = {
    "notify list": {"id": EVENT, "service": "payments", "queue": "merchant", "merchant_no": "demo-M00", "order_no": "demo-1-O000123",
                    "payment_no": PAYMENT, "status": "FAILED", "attempts": 5, "http_status": 503, "planned_at": AT, "created_at": AT,
                    "finished_at": AT, "last_error": "status 503"},
    "offsets describe": {"topic": "bank.transaction", "partition": 0, "progress": 13, "committed": 13, "begin": 0, "end": 13, "lag": 0,
                         "lag_s": 0.0, "client": "payrelay-accounting-abcdef012345", "host": "127.0.0.1", "note": ""},
    "parked list": {"consumer": "bank_notification", "cause": "UNDECODABLE", "type": "payment.settled.v1", "events": 1, "keys": 1,
                    "oldest": AT},
    "parked list --events": {"id": "bank_notification:1", "consumer": "bank_notification", "cause": "UNDECODABLE",
                             "type": "payment.settled.v1", "key": PAYMENT, "place": "payment.order/1@3", "parked_at": AT, "attempts": 1,
                             "error": "body: Input data was truncated"},
    "timeline": {"at": AT, "since_first_ms": 1234.567, "since_cause_ms": 12.2, "where": "accounting.inbox", "what": "missing",
                 "detail": f"{EVENT}: accounting is at 12, past the record, and has not applied it",
                 "fix": f"payrelay replay redeliver --consumer accounting --event {EVENT} --execute"},
    "reconcile": {"kind": "unpublished", "consumer": "", "event_id": EVENT, "type": "payment.balance_requested.v1", "key": PAYMENT,
                  "order_no": "slot-O000019", "place": "", "found": "no record of it on payment.order",
                  "fix": f"payrelay connect snapshot --event {EVENT} --execute"},
    "topics list": {"topic": "__debezium-heartbeat.payrelay", "partitions": 1, "retention_ms": 86_400_000, "found": True,
                    "topic_id": "KQh15VPgRFWWJ3ec8iR4BQ", "problems": ""},
    "ledger statement": {"occurred_at": AT, "voucher_no": 12, "kind": "settlement", "business_no": PAYMENT, "debit_fen": 0,
                         "credit_fen": 1234567, "balance_fen": 123456789},
    "doctor": {"check": "parked", "ok": False, "found": "accounting 0, bank_notification 0, funds 0, notification 0, points 0",
               "fix": "payrelay parked list"},
}  # fmt: skip


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("name", TABLES)
def test_no_width_cuts_a_word_or_a_command(
    name: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "console", Console(width=width, soft_wrap=True, emoji=False, markup=False))
    print_rows([TABLES[name]] * 2, Format.TABLE)
    written = capsys.readouterr().out
    words = set(written.split())
    for value in TABLES[name].values():
        if isinstance(value, datetime) or value in ("", 0.0):
            continue
        assert str(value) in written if str(value).startswith("payrelay ") else set(str(value).split()) <= words, (
            written
        )
    assert all(len(line) <= width or "payrelay " in line for line in written.splitlines()), written


def narrow(arguments: list[str], width: int, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setattr(output, "console", Console(width=width, soft_wrap=True, emoji=False, markup=False))
    result = CliRunner().invoke(app, arguments)
    return result.stdout, result.stderr


@pytest.mark.parametrize("width", [80, 40])
def test_status_shows_every_name_whole(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StackFolder(name="narrow", home=tmp_path)
    folder.make()
    names = ["postgres", "service:notification", "worker:bank_notification", "worker:settlement"]
    parts = [
        PartState(name=name, state="running", pid=123456, port=25001, metrics_port=26001, version="18.1",
                  since="2026-11-25T15:33:51.854995+00:00", last_exit="exit code 1", restarts=3) for name in names
    ]  # fmt: skip
    folder.write("state.json", {"supervisor": 1, "started_at": 1.0, "parts": [asdict(part) for part in parts]})
    monkeypatch.setenv("PAYRELAY_HOME", str(tmp_path))
    out, err = narrow(["status", "--stack", "narrow"], width, monkeypatch)
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows[1:5]] == names, out
    assert {row[1] for row in rows[1:5]} == {"stopped"}
    assert f"left out at {width} columns: metrics_port" in err, "and says what is not shown"


def test_what_a_starting_part_says_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, emoji=False)
    said = "redo of [/base/5] [bold]x\x1b[2J"

    def starts(*_: object, watch: Callable[[list[PartState]], None], **__: object) -> bool:
        watch([PartState(name="postgres", state="starting", condition=said)])
        return True

    monkeypatch.setenv("PAYRELAY_HOME", str(tmp_path))
    monkeypatch.setattr("ops.cli.output.errors", terminal)
    monkeypatch.setattr("ops.cli.local.setup", lambda: None)
    monkeypatch.setattr("ops.stack.control.up", starts)
    result = CliRunner().invoke(app, ["up"])
    assert result.exit_code == 0, result.exception
    assert "postgres starting redo of [/base/5] [bold]x\\x1b[2J" in screen.getvalue()


@pytest.mark.parametrize("command", [["up", "--stack", "A B"], ["demo", "--stack", "A B"]])
def test_a_stacks_name_is_looked_at_before_anything_is_fetched(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.delenv("PAYRELAY_KAFKA_BOOTSTRAP", raising=False)
    for name in ("local", "demo"):
        monkeypatch.setattr(f"ops.cli.{name}.setup", lambda: fetched.append("all"))
    assert "names no stack" in str(CliRunner().invoke(app, command).exception)
    assert fetched == []


def test_data_that_was_not_there_is_not_said_to_be_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAYRELAY_HOME", str(tmp_path))
    said = CliRunner().invoke(app, ["down", "--wipe", "--stack", "typo"]).stderr
    assert said == "nothing was running, and stack typo has no data\n"


HOSTILE = "O 1; rm -rf $HOME `x` 'y'"


@pytest.mark.parametrize("kind", [Kind.UNTOLD, Kind.UNDELIVERED, Kind.CONTRADICTED])
def test_a_suggested_command_is_what_it_says_whatever_the_names(kind: Kind) -> None:
    finding = Finding(
        kind=kind, service="payments", consumer=HOSTILE, event_id=EVENT, type="", key="", order_no=HOSTILE, business_no="", effect="",
        place="", found="it is FAILED",
    )  # fmt: skip
    assert HOSTILE in shlex.split(fix_of(finding).removeprefix("by hand: "))


@pytest.mark.parametrize("name", ["a b", "a\x1b[2J'\\", "a\nb", "x\u202ey", "a\xa0b", "\x9b31m", "é\u3000\n"])
def test_a_shell_reads_a_quoted_name_as_it_is(name: str) -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", f"printf %s {quoted(name)}"], env={"LC_ALL": "C.UTF-8"}, capture_output=True, check=True
    )
    assert done.stdout.decode() == name


def test_a_number_that_looks_like_an_option_is_suggested_as_what_it_is() -> None:
    finding = Finding(kind=Kind.CONTRADICTED, service="payments", order_no="--help")
    assert shlex.split(fix_of(finding).removeprefix("by hand: ")) == ["payrelay", "timeline", "--", "--help"]


@pytest.mark.parametrize("group", ["topics", "connect"])
def test_the_help_of_apply_says_when_it_applies(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(CliRunner().invoke(app, [group, "apply", "--help"]).stdout.split())
    assert "with --execute" in shown
    assert "Exit code 1 without --execute if something would change" in shown
    assert "without it, only show what would be done" in shown


def test_a_table_into_a_pipe_is_as_rich_prints_it() -> None:
    rows = [{"id": "a", "text": "中文 x", "": ""}, {"id": "longer", "text": "", "": "y"}]
    screen = io.StringIO()
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = [measured(name, rows) for name in rows[0]]
    for column in columns:
        table.add_column(column.name, width=column.natural)
    for row in rows:
        table.add_row(*row.values())
    Console(file=screen, width=output.PIPE_WIDTH, soft_wrap=True, emoji=False, markup=False).print(table)
    assert plain_table(columns, rows) == screen.getvalue().splitlines()
