"""The notifier: claims due records after their commit, posts them signed, marks them. At least once, same id each time."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import sys
import time
from collections.abc import Sequence
from uuid import UUID

import aiohttp
import uvloop
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from consumers.metrics import ATTEMPT, ATTEMPTS, expose
from consumers.notification.guard import GuardedResolver, check_url
from consumers.notification.records import Claimed, claim, mark
from outbox.clock import utc_now
from outbox.condition import Condition
from outbox.database import engine_for
from outbox.metrics import serve_metrics
from outbox.retry import backoff_s
from outbox.settings import Environment, Settings
from schemas.signature import signed_headers

IN_FLIGHT_MAX = 50
IDLE_S = 0.2
TIMEOUT = aiohttp.ClientTimeout(total=15, connect=3, sock_connect=3, sock_read=10)
ANSWER_BYTES_MAX = 64 * 1024
SUCCESS = b"success"
"""What a receiver answers, beside a 2xx status, once it has taken the notification in."""

log = logging.getLogger(__name__)


class Sender:
    """Sends due records until told to end."""

    def __init__(self, engine: Engine, condition: Condition, *, allow_private: bool) -> None:
        self.ending = asyncio.Event()
        self._engine = engine
        self._condition = condition
        self._allow_private = allow_private

    async def run(self) -> None:
        """Due records are claimed, sent and marked, a bounded number at a time."""
        connector = aiohttp.TCPConnector(
            resolver=GuardedResolver(allow_private=self._allow_private),
            limit=IN_FLIGHT_MAX,
            limit_per_host=IN_FLIGHT_MAX,
        )
        async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT, trust_env=False) as session:
            self._condition.ready()
            attempt = 0
            while not self.ending.is_set():
                try:
                    sent = await self._round(session)
                except SQLAlchemyError as error:
                    attempt += 1
                    self._condition.tell("notifier", f"waiting for the database: {type(error).__name__}")
                    await self._pause(backoff_s(attempt, jitter=random.random()))  # noqa: S311 - no secret
                else:
                    attempt = 0
                    self._condition.tell("notifier", "")
                    if not sent:
                        await self._pause(IDLE_S)

    async def _round(self, session: aiohttp.ClientSession) -> int:
        claimed = await asyncio.to_thread(self._claim)
        if claimed:
            results = await asyncio.gather(*(self._attempt(session, record) for record in claimed))
            await asyncio.to_thread(self._mark, results)
        return len(claimed)

    def _claim(self) -> list[Claimed]:
        with self._engine.begin() as connection:
            return claim(connection, limit=IN_FLIGHT_MAX)

    def _mark(self, results: Sequence[tuple[UUID, str | None]]) -> None:
        with self._engine.begin() as connection:
            mark(connection, results)

    async def _attempt(self, session: aiohttp.ClientSession, record: Claimed) -> tuple[UUID, str | None]:
        """Return the record's id, and what went wrong; the attempt is counted."""
        began = time.monotonic()
        identity, error = await self._send(session, record)
        ATTEMPTS.labels(record.queue, "success" if error is None else "failure").inc()
        ATTEMPT.labels(record.queue).observe(time.monotonic() - began)
        return identity, error

    async def _send(self, session: aiohttp.ClientSession, record: Claimed) -> tuple[UUID, str | None]:
        """Return the record's id, and what went wrong."""
        if record.url is None or record.secret is None:
            return record.id, f"merchant {record.merchant_no} has no receiver"
        body = record.body.encode()
        try:
            headers = signed_headers(record.secret, message_id=str(record.id), at=utc_now(), body=body)
            headers["content-type"] = "application/json"
            url = check_url(record.url, allow_private=self._allow_private)
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                word = (await _beginning(answer)).strip()
                if not 200 <= answer.status < 300:
                    return record.id, f"status {answer.status}"
                return record.id, None if word == SUCCESS else f"status {answer.status}, but not the word success"
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one receiver, the others are served
            return record.id, f"{type(error).__name__}: {error}"[:500]

    async def _pause(self, delay_s: float) -> None:
        try:
            await asyncio.wait_for(self.ending.wait(), delay_s)
        except TimeoutError:
            return


async def _beginning(answer: aiohttp.ClientResponse) -> bytes:
    """Return an answer's body, as far as we care to read."""
    body = bytearray()
    async for chunk in answer.content.iter_chunked(ANSWER_BYTES_MAX):
        body += chunk
        if len(body) >= ANSWER_BYTES_MAX:
            break
    return bytes(body)


def run(settings: Settings) -> None:
    """Run the notifier until SIGTERM or Ctrl-C: what is in flight is finished and marked."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    engine = engine_for(settings.dsn_of("notification"), name="notifier", pool_size=2)
    condition = Condition(Environment().payrelay_condition_file, "notifier")
    serve_metrics(settings)
    expose(condition)
    sender = Sender(engine, condition, allow_private=settings.allow_private_receivers)

    async def until_told() -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, sender.ending.set)
        await sender.run()

    uvloop.run(until_told())
