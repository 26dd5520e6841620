"""A service's facts: its own rows that an outbox row announces. Pure; the service states them, reconcile reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.events import Event


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Rows of a table that should have an outbox row each."""

    type: str
    """The event's type without its version, as an SQL expression over the row."""
    condition: str = "true"
    """Which rows of the table are such facts."""
    happened_at: str
    """When, as an SQL expression over the row."""


@dataclass(frozen=True, kw_only=True)
class FactTable:
    """A table of a service, the facts in it, and the events that tell of them."""

    table: str
    """With its schema, which is the service's name."""
    number: str
    """The column with the business number."""
    key: str = ""
    """The column with the event's key, where that is another one."""
    order_no: str = "''"
    """The order's number, as an SQL expression over the row."""
    facts: tuple[Fact, ...]
    events: tuple[type[Event], ...] = ()
    """The events that repeat a row's columns: each must agree with its row."""
    columns: tuple[str, ...] = ()
    """The columns that they repeat, and those that `statuses` and `stand_ins` look at."""
    statuses: Mapping[type[Event], tuple[str, ...]] = field(default_factory=dict)
    """What a row's status may be, once there is an event of a type; the first one is the one that the event says."""
    not_compared: Mapping[type[Event], tuple[str, ...]] = field(default_factory=dict)
    """Fields of an event that its row does not hold, or in another precision, or not yet."""
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    """Of a column that may be empty, the column whose value the event has then."""

    @property
    def service(self) -> str:
        """Return the service whose rows they are."""
        return self.table.partition(".")[0]

    def compared(self, event: type[Event]) -> list[str]:
        """Return the fields that an event and its row both hold."""
        left_out = self.not_compared.get(event, ())
        return [name for name in event.__struct_fields__ if name not in left_out]
