"""What the tests run on: the embedded stack, containers, or a stack that exists already."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass

import pytest

from ops.stack.control import down, up
from ops.stack.state import StackFolder
from outbox.settings import Settings


@dataclass(frozen=True)
class Stack:
    """A running stack; `folder` is there where it is the embedded one."""

    settings: Settings
    folder: StackFolder | None = None

    @property
    def embedded(self) -> StackFolder:
        if self.folder is None:
            pytest.skip("kills processes of the embedded stack")
        return self.folder


def embedded() -> Generator[Stack]:
    """Start the embedded stack for this run; it dies with this process."""
    folder = StackFolder(name=f"test-{os.getpid()}")
    try:
        up(folder, with_parent=True)
        yield Stack(folder.settings(), folder)
    finally:
        down(folder, wipe=True)


def docker() -> Generator[Stack]:
    """Start docker-compose.yml's containers with testcontainers; where no engine answers, the skip says why."""
    from tests.containers import containers

    yield from (Stack(settings) for settings in containers())


def external() -> Generator[Stack]:
    """Use the stack that PAYRELAY_* names."""
    settings = Settings()
    if not (settings.kafka_bootstrap and settings.connect_url and settings.database_url.get_secret_value()):
        pytest.skip("--stack=external needs PAYRELAY_DATABASE_URL, PAYRELAY_KAFKA_BOOTSTRAP and PAYRELAY_CONNECT_URL")
    yield Stack(settings)


PROVIDERS: dict[str, Callable[[], Generator[Stack]]] = {"embedded": embedded, "docker": docker, "external": external}
