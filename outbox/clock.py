"""Time enters here. Functions that decide take `now`; edges call `utc_now`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

APART_MAX = timedelta(minutes=5)
"""Clocks of host and database that are further apart are an alarm."""


def utc_now() -> datetime:
    """Return the present instant, with its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """What says which time it is. Any of them may be wrong; what cannot be taken back goes by the earliest."""

    host: datetime
    database: datetime
    newest_row: datetime | None = None
    """When the newest event was recorded; None where there is none."""

    @property
    def earliest(self) -> datetime:
        """The time that all of them have reached."""
        return min(at for at in (self.host, self.database, self.newest_row) if at is not None)

    @property
    def apart(self) -> timedelta:
        """How far the host's clock is ahead of the database's."""
        return self.host - self.database

    def keep_from(self, days: float) -> datetime:
        """Return the moment from which on rows are kept, at least a day before each clock's.

        >>> at = datetime(2026, 1, 31, 12, tzinfo=UTC)
        >>> Clocks(host=at + timedelta(days=365), database=at, newest_row=at - timedelta(hours=1)).keep_from(14).isoformat()
        '2026-01-17T11:00:00+00:00'
        """
        return self.earliest - timedelta(days=max(1.0, days))


class DatabaseClock:
    """A database's clock as it was last read, carried on by the monotonic one; the host's own until it was read.

    What is compared with times in rows goes by it: the host's may be minutes off.
    """

    def __init__(self) -> None:
        self._read: tuple[datetime, float] | None = None

    def set(self, at: datetime) -> None:
        """The database's clock shows this now."""
        self._read = at, time.monotonic()

    def now(self) -> datetime:
        """Return the present instant by the database's clock."""
        if self._read is None:
            return utc_now()
        at, read_at = self._read
        return at + timedelta(seconds=time.monotonic() - read_at)


def zone_of(name: str) -> ZoneInfo:
    """Return the zone of a name. Raises ValueError for what is none, a folder of zones such as Asia too.

    >>> zone_of("Asia/Shanghai").key
    'Asia/Shanghai'
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no zone {name[:60]!r}: write e.g. Asia/Shanghai") from error


def in_zone(at: datetime, zone: ZoneInfo) -> datetime:
    """Return a time of that zone's clocks as an instant. Raises ValueError where they show it twice or never.

    >>> in_zone(datetime(2026, 11, 23, 8), ZoneInfo("Asia/Shanghai")).isoformat()
    '2026-11-23T08:00:00+08:00'
    """
    earlier, other = (at.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    if earlier.utcoffset() != other.utcoffset():
        raise ValueError(
            f"{at.isoformat()} occurs twice or never in {zone.key}, where clocks are changed: write its offset, e.g. +02:00"
        )
    return earlier


def time_of(identity: UUID) -> datetime | None:
    """Return the instant inside a UUIDv7, to the millisecond; None for any other version, and beyond the year 9999.

    Source: RFC 9562, section 5.7: the first 48 bits are Unix milliseconds.
    >>> time_of(UUID("019ab0e8-a400-7000-8000-000000000000")).isoformat()
    '2025-11-23T13:30:27.712000+00:00'
    """
    if identity.version != 7:
        return None
    try:
        return EPOCH + timedelta(milliseconds=identity.int >> 80)
    except OverflowError:
        return None


def first_id_at(instant: datetime) -> UUID:
    """Return the smallest UUID whose time is the instant's millisecond; of an instant before 1970, the smallest there is.

    >>> str(first_id_at(datetime(2026, 1, 1, tzinfo=UTC)))
    '019b76da-a800-0000-0000-000000000000'
    """
    return UUID(int=max(0, (instant - EPOCH) // timedelta(milliseconds=1)) << 80)


def first_id_of(day: date) -> UUID:
    """Return the smallest UUID whose time lies on or after the UTC day's first millisecond."""
    return first_id_at(datetime(day.year, day.month, day.day, tzinfo=UTC))
