"""One attempt at delivering slices: how it is made, and the outcome of each message so far."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from uuid import UUID

from consumers.delivery.brake import PARKED_KEYS_MAX, Brake, Braked
from consumers.delivery.messages import DecodedEvent, Poison
from outbox.parking import Cause
from schemas.codec import Envelope


class AttemptMode(Enum):
    """How an attempt is made: see the table in consumers/delivery/loop.py."""

    WHOLE = auto()
    SAVEPOINTS = auto()
    IN_ORDER = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled:
    """What the handler was given and has not raised at."""

    fresh: Sequence[Envelope] = ()
    """Not applied before; in order."""
    superseded: int = 0
    """Of these, those that it passed over as older than what their key has."""


class Attempt:
    """The outcome of each message so far. None of it holds unless the attempt's transaction commits."""

    def __init__(self, brake: Brake, mode: AttemptMode) -> None:
        self.mode = mode
        self._brake = brake
        self.blocked: set[bytes] = set()
        """Keys that are parked already, or have poison in front that does not decode: no event of theirs flows."""
        self.failed: set[bytes] = set()
        """Keys of events that the handler rejects. Apart from `blocked`: only later events of theirs wait behind them."""
        self.poison: list[Poison] = []
        self.behind: list[Poison] = []
        """Parked only because something of their key is."""
        self.applied = 0
        self.superseded = 0
        self.first: UUID | None = None
        """Id of the first event that was applied."""

    def passed(self, handled: Handled) -> None:
        """The events were applied."""
        events = handled.fresh
        self.applied += len(events)
        self.superseded += handled.superseded
        if events and self.first is None:
            self.first = events[0].id
        self._brake.saw_pass({event.event.type for event in events})

    def reject_message(self, poison: Poison) -> None:
        """The message is poison, or parks behind its key's; later ones of its key park behind it."""
        if poison.message.key is not None and poison.message.key in self.blocked:
            self.behind.append(poison)
        else:
            self._reject(poison, self.blocked)

    def reject_event(self, poison: Poison) -> None:
        """The handler rejects the event, tried alone; later ones of its key park behind it.

        Raises Braked once so many have failed, and none has passed, that the brake would hold anyway.
        """
        self._reject(poison, self.failed)
        if self._brake.holds and len(self.poison) > PARKED_KEYS_MAX and not self.applied:
            # A broken handler fails on each of thousands: the rest need not be tried one at a time to know it.
            logs = {failed.log for failed in self.poison}
            raise Braked(
                f"no event passes the handler, so none is parked; the last failure is {poison.cause} {poison.error[:300]}",
                logs,
            )

    def _reject(self, poison: Poison, keys: set[bytes]) -> None:
        self.poison.append(poison)
        self._brake.saw_failure(poison)
        if poison.message.key is not None:
            keys.add(poison.message.key)

    def flowing(self, events: Sequence[DecodedEvent], blocked: Collection[bytes]) -> list[DecodedEvent]:
        """Return the events whose key is not blocked; the others park behind it."""
        flowing = []
        for event in events:
            if event.message.key in blocked:
                self.behind.append(
                    Poison(event.log, event.message, Cause.BEHIND_PARKED, "its key is parked", event.envelope)
                )
            else:
                flowing.append(event)
        return flowing
