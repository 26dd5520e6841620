"""Consumers by their names: a consumer is a processor under the settings' group prefix."""

from __future__ import annotations

from dataclasses import dataclass

from consumers.delivery.processor import Processor
from consumers.effects import Effects
from consumers.processors import EFFECTS, PROCESSORS
from outbox.errors import UnknownName
from outbox.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A processor under its consumer's name, beside what its events should have caused."""

    name: str
    processor: Processor
    effects: Effects

    @property
    def service(self) -> str:
        """Return the service whose rows it writes."""
        return self.processor.service


def known_consumers(settings: Settings) -> dict[str, Consumer]:
    """Return every consumer of this version by its name."""
    return {
        name: Consumer(name=name, processor=processor, effects=EFFECTS[processor.name])
        for name, processor in known_processors(settings).items()
    }


def processor_of(settings: Settings, consumer: str) -> Processor:
    """Return the processor that a consumer runs; raises Refused where this version has no such consumer."""
    if (processor := known_processors(settings).get(consumer)) is None:
        raise UnknownName(
            f"there is no processor here for consumer {consumer!r}. The names of payrelay's groups begin with PAYRELAY_GROUP_PREFIX, which is {settings.group_prefix!r}"
        )
    return processor


def known_processors(settings: Settings) -> dict[str, Processor]:
    """Return every processor of this version by its consumer's name, which is its Kafka group too."""
    return {settings.group_prefix + name: processor for name, processor in PROCESSORS.items()}


def topics_of(settings: Settings, processor: Processor) -> list[str]:
    """Return the names of a processor's topics on this broker."""
    return [settings.topic_prefix + topic.name for topic in processor.topics]
