"""Tasks in the background that nobody awaits: an error that they did not expect does not end them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ops.console import runner
from ops.console.runner import Runner


class Failing:
    """A database whose first transaction fails as no database does."""

    def __init__(self) -> None:
        self.transactions = 0

    async def transact(self, _: object) -> list[Any]:
        self.transactions += 1
        if self.transactions == 1:
            raise KeyError("a state that this version does not know")
        return []


def test_the_console_s_runner_goes_on_after_an_error_that_it_did_not_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "IDLE_S", 0.01)
    database = Failing()

    async def run() -> None:
        running = asyncio.create_task(Runner({"notification": database}).run())  # type: ignore[dict-item]
        await asyncio.wait({running}, timeout=0.2)
        running.cancel()
        await asyncio.wait({running})

    asyncio.run(run())
    assert database.transactions > 1, "no act is ever carried out again"
