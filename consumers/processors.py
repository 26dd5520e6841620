"""Every processor of this version, by name. A processor's module is imported when it is asked for: a worker runs one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumers.delivery.loop import Processor

PLACES = {
    "funds": ("consumers.funds.agent", "PROCESSOR"),
    "points": ("consumers.points.agent", "PROCESSOR"),
    "accounting": ("consumers.accounting.agent", "PROCESSOR"),
    "notification": ("consumers.notification.agent", "PROCESSOR"),
    "settlement": ("consumers.settlement.agent", "PROCESSOR"),
    "bank_notification": ("consumers.notification.agent", "BANK_PROCESSOR"),
}
"""Each processor's module, and its name there."""


class _Processors(Mapping[str, "Processor"]):
    def __getitem__(self, name: str) -> Processor:
        module, attribute = PLACES[name]
        processor: Processor = getattr(import_module(module), attribute)
        return processor

    def __iter__(self) -> Iterator[str]:
        return iter(PLACES)

    def __len__(self) -> int:
        return len(PLACES)


PROCESSORS: Mapping[str, Processor] = _Processors()
