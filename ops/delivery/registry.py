"""Consumers by their names: a consumer is a processor under the settings' group prefix."""

from __future__ import annotations

from consumers.delivery.processor import Processor
from consumers.processors import PROCESSORS
from outbox.errors import UnknownName
from outbox.settings import Settings


def processor_of(settings: Settings, consumer: str) -> Processor:
    """Return the processor that a consumer runs; raises Refused where it is none of this version's."""
    if (processor := known_processors(settings).get(consumer)) is None:
        raise UnknownName(
            f"no processor here for consumer {consumer!r} (PAYRELAY_GROUP_PREFIX is {settings.group_prefix!r})"
        )
    return processor


def known_processors(settings: Settings) -> dict[str, Processor]:
    """Return every processor of this version by its consumer's name, which is its Kafka group too."""
    return {settings.group_prefix + name: processor for name, processor in PROCESSORS.items()}


def topics_of(settings: Settings, processor: Processor) -> list[str]:
    """Return the names of a processor's topics on this broker."""
    return [settings.topic_prefix + topic.name for topic in processor.topics]
