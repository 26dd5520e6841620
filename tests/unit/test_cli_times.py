"""Times that an operator types, and where outboxes begin for them. No stack."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
import typer
from typer.testing import CliRunner

from ops.cli.main import app
from ops.cli.times import instant
from outbox.clock import first_id_at


def test_a_time_without_a_zone_is_taken_in_the_one_given_and_else_refused() -> None:
    at = datetime.fromisoformat("2026-11-25T08:00:00")
    moment = instant(at, "Asia/Shanghai")
    assert moment == datetime(2026, 11, 25, tzinfo=UTC)
    assert instant(moment, "Europe/Berlin") == moment, "its own zone counts"
    with pytest.raises(typer.BadParameter, match="names no zone"):
        instant(at, "")
    with pytest.raises(typer.BadParameter, match="no zone 'Nowhere/Else'"):
        instant(at, "Nowhere/Else")


@pytest.mark.parametrize("typed", ["2026-10-25T02:30:00", "2026-03-29T02:30:00"])
def test_a_time_that_clocks_show_twice_or_never_is_refused(typed: str) -> None:
    with pytest.raises(typer.BadParameter, match="twice or never in Europe/Berlin"):
        instant(datetime.fromisoformat(typed), "Europe/Berlin")


@pytest.mark.parametrize(
    "command", [("replay", "redeliver", "--consumer", "points", "--from"), ("connect", "snapshot", "--since")]
)
@pytest.mark.parametrize("end", ["2026-11-25T08:00:00Z", "2026-11-25T15:59:59+08:00"])
def test_a_window_that_ends_before_it_begins_is_refused(command: tuple[str, ...], end: str) -> None:
    refused = CliRunner().invoke(app, [*command, "2026-11-25T08:00:00Z", "--to", end])
    assert (refused.exit_code, "nothing lies from" in refused.stderr) == (2, True)


def test_before_1970_is_before_every_event() -> None:
    assert first_id_at(datetime(1950, 1, 1, tzinfo=UTC)) == UUID(int=0)
