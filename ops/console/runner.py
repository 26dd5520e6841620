"""Carries acts out, step by step. They are rows: what one console began, it or another goes on with after a restart."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial

from consumers.notification.acts import step, unfinished
from outbox.errors import PayrelayError
from producers.http import Database, HttpError

IDLE_S = 10.0
"""So often the acts of other consoles are looked for."""

log = logging.getLogger(__name__)


class Runner:
    """Takes unfinished acts by turns, a step each, so that a small one does not wait for a large one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    async def run(self) -> None:
        """Acts are carried out until this is cancelled; cut off anywhere, nothing is done twice or left out."""
        while True:
            self._wake.clear()
            went_on = False
            for number in await self._unfinished():
                went_on |= await self._step(number)
            if not went_on:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), IDLE_S)

    async def _unfinished(self) -> list[int]:
        try:
            return await self._database.transact(unfinished)
        except HttpError as error:
            log.warning("acts not read: %s", error.message)
            return []

    async def _step(self, number: int) -> bool:
        """Return whether the act has more to do and can."""
        try:
            return not (await self._database.transact(partial(step, number=number))).ended
        except (HttpError, PayrelayError) as error:
            log.warning("act %s waits: %s", number, error)
            return False
