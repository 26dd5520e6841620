"""Carries out bulk actions, step by step. They are rows: after a restart, this console or another goes on with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from consumers.notification.notifier.bulk import step, unfinished
from outbox.http.app import Database

IDLE_S = 10.0
"""So often the acts of other consoles are looked for."""

log = logging.getLogger(__name__)


class Runner:
    """Takes unfinished acts by turns, a step each, so that a small one does not wait for a large one."""

    def __init__(self, services: Mapping[str, Database]) -> None:
        self._services = services
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    async def run(self) -> None:
        """Acts are carried out until this is cancelled; cut off anywhere, nothing is done twice or left out."""
        while True:
            self._wake.clear()
            goes_on = [await self._turn(database) for database in self._services.values()]
            if not any(goes_on):
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), IDLE_S)

    async def _turn(self, database: Database) -> bool:
        """Each unfinished act of a service is a step further; returns whether one has more to do, and can."""
        goes_on = False
        try:
            acts = await database.transact(unfinished)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one service, the other's acts go on, and its own later
            log.warning("bulk actions wait, and are tried again: %s", error)
            return False
        for identity in acts:
            try:
                goes_on |= not (await database.transact(partial(step, identity=identity))).ended
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one act, the others go on
                log.warning("bulk action %s waits, and is tried again: %s", identity, error)
        return goes_on
