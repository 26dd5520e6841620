"""What pages follow live: read once for all who look on, never while nobody does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from outbox.http.app import HttpError

log = logging.getLogger(__name__)

FOLLOWERS_MAX = 100


@dataclass
class _Subject:
    """Something that is followed: who does, the last that was read, and the task that reads."""

    followers: set[asyncio.Queue[Any]] = field(default_factory=set)
    last: Any = None
    task: asyncio.Task[None] | None = None


class Feed:
    """Reads each followed subject in turns; a follower that is slow misses some, and never the last. One event loop."""

    def __init__(self) -> None:
        self._subjects: dict[Hashable, _Subject] = {}
        self._over = False

    async def follow(
        self, subject: Hashable, read: Callable[[], Awaitable[Any]], *, every_s: float
    ) -> AsyncGenerator[Any]:
        """Give what is read of a subject, the last known at once, until the console ends. Raises HttpError 503 for too many."""
        if sum(len(subject.followers) for subject in self._subjects.values()) >= FOLLOWERS_MAX:
            raise HttpError(
                503,
                "too many look on",
                f"{FOLLOWERS_MAX} pages are followed live, and no more are possible: close some",
            )
        followed = self._subjects.setdefault(subject, _Subject())
        queue: asyncio.Queue[Any] = asyncio.Queue(1)
        followed.followers.add(queue)
        if followed.last is not None:
            queue.put_nowait(followed.last)
        if followed.task is None:
            followed.task = asyncio.create_task(self._poll(followed, read, every_s))
        try:
            while not self._over and (content := await queue.get()) is not None:
                yield content
        finally:
            followed.followers.discard(queue)
            if not followed.followers:
                followed.task.cancel()
                self._subjects.pop(subject, None)

    def end(self) -> None:
        """Nobody follows any more: a server that ends waits for no stream."""
        self._over = True
        for followed in self._subjects.values():
            for queue in followed.followers:
                _put(queue, None)

    async def _poll(self, followed: _Subject, read: Callable[[], Awaitable[Any]], every_s: float) -> None:
        while True:
            try:
                followed.last = await read()
            except Exception as error:  # noqa: BLE001 - the database is away, say; what it was shows until it is back
                log.warning("the live figures cannot be read, and are tried again: %s", error)
            else:
                for queue in followed.followers:
                    _put(queue, followed.last)
            await asyncio.sleep(every_s)


def _put(queue: asyncio.Queue[Any], content: object) -> None:
    """The queue holds this and nothing older."""
    with suppress(asyncio.QueueEmpty):
        queue.get_nowait()
    queue.put_nowait(content)
