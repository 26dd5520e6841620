"""A number from outside has one spelling, wherever it comes in: in headers, options, files, settings and ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
import typer
from pydantic import ValidationError
from typer.main import get_command

from connect.source_offsets import exported_from
from consumers.notification.notifier.attempt import retry_after
from ops.cli.main import app
from ops.cli.reconcile import span_of
from ops.delivery.parked import place_of
from ops.offsets.targets import duration, instant
from outbox.errors import PayrelayError
from outbox.settings import Settings
from schemas.codec import CORRELATION, ID, TYPE, VERSION, Undecodable, decode
from schemas.signature import TIMESTAMP, signed_at, signed_headers

SECRET = "whsec_" + "bGluazEy" * 5
AT = datetime(2026, 11, 28, 8, 0, tzinfo=UTC)

OTHER_SPELLINGS = ["+7", " 7", "7 ", "7\n", "07", "1_0", "٧", "0x7", "7.0", "7e0", "", "-0", "9" * 4_400]
"""Python's int() and float() take most of these."""


def parameters(command: Any, path: str = "payrelay") -> Iterator[tuple[str, Any, Any]]:
    """Give every number that a command takes: its name, the command, the parameter."""
    for parameter in command.params:
        if parameter.type_descriptor.annotation in (int, float):
            yield f"{path} {parameter.name}", command, parameter
    for name, below in getattr(command, "commands", {}).items():
        yield from parameters(below, f"{path} {name}")


EVERY = list(parameters(get_command(app)))


def read(command: Any, parameter: Any, text: str) -> Any:
    """Return what a command makes of a parameter; None where that is wrong usage."""
    try:
        return parameter.process_value(command.context_class(command), text)
    except typer.BadParameter:
        return None


@pytest.mark.parametrize(
    ("command", "parameter"), [option[1:] for option in EVERY], ids=[option[0] for option in EVERY]
)
def test_an_option_takes_no_other_spelling(command: Any, parameter: Any) -> None:
    spellings = [text for text in OTHER_SPELLINGS if text != "7.0"]
    taken = {text: read(command, parameter, text) for text in [*spellings, "nan", "inf", "-inf", "1e400"]}
    assert {text: number for text, number in taken.items() if number is not None} == {}
    assert read(command, parameter, "7") == 7


@pytest.mark.parametrize("text", OTHER_SPELLINGS)
def test_a_signature_is_for_one_spelling_of_its_time(text: str) -> None:
    seconds = str(int(AT.timestamp()))
    headers = signed_headers(SECRET, message_id="m", at=AT, body=b"")
    assert signed_at(SECRET, headers, b"") == AT
    assert signed_at(SECRET, headers | {TIMESTAMP: text.replace("7", seconds)}, b"") is None


@pytest.mark.parametrize("text", OTHER_SPELLINGS)
def test_a_record_of_another_spelling_of_the_version_is_none_of_ours(text: str) -> None:
    headers = {ID: str(uuid4()).encode(), TYPE: b"unknown", CORRELATION: b"c", VERSION: text.encode()}
    with pytest.raises(Undecodable):
        decode(headers, b"{}")


@pytest.mark.parametrize("text", [spelling for spelling in OTHER_SPELLINGS if spelling])
def test_settings_take_no_other_spelling(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("PAYRELAY_OUTBOX_DAYS", text)
    with pytest.raises(ValidationError, match="outbox_days"):
        Settings()


@pytest.mark.parametrize("text", OTHER_SPELLINGS)
def test_ids_spans_and_times_take_no_other_spelling(text: str) -> None:
    with pytest.raises(PayrelayError, match="no id"):
        place_of(f"accounting:{text}")
    for read, given in (
        (span_of, f"{text}s"),
        (instant_of, text.replace("7", "1795593600").replace("٧", "١٧٩٥٥٩٣٦٠٠")),
    ):
        if given not in ("1795593600.0", "7.0s"):
            with pytest.raises(Exception, match=r"span|epoch|whole number|far ahead|kept|time"):
                read(given)
    if text != "7.0":
        with pytest.raises(ValueError, match=r"duration|long|number"):
            duration(f"{text}h")


def instant_of(text: str) -> datetime:
    return instant(text, None)


@pytest.mark.parametrize("lsn", ["7", "1_0", 1.5, True, -1, None, 10**30])
def test_a_position_in_a_file_is_a_whole_number(lsn: Any) -> None:
    document = {"connector": "c", "offsets": [{"partition": {}, "offset": {"lsn": lsn}}]}
    with pytest.raises(PayrelayError, match="holds no offsets"):
        exported_from(json.dumps(document), connector="c")


def test_a_receiver_that_asks_for_a_long_time_gets_a_day() -> None:
    for text, expected in (("0020", 20), ("9" * 30, 86_400), ("9" * 60, None), ("٧", None), ("+7", None)):
        wait = retry_after(429, {"retry-after": text}, now=AT)
        assert (None if wait is None else wait.total_seconds()) == expected
