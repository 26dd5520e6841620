"""Where a group is to go on: what an operator types, read; a wish and a partition's bounds, made one offset. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from zoneinfo import ZoneInfo

from ops.kafka.reader import Place
from outbox.clock import EPOCH, in_zone
from outbox.errors import Refused
from schemas.numeric import LENGTH_MAX, WHOLE_MAX, parse_decimal, parse_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPosition:
    """A group's position in a partition."""

    place: Place
    low: int
    """The earliest offset of the log."""
    high: int
    """The one after its last."""
    committed: int | None = None
    """What Kafka holds."""
    progress: int | None = None
    """Of a group of ours, the truth."""
    is_ours: bool = False
    note: str = ""

    @property
    def position(self) -> int | None:
        """Where it goes on when it starts; None where that is not written down."""
        return self.progress if self.is_ours else self.committed

    @property
    def begin(self) -> int:
        """The first offset that waits: a group of ours without a position begins at its earliest."""
        return max(self.low, self.low if self.position is None else self.position)

    @property
    def behind(self) -> int | None:
        """How many offsets wait; None where a foreign group has no position, and its own setting decides."""
        if self.position is None and not self.is_ours:
            return None
        return max(0, self.high - self.begin)


class Mode(Enum):
    """What a wish is."""

    EARLIEST = auto()
    LATEST = auto()
    CURRENT = auto()
    OFFSET = auto()
    SHIFT = auto()
    KAFKA = auto()
    """What Kafka holds of a group of ours."""
    PLACES = auto()
    """An offset of its own for each partition that has one; the others stay."""


