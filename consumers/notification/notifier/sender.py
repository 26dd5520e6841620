"""The notifier: claims due notifications after their commit, posts them signed, writes down what came of it. At least once, same id
each time.

One turn is one transaction: what has ended is finished, and what is due is claimed into the room that is left. Times are the
database's: the host's clock may be off.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import aiohttp
import uvloop
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from consumers.notification.notifier.attempt import attempt, new_session
from consumers.notification.notifier.claims import (
    LEASE_S,
    Claimed,
    Ended,
    hand_back,
    look,
    queue_of,
    release_expired,
    take_wakes,
    turn,
)
from consumers.notification.notifier.lanes import (
    OTHERS_PER_TURN,
    PROMPT_WITHIN,
    Queue,
    Result,
    Room,
    TurnOutcome,
    idle_s,
    room_of,
)
from consumers.notification.notifier.metrics import ATTEMPT, ATTEMPTS, LATENESS
from consumers.notification.queues import BANK, PLATFORM
from consumers.notification.receivers import register_receiver
from outbox.clock import DatabaseClock
from outbox.database import engine_for
from outbox.errors import Misused
from outbox.metrics import expose_condition, serve_metrics
from outbox.retry import backoff_s
from outbox.settings import Environment, Settings
from outbox.status import Condition
from schemas.signature import SECRET_FORM, is_secret

SWITCH_S = 0.0005
"""Python's 5 ms would make the database's thread wait for the loop's at each of its round trips."""
GATHER_S = 0.005
"""What ends within it is written down together."""
RELEASE_S = 1.0
BEGIN_WITHIN = timedelta(seconds=1)
"""Of the claim: what has to wait longer for its slot is handed back. An attempt's longest time lies well within the lease."""
log = logging.getLogger(__name__)


