"""Which stack a command means, and its settings: imported only where they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ops.stack.state import StackFolder
from outbox.environment import Environment
from outbox.errors import Misused

if TYPE_CHECKING:
    from outbox.settings import Settings


def this_stack(name: str = "") -> StackFolder:
    """Return the folder of the named stack, or of the one the environment names."""
    return StackFolder(name=name or Environment().payrelay_stack)


def current_settings() -> Settings:
    """Return the environment's settings where they name a Kafka, else those of the local stack."""
    from outbox.settings import Settings

    settings = Settings()
    if settings.kafka_bootstrap:
        return settings
    try:
        return this_stack().settings()
    except FileNotFoundError as error:
        raise Misused(
            f"{error}. To use a stack of your own, set PAYRELAY_KAFKA_BOOTSTRAP and the other settings: docs/reference/settings.md"
        ) from error


def local_folder() -> StackFolder | None:
    """Return the local stack's folder if that is the stack that commands mean."""
    from outbox.settings import Settings

    return None if Settings().kafka_bootstrap else this_stack()
