"""What a consumer reads, and its three stages: message -> event -> parked.

- **message**: what the Kafka client hands over, still bytes (`Message`). Messages of one log fetched together are a `Slice`.
- **event**: a message that decodes to an event of ours, whose id lies within the consumer's bounds (`DecodedEvent`).
- **parked**: a message that is not applied, with the cause (`Poison`); in the parking lot it is a row (`outbox.parking.Parked`).

`decode_message` turns a message into an event, or into poison if it cannot be applied. It reads nothing but its arguments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from sqlalchemy import Connection

from consumers.delivery.processor import DuplicateFact, error_line
from outbox.clock import first_id_at, time_of
from outbox.database import database_now
from outbox.inbox import NO_HORIZON, Log, behind_horizons
from outbox.parking import Cause, Parked
from schemas.codec import TYPE, Envelope, Undecodable, UnknownType, UnknownVersion, decode

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far a service's clock may be ahead of ours before its events are parked."""

HORIZON_S = 60.0
"""For how long the days of the inbox are taken from memory. They change once a day, by upkeep."""

LAST_ID = UUID(int=(1 << 128) - 1)

Place = tuple[Log, int]
"""A log and an offset in it."""


class Message(Protocol):
    """A message as the Kafka client hands it over."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Messages of one log as they were fetched: from the fetch position `start` up to, not including, `end`.

    Offsets between the two that have no message are gaps of the log itself. The next slice starts where this one ends.
    """

    log: Log
    start: int
    end: int
    messages: Sequence[Message]


@dataclass(frozen=True, slots=True)
class DecodedEvent:
    """A message that is an event, and may be applied."""

    log: Log
    message: Message
    envelope: Envelope

    @property
    def place(self) -> Place:
        """Return where it lies."""
        return self.log, self.message.offset


@dataclass(frozen=True, slots=True)
class Poison:
    """A message that is not applied, and why: it is to be parked."""

    log: Log
    message: Message
    cause: Cause
    error: str
    envelope: Envelope | None = None
    """None if it does not decode."""
    is_ahead: bool = False
    """Whether its id is ahead of the clock: a clock is wrong then, not the handler."""

    @property
    def place(self) -> Place:
        """Return where it lies."""
        return self.log, self.message.offset

    @property
    def parked_as(self) -> object:
        """Return what it counts as among parked keys: its key, or itself if it has none."""
        return self.place if self.message.key is None else self.message.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Which ids can be applied: from `low` on, and before `high` and `ahead`."""

    low: UUID
    """Begin of the inbox's oldest day: a repeat of an older event would not be recognised."""
    high: UUID
    """End of the inbox's newest day."""
    ahead: UUID
    """Ids from here on are too far ahead of the clocks."""
    behind: Mapping[str, UUID]
    """By topic, while the consumer still reads the topic's past: older ids than this are applied too, by a table of their own."""


class BoundsReader:
    """Reads a consumer's bounds from its database, and remembers them for `HORIZON_S` seconds."""

    def __init__(
        self,
        service: str,
        consumer: str,
        *,
        clock: Callable[[], datetime],
        horizon: Callable[[Connection, str], tuple[UUID, UUID]],
    ) -> None:
        self._service = service
        self._consumer = consumer
        self._clock = clock
        self._read_horizon = horizon
        self._read: tuple[float, int, Bounds] | None = None
        """When the bounds were read, how often `forget` had been called by then, and the bounds."""
        self._forgotten = 0
        self._database_ahead = timedelta()
        """How far the database's clock is ahead of ours."""

    def forget(self) -> None:
        """The bounds are read from the database before they are used again. Safe from any thread."""
        self._forgotten += 1

    def of_days(self, connection: Connection) -> Bounds:
        """Return the bounds that the inbox's days set, whatever the clocks say."""
        forgotten = self._forgotten  # before the read: a call of `forget` during it counts
        if (read := self._read) is None or read[1] != forgotten or time.monotonic() - read[0] > HORIZON_S:
            low, high = self._read_horizon(connection, self._service)
            bounds = Bounds(low=low, high=high, ahead=LAST_ID, behind=behind_horizons(connection, self._consumer))
            self._read = read = (time.monotonic(), forgotten, bounds)
            self._database_ahead = max(timedelta(), database_now(connection) - self._clock())
        return read[2]

    def of_now(self, connection: Connection) -> Bounds:
        """Return the bounds that the inbox's days and the clocks set."""
        days = self.of_days(connection)
        # The later of the two clocks decides: if ours alone were slow, every event would look ahead, and be parked.
        now = self._clock() + self._database_ahead
        return replace(days, ahead=first_id_at(now + CLOCK_TOLERANCE))


def headers_of(message: Message) -> dict[str, bytes]:
    """Return a message's headers that hold a value."""
    return {name: value for name, value in message.headers if value is not None}


def decode_message(log: Log, message: Message, bounds: Bounds) -> DecodedEvent | Poison:
    """Return a message's event, or why it cannot be applied. Raises nothing, whatever the message holds."""
    try:
        envelope = decode(headers_of(message), message.value)
    except UnknownVersion as error:
        return Poison(log, message, Cause.UNKNOWN_VERSION, str(error))
    except UnknownType as error:
        return Poison(log, message, Cause.UNKNOWN_TYPE, str(error))
    except Undecodable as error:
        return Poison(log, message, Cause.UNDECODABLE, str(error))
    except Exception as error:  # noqa: BLE001 - whatever a message holds, it does not stop the stream
        return Poison(log, message, Cause.UNDECODABLE, error_line(error))
    if message.key != envelope.event.key.encode():
        # Without its envelope, so that its id is not parked: the true event of that id may still come.
        return Poison(log, message, Cause.UNDECODABLE, "the record's key is not the event's")
    at = time_of(envelope.id)
    if at is None:
        return Poison(log, message, Cause.UNDECODABLE, f"id {envelope.id} is no UUIDv7", envelope)
    if envelope.id < bounds.low and envelope.id >= bounds.behind.get(log.topic, NO_HORIZON):
        why = f"recorded {at}: its repeats would not be recognised; it can be skipped, not retried"
        return Poison(log, message, Cause.BEHIND_HORIZON, why, envelope)
    if envelope.id >= bounds.ahead:
        why = f"recorded {at}: ahead of the clock; upkeep retries it"
        return Poison(log, message, Cause.AHEAD_OF_CLOCK, why, envelope, is_ahead=True)
    if envelope.id >= bounds.high:
        why = f"recorded {at}: its day is not made: payrelay upkeep"
        return Poison(log, message, Cause.AHEAD_OF_CLOCK, why, envelope)
    return DecodedEvent(log, message, envelope)


def rejected(event: DecodedEvent, error: Exception) -> Poison:
    """Return the event as poison: the handler, or a check of the database, has raised the error at it."""
    cause = Cause.DUPLICATE_FACT if isinstance(error, DuplicateFact) else Cause.REJECTED
    return Poison(event.log, event.message, cause, error_line(error), event.envelope)


def parked_row(poison: Poison) -> Parked:
    """Return poison as the parking lot stores it."""
    message, envelope = poison.message, poison.envelope
    headers = headers_of(message)
    return Parked(
        offset=message.offset,
        event_id=envelope.id if envelope else None,
        key=message.key,
        type=headers.get(TYPE, b"").decode(errors="replace") or None,
        version=envelope.version if envelope else None,
        headers={name: value.decode(errors="replace") for name, value in headers.items()},
        value=message.value,
        cause=poison.cause,
        error=poison.error,
    )