class Sender:
    """Sends a queue's due notifications until it is asked to end."""

    def __init__(
        self,
        engine: Engine,
        condition: Condition,
        queue: str,
        *,
        allow_private: bool,
        prepare: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        self.ending = asyncio.Event()
        self._engine = engine
        self._condition = condition
        self._name = queue
        self._queue = Queue(queue=queue)
        self._allow_private = allow_private
        self._prepare = prepare
        """What is done before the first claim, in a transaction; may be repeated."""
        self._ended: list[Ended] = []
        self._unbegun: list[Claimed] = []
        self._under_way: set[asyncio.Task[None]] = set()
        """What is being sent, and what waits for its slot."""
        self._other = 0
        """How many of them have no slot and wait for none."""
        self._slow: Counter[str] = Counter()
        """Attempts under way for more than a second, by receiver."""
        self._newly_slow: set[str] = set()
        self._clock = DatabaseClock()
        self._news = asyncio.Event()
        self._released_at = -RELEASE_S

    async def run(self) -> None:
        """Due notifications are claimed, sent and noted, a bounded number at a time; when asked to end, what is under way is finished."""
        attempt, idle_turns, most, slots = 0, 0, 0, asyncio.Semaphore(0)
        session: aiohttp.ClientSession | None = None
        while not self._is_over():
            try:
                if session is None:
                    self._queue = await asyncio.to_thread(self._read_queue)
                    session = new_session(allow_private=self._allows_private)
                if most != self._queue.in_flight_max:
                    most = self._queue.in_flight_max
                    slots = asyncio.Semaphore(most)
                    self._condition.ready()
                outcome = await self._turn(session, slots)
                if time.monotonic() - self._released_at >= RELEASE_S:
                    await asyncio.to_thread(self._release)
            except SQLAlchemyError as error:
                attempt += 1
                self._condition.tell(f"notifier {self._name}", f"waiting for the database: {type(error).__name__}")
                await asyncio.sleep(backoff_s(attempt, jitter=random.random()))  # noqa: S311 - no secret
                continue
            attempt = 0
            self._condition.tell(f"notifier {self._name}", "")
            idle_turns = idle_turns + 1 if outcome is TurnOutcome.IDLE else 0
            await self._pause(0 if outcome is TurnOutcome.MORE else idle_s(idle_turns))
        if session is not None:
            await session.close()

    def _is_over(self) -> bool:
        return self.ending.is_set() and not self._under_way and not self._ended and not self._unbegun

    @property
    def _allows_private(self) -> bool:
        return self._allow_private or self._queue.private_receivers

    def _read_queue(self) -> Queue:
        with self._engine.begin() as connection:
            self._prepare(connection)
            return queue_of(connection, self._name)

    async def _turn(self, session: aiohttp.ClientSession, slots: asyncio.Semaphore) -> TurnOutcome:
        """What has ended is written down, and what is due is under way, as far as there is room."""
        ended, unbegun, newly_slow = list(self._ended), list(self._unbegun), set(self._newly_slow)
        prompt = len(self._under_way) - self._other
        room = room_of(self._queue, prompt=prompt, other=self._other, ended=len(ended))
        if self.ending.is_set():
            room = Room(prompt=0, other=0)
        claimed = await asyncio.to_thread(self._transact, ended, unbegun, newly_slow, set(self._slow), room)
        del self._ended[: len(ended)]
        del self._unbegun[: len(unbegun)]
        self._newly_slow -= newly_slow
        for record in claimed:
            self._other += not record.prompt
            self._under_way.add(asyncio.create_task(self._attempt(session, slots, record)))
        if sum(not record.prompt for record in claimed) == OTHERS_PER_TURN:
            return TurnOutcome.MORE
        return TurnOutcome.WORKED if ended or unbegun or newly_slow or claimed else TurnOutcome.IDLE

    def _transact(
        self, ended: Sequence[Ended], unbegun: Sequence[Claimed], newly_slow: set[str], slow: set[str], room: Room
    ) -> list[Claimed]:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if unbegun:
                hand_back(connection, self._name, unbegun)
            now, is_due = look(connection, self._name, room)
            self._clock.set(now)
            if not (ended or newly_slow or is_due):
                return []
            take_wakes(connection, self._name)
        with self._engine.begin() as connection:
            return turn(connection, self._queue, ended, now=now, room=room, slow=slow, newly_slow=newly_slow)

    def _release(self) -> None:
        """What senders have let pass is due again: after what ended here is written down, which may be some of that."""
        with self._engine.begin() as connection:
            release_expired(connection, self._name)
            self._queue = queue_of(connection, self._name)
        self._released_at = time.monotonic()

    async def _attempt(self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, record: Claimed) -> None:
        try:
            async with self._place(slots, record):
                waited = self._clock.now() - record.leased_until + timedelta(seconds=LEASE_S)
                if self.ending.is_set() or waited > BEGIN_WITHIN:
                    self._unbegun.append(record)
                    self._news.set()
                    return
                word, allow_private = self._queue.success_word, self._allows_private
                ended = await attempt(session, record, word, allow_private=allow_private, clock=self._clock.now)
            count(ended)
            self._ended.append(ended)
            self._news.set()
        finally:
            self._under_way.discard(asyncio.current_task())  # at once: the next turn fills its place

    @asynccontextmanager
    async def _place(self, slots: asyncio.Semaphore, record: Claimed) -> AsyncGenerator[None]:
        """A prompt receiver's attempt has a slot, for a second at most; then, and any other's from the start, another place."""
        has_slot, is_slow = record.prompt, False

        def is_now_slow() -> None:
            nonlocal has_slot, is_slow
            is_slow = True
            self._slow[record.merchant_no] += 1
            if has_slot:
                has_slot = False
                self._other += 1
                slots.release()
                self._newly_slow.add(record.merchant_no)
                self._news.set()

        if has_slot:
            await slots.acquire()
        timer = asyncio.get_running_loop().call_later(PROMPT_WITHIN.total_seconds(), is_now_slow)
        try:
            yield
        finally:
            timer.cancel()
            if is_slow:
                self._slow -= Counter([record.merchant_no])
            if has_slot:
                slots.release()
            else:
                self._other -= 1

    async def _pause(self, delay_s: float) -> None:
        """Time has passed, or something has ended; what ends close together is waited for."""
        self._news.clear()
        if not (
            self._ended or self._unbegun or self._newly_slow
        ):  # each may have come while the turn was in its thread
            try:
                await asyncio.wait_for(self._news.wait(), delay_s)
            except TimeoutError:
                return
        await asyncio.sleep(GATHER_S)

    def end(self) -> None:
        """Nothing new is begun."""
        self.ending.set()
        self._news.set()


def count(ended: Ended) -> None:
    """The attempt is in this process's metrics."""
    queue = ended.claimed.queue
    ATTEMPTS.labels(queue, "success" if ended.result is Result.SUCCESS else "failure").inc()
    ATTEMPT.labels(queue).observe((ended.ended_at - ended.started_at).total_seconds())
    lateness_s = max(0.0, (ended.started_at - ended.claimed.planned_at).total_seconds())
    LATENESS.labels(queue, "yes" if ended.claimed.postponed else "no").observe(lateness_s)


def sender_engine(settings: Settings, queue: str, service: str) -> Engine:
    """Return the engine of a queue's sender."""
    return engine_for(settings.dsn_of(service), name=f"notifier {queue}", pool_size=1)


def platform_as_receiver(settings: Settings) -> Callable[[Connection], None]:
    """Return what makes the platform the bank's receiver, at the address and with the secret that the settings name."""
    secret = settings.bank_notify_secret.get_secret_value()
    if not is_secret(secret):
        raise Misused(f"PAYRELAY_BANK_NOTIFY_SECRET is missing or too short: set it to {SECRET_FORM}")
    url = f"{settings.payments_url}/bank/notifications"
    return lambda connection: register_receiver(connection, PLATFORM, url=url, secret=secret)


def run(settings: Settings, queues: Mapping[str, str]) -> None:
    """Run the notifier for these queues of these services until SIGTERM or Ctrl-C: what is under way is finished and written down."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    condition = Condition(
        Environment().payrelay_condition_file, ":".join(("notifier", *queues) if len(queues) == 1 else ("notifier",))
    )
    serve_metrics(settings)
    expose_condition(condition)
    engines = {queue: sender_engine(settings, queue, service) for queue, service in queues.items()}
    sys.setswitchinterval(SWITCH_S)
    preparations = {BANK: platform_as_receiver(settings)} if BANK in queues else {}

    async def until_ended() -> None:
        allow_private = settings.allow_private_receivers
        senders = [
            Sender(
                engine, condition, queue, allow_private=allow_private, prepare=preparations.get(queue, lambda _: None)
            )
            for queue, engine in engines.items()
        ]

        def end() -> None:
            for sender in senders:
                sender.end()

        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, end)
        await asyncio.gather(*(sender.run() for sender in senders))

    uvloop.run(until_ended())
