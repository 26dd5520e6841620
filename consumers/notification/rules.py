"""When a notification is sent again: a rule per queue, attempt by attempt, copied to each notification when it is made. Pure.

A rule is JSON, `{"1": 0, "2": 1, "3": "30s"}`: attempt -> time since the *start* of the attempt before it (of the first:
since the notification was made). Numbers are minutes, fractions allowed; text has a unit, s, m, h or d.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from outbox.errors import Misused

ATTEMPTS_MAX = 100
TEXT_MAX = 4_096
DELAY_MAX = timedelta(days=30)
RESOLUTION = timedelta(milliseconds=1)
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

DIGITS_MAX = 12

_WITH_UNIT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How often, and how long after the attempt before."""

    delays: tuple[timedelta, ...]

    @property
    def attempts(self) -> int:
        """Return how many attempts the rule has."""
        return len(self.delays)

    def first_at(self, made_at: datetime) -> datetime:
        """Return when the first attempt of a notification made then is due."""
        return made_at + self.delays[0]

    def next_at(self, attempt: int, *, started_at: datetime, ended_at: datetime) -> datetime | None:
        """Return when the attempt after `attempt` is due; None if that was the last. Never before that attempt's end.

        >>> from datetime import UTC
        >>> at = datetime(2026, 1, 1, tzinfo=UTC)
        >>> parse_rule('{"1": 0, "2": 1}').next_at(1, started_at=at, ended_at=at + timedelta(seconds=20)).isoformat()
        '2026-01-01T00:01:00+00:00'
        """
        if attempt >= self.attempts:
            return None
        return max(started_at + self.delays[attempt], ended_at)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One line of a timetable."""

    attempt: int
    after: timedelta
    """Since the start of the attempt before."""
    since_made: timedelta


@lru_cache(maxsize=256)
def parse_rule(text: str) -> Rule:
    """Return the rule of a JSON text; raises Misused, saying what is wrong and where.

    >>> [str(delay) for delay in parse_rule('{"1": 0, "2": 0.5, "3": "2h"}').delays]
    ['0:00:00', '0:00:30', '2:00:00']
    """
    if len(text) > TEXT_MAX:
        raise Misused(f"the rule has {len(text)} characters, more than the {TEXT_MAX} that are allowed: shorten it")
    try:
        pairs = json.loads(text, parse_float=Decimal, parse_int=Decimal, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError, InvalidOperation) as error:
        raise Misused(f'the rule is not JSON: {error}; write e.g. {{"1": 0, "2": 1, "3": "5m"}}') from error
    if not isinstance(pairs, _Pairs):
        raise Misused('the rule is not a JSON object: write e.g. {"1": 0, "2": 1, "3": "5m"}')
    if not 1 <= len(pairs) <= ATTEMPTS_MAX:
        raise Misused(f"the rule has {len(pairs)} attempts: it must have 1 to {ATTEMPTS_MAX}")
    names = [name for name, _ in pairs]
    if sorted(names) != sorted(map(str, range(1, len(pairs) + 1))):
        raise Misused(
            f'the rule\'s attempts are {", ".join(map(repr, names))[:200]}: they must be "1" to "{len(pairs)}", each once'
        )
    delays = {int(name): _delay(name, value) for name, value in pairs}
    return Rule(delays=tuple(delays[attempt] for attempt in sorted(delays)))


def timetable(rule: Rule) -> Iterator[Turn]:
    """Give each attempt with its time, as if no attempt took any."""
    since_made = timedelta()
    for attempt, delay in enumerate(rule.delays, 1):
        since_made += delay
        yield Turn(attempt=attempt, after=delay, since_made=since_made)


class _Pairs(list[tuple[str, object]]):
    """A JSON object with all of its names, repeated ones too."""


def _delay(name: str, value: object) -> timedelta:
    seconds: Decimal | None = None
    if isinstance(value, Decimal) and value.is_finite():
        # More digits than a delay can have are not computed with: 1e999999 would overflow.
        seconds = value * 60 if value.adjusted() < DIGITS_MAX else Decimal("inf")
    elif isinstance(value, str) and (matched := _WITH_UNIT.fullmatch(value)):
        seconds = Decimal(matched[1]) * UNITS[matched[2]]
    if seconds is None:
        raise Misused(
            f'attempt {name}: {str(value)[:50]!r} is neither minutes (0, 1, 0.5) nor text with a unit ("5s", "30m", "2h", "1d")'
        )
    if not 0 <= seconds <= Decimal(DELAY_MAX.total_seconds()):
        raise Misused(f"attempt {name}: {str(value)[:50]} is not within 0 and {DELAY_MAX.days} days")
    milliseconds = seconds * 1_000
    if milliseconds != milliseconds.to_integral_value():
        raise Misused(
            f'attempt {name}: {str(value)[:50]} minutes is not a whole number of milliseconds: write seconds, e.g. "5s"'
        )
    return int(milliseconds) * RESOLUTION
