"""Orders of a test's own, driven through the real services in portions, and the proof over them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any

from sqlalchemy import text

from ops.demo.driver import Driver, Sink, cast, enrol, intents
from ops.demo.journal import Intent, JournalWriter, read_journal
from ops.demo.proof import Proof, prove
from ops.stack.state import StackFolder
from tests.pipeline import engine_of
from tests.waiting import eventually

ORDERS_MAX = 300


class Shopping:
    """Merchants, payers and orders under a name of their own: the first order is NAME-O000000."""

    def __init__(self, folder: StackFolder, name: str, *, seed: int = 1) -> None:
        self.settings = folder.settings()
        self.name = name
        self._run = cast(name, seed)
        self._left = iter(intents(self._run, ORDERS_MAX, seed))
        self._ordered = 0
        self._path = folder.path / "journals" / f"{name}.jsonl"
        self._journal = JournalWriter(self._path)
        self._journal.write(*self._run.merchants, *self._run.payers, *self._run.poor)
        self._sink = Sink(self._run.secrets)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._open = AsyncExitStack()
        url = self._do(self._open.enter_async_context(self._sink.listening()))
        enrol(self.settings, self._run, url)

    def pay(self, orders: int) -> list[Intent]:
        """So many more orders were paid, or refused by the bank; what follows from it may still be on its way."""
        wanted = [next(self._left) for _ in range(orders)]
        self._ordered += orders
        driver = Driver(self.settings, self._run, self._journal, lambda: None)
        self._do(driver.drive(wanted, rate=None))
        return wanted

    def proof(self) -> Proof:
        """Return the proof over everything that was ordered."""
        return prove(self.settings, read_journal(self._path), delivered=len(self._sink.orders))

    def holds(self, within_s: float = 60.0) -> None:
        """Everything that was ordered has settled with all its effects: lost 0, doubled 0, merchants notified, the ledger balanced."""
        with suppress(AssertionError):
            eventually(lambda: self.proof().holds, within_s=within_s)
        proof = self.proof()
        assert proof.holds, proof.findings
        assert (proof.orders, proof.lost, proof.doubled) == (self._ordered, 0, 0)

    def count(self, statement: str) -> int:
        """Return what a statement counts; `:like` stands for all numbers of this name."""
        with engine_of(self.settings, "ops").connect() as connection:
            return int(connection.execute(text(statement), {"like": f"{self.name}-%"}).scalar_one())

    def settled(self) -> None:
        """No payment waits for its bank or for funds."""
        waiting = "SELECT count(*) FROM payments.payment WHERE merchant_no LIKE :like AND finished_at IS NULL"
        eventually(lambda: self.count(waiting) == 0, what="every payment has ended")

    def close(self) -> None:
        self._do(self._open.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._journal.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)


@contextmanager
def shopping(folder: StackFolder, name: str) -> Generator[Shopping]:
    """Give orders of that name; their merchants' receiver listens meanwhile."""
    made = Shopping(folder, name)
    try:
        yield made
    finally:
        made.close()
