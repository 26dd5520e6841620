"""Every consumer of this version, by name: its processor, and what its events should have caused.

A consumer's modules are imported when it is asked for. To read the names costs nothing, and a worker pays for its own consumers only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from consumers.delivery.processor import Processor
    from consumers.effects import Effects

_CONSUMERS = {
    "funds": ("consumers.funds.agent:PROCESSOR", "consumers.funds.effects:EFFECTS"),
    "points": ("consumers.points.agent:PROCESSOR", "consumers.points.effects:EFFECTS"),
    "accounting": ("consumers.accounting.agent:PROCESSOR", "consumers.accounting.effects:EFFECTS"),
    "notification": ("consumers.notification.agent:PROCESSOR", "consumers.notification.effects:EFFECTS"),
    "settlement": ("consumers.settlement.agent:PROCESSOR", "consumers.settlement.effects:EFFECTS"),
    "bank_notification": ("consumers.notification.agent:BANK_PROCESSOR", "consumers.notification.effects:BANK_EFFECTS"),
}
"""In the order of `payrelay status`. A new consumer is a line here; everything that runs or checks consumers follows."""

T = TypeVar("T")


class _Resolved(Mapping[str, T]):
    """What a column of the table names, imported when it is read."""

    def __init__(self, column: int) -> None:
        self._column = column

    def __getitem__(self, name: str) -> T:
        value: T = resolve_name(_CONSUMERS[name][self._column])
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(_CONSUMERS)

    def __len__(self) -> int:
        return len(_CONSUMERS)

    def __contains__(self, name: object) -> bool:
        return name in _CONSUMERS


PROCESSORS: Mapping[str, Processor] = _Resolved(0)
EFFECTS: Mapping[str, Effects] = _Resolved(1)
