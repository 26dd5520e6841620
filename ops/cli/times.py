"""How commands take times: one that names no zone is refused unless --tz does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from outbox.clock import in_zone, zone_of

FORMATS = [
    "%Y-%m-%d",
    *(
        f"%Y-%m-%d{between}%H:%M:%S{fraction}{zone}"
        for between in "T "
        for fraction in ("", ".%f")
        for zone in ("", "%z")
    ),
]
"""How commands take a time."""

Zone = Annotated[
    str, typer.Option("--tz", metavar="ZONE", help="time zone of times that name none, e.g. Asia/Shanghai")
]


def time_option(name: str, text: str, *aliases: str) -> Any:
    """Return an option that takes a time; `text` is its help."""
    return typer.Option(name, *aliases, formats=FORMATS, metavar="TIME", help=text)


def instant(at: datetime | None, tz: str) -> datetime | None:
    """Return a time as it was meant; one that names no zone is refused unless `tz` does: a wrong guess moves money."""
    if at is None:
        return None
    if at.tzinfo is None and not tz:
        raise typer.BadParameter(f"{at.isoformat()} names no zone: add one (2026-11-23T08:00:00+0800) or give --tz")
    try:
        meant = in_zone(at, zone_of(tz)) if at.tzinfo is None else at
        meant.astimezone(UTC)  # as it is looked up
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except OverflowError as error:
        raise typer.BadParameter(f"{at.isoformat()} is before the year 1 or after 9999: give another time") from error
    return meant


def span(begin: datetime | None, end: datetime | None, tz: str) -> tuple[datetime | None, datetime | None]:
    """Return both ends of a window as they were meant; one that ends before it begins is refused: it would find nothing wrong."""
    first, last = instant(begin, tz), instant(end, tz)
    if first is not None and last is not None and first >= last:
        raise typer.BadParameter(
            f"nothing lies from {first.isoformat()} on and before {last.isoformat()}: the window ends before it begins"
        )
    return first, last