@dataclass(frozen=True, kw_only=True)
class MoveRequest:
    """Where a group should go on, as the operator gave it."""

    mode: Mode
    number: int = 0
    """The offset, or by how many to shift."""
    places: Mapping[Place, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a group is to go on in one partition."""

    offset: int
    note: str = ""


def target(wish: MoveRequest, standing: PartitionPosition) -> Target | None:
    """Return where a wish leads in a partition, within its log; None where it says nothing of it.

    Raises Refused where it starts from a position that there is none of.
    """
    wanted = _wanted(wish, standing)
    if wanted is None:
        return None
    note = ""
    if wish.mode is Mode.CURRENT and standing.position is None:
        note = "no position" + ("" if standing.is_ours else ": the end, as Kafka's tool has it")
    if wanted < standing.low:
        return Target(offset=standing.low, note=f"clamped: {wanted} is before the log's beginning")
    if wanted > standing.high:
        return Target(offset=standing.high, note=f"clamped: {wanted} is beyond the log's end")
    return Target(offset=wanted, note=note)


def _wanted(wish: MoveRequest, standing: PartitionPosition) -> int | None:
    match wish.mode:
        case Mode.EARLIEST:
            return standing.low
        case Mode.LATEST:
            return standing.high
        case Mode.OFFSET:
            return wish.number
        case Mode.PLACES:
            return wish.places.get(standing.place)
        case Mode.KAFKA:
            return standing.committed
        case Mode.CURRENT if standing.position is None:
            return standing.begin if standing.is_ours else standing.high
        case Mode.CURRENT:
            return standing.position
        case Mode.SHIFT:
            if standing.position is None and not standing.is_ours:
                raise Refused(
                    f"{standing.place[0]}/{standing.place[1]} has no committed offset to shift: use --to-offset, --to-earliest or --to-latest"
                )
            return (standing.begin if standing.position is None else standing.position) + wish.number


# ---- what an operator types -----------------------------------------------------------------------------------------

NUMBER = r"(?:0|[1-9][0-9]{0,8})"
"""A partition: without leading zeros, so that each has one name."""
SCOPE = re.compile(rf"(?P<topic>[A-Za-z0-9._-]{{1,249}})(:(?P<partitions>{NUMBER}(,{NUMBER})*))?")


def scope(text: str) -> tuple[str, frozenset[int] | None]:
    """Return topic and partitions of `topic` or `topic:0,1`; None: all of them. Raises ValueError.

    >>> scope("payment.order"), scope("payment.order:0,2")
    (('payment.order', None), ('payment.order', frozenset({0, 2})))
    """
    match = SCOPE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is neither a topic nor topic:0,1")
    return match["topic"], partitions(match["partitions"]) if match["partitions"] else None


def scopes(texts: Iterable[str]) -> dict[str, frozenset[int] | None]:
    """Return topics and partitions of several such texts; of a topic that is named twice, all that was named. Raises ValueError.

    >>> scopes(["a:0", "a:1", "b"]) == {"a": frozenset({0, 1}), "b": None}
    True
    """
    named: dict[str, frozenset[int] | None] = {}
    for topic, numbers in map(scope, texts):
        before = named.get(topic, frozenset())
        named[topic] = None if before is None or numbers is None else before | numbers
    return named


def partitions(text: str) -> frozenset[int]:
    """Return the partitions of `0,2`. Raises ValueError."""
    if not re.fullmatch(rf"{NUMBER}(,{NUMBER})*", text):
        raise ValueError(f"{text!r} are no partitions: write e.g. 0,2")
    return frozenset(map(int, text.split(",")))


def offset_map(text: str) -> dict[int, int]:
    """Return partition -> offset of `{"0": 123}`. Raises ValueError."""
    try:
        pairs = json.loads(text, object_pairs_hook=list)  # as pairs: a dict would keep the last of two equal names
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError('it is no map of partition to offset: write e.g. {"0": 123, "1": 456}')
    offsets: dict[int, int] = {}
    for key, value in pairs:
        if not re.fullmatch(NUMBER, key) or type(value) is not int or not 0 <= value <= WHOLE_MAX:
            raise ValueError(f"{key[:40]!r}: {str(value)[:40]} is no partition with an offset")
        if int(key) in offsets:
            raise ValueError(f"partition {key} is there twice")
        offsets[int(key)] = value
    return offsets


DIGITS_OF_A_DATE = 8
"""20261125 is a date; epoch seconds have had nine digits and more since 1973."""

EPOCH_UNITS = ((10**11, 1), (10**14, 1_000), (10**17, 1_000_000))
"""Below which number an epoch is of which fraction of a second; beyond the last, nanoseconds. Holds until the year 5138."""


def instant(text: str, zone: ZoneInfo | None) -> datetime:
    """Return the instant of an ISO 8601 time, or of an epoch in seconds, milli-, micro- or nanoseconds. Raises ValueError.

    A time without a zone is refused, unless a zone is given; one that the zone has twice, or never, too.

    >>> instant("2026-11-25T08:00:00Z", None) == instant("1795593600", None) == instant("1795593600000", None)
    True
    """
    digits, _, fraction = text.partition(".")
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) and len(digits) > DIGITS_OF_A_DATE:
        whole = parse_whole(digits, high=10**LENGTH_MAX)
        units = next((unit for limit, unit in EPOCH_UNITS if whole < limit), 1_000_000_000)
        if fraction and units != 1:
            raise ValueError(f"{text!r} is not an epoch: only seconds can have a fraction")
        microseconds = whole * 1_000_000 // units + int((fraction + "000000")[:6])
        try:
            return EPOCH + timedelta(microseconds=microseconds)
        except OverflowError as error:
            raise ValueError(f"{text!r} is too far ahead: the last year is 9999") from error
    at = _iso(text)
    if at.tzinfo is not None:
        return at
    if zone is None:
        raise ValueError(f"{text!r} names no zone: add Z or +08:00, or give --tz Asia/Shanghai")
    return in_zone(at, zone)


def _iso(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither an ISO 8601 time nor an epoch") from error


ISO_DURATION = re.compile(
    r"P(?=.)((?P<weeks>\d+)W)?((?P<days>\d+)D)?(T(?=.)((?P<hours>\d+)H)?((?P<minutes>\d+)M)?((?P<seconds>\d+(\.\d{1,6})?)S)?)?"
)
SHORT_DURATION = re.compile(
    r"(?=.)((?P<weeks>\d+)w)?((?P<days>\d+)d)?((?P<hours>\d+)h)?((?P<minutes>\d+)m)?((?P<seconds>\d+(\.\d{1,6})?)s)?"
)


def duration(text: str) -> timedelta:
    """Return a duration as ISO 8601 has it (no months or years, whose length varies) or as people write it. Raises ValueError.

    >>> duration("PT1H30M") == duration("90m") == duration("1h30m")
    True
    """
    match = ISO_DURATION.fullmatch(text.upper()) or SHORT_DURATION.fullmatch(text.lower())
    if match is None:
        raise ValueError(f"{text!r} is no duration: write e.g. PT1H30M, 90m, 6h, 2d")
    try:
        parts = {
            unit: parse_decimal(number, low=0, high=10**LENGTH_MAX)
            for unit, number in match.groupdict().items()
            if number
        }
        return timedelta(**{unit: float(number) for unit, number in parts.items()})
    except OverflowError as error:
        raise ValueError(f"{text!r} is too long: give a shorter duration") from error
