"""Drives payments through the real HTTP services, as merchants and payers would."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec
from aiohttp import web
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from consumers.funds.funds import deposit
from consumers.notification.receivers import register_receiver
from ops.demo.journal import Intent, JournalWriter, Merchant, Payer
from outbox.clock import utc_now
from outbox.database import driver_url
from outbox.errors import NotReady
from outbox.retry import backoff_s
from outbox.settings import Settings
from producers.bank.transactions import open_account as open_bank_account
from producers.payments.orders import Limits, open_account, register_merchant
from schemas.bank import BankNotification
from schemas.money import CNY
from schemas.signature import is_fresh, signed_at, signed_headers

MERCHANTS = 8
PAYERS = 40
POOR_PAYERS = 2
FAILING_SHARE = 0.05
REPEATED_SHARE = 0.10
BALANCE_SHARE = 0.25
"""Of the orders, paid from the payer's balance."""
AMOUNT_FEN_MIN = 20
"""No merchant's fee takes all of it: each payment leaves the merchant something to be counted."""
AMOUNT_FEN_MAX = 50_000
PATIENCE_S = 90.0
"""How long one request is tried again while a part is away."""
TOO_MANY_CONNECTIONS = 429
"""The service has taken nothing of the request: many began at once, and their connections have not signed anything yet."""
CONCURRENCY = 24
RICH_FEN = 10**14


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """The cast of a run, made from its seed: secrets and receivers beside what the journal holds."""

    name: str
    merchants: list[Merchant]
    payers: list[Payer]
    poor: list[Payer]
    secrets: dict[str, str]
    """Of merchants and payers, by their numbers."""


def cast(run: str, seed: int) -> DemoRun:
    """Return merchants and payers of a run; the same for the same seed but for their secrets."""
    draw = random.Random(f"cast {seed}")
    merchants = [
        Merchant(
            merchant_no=f"{run}-M{number:02d}",
            fee_rate_bp=draw.choice([0, 38, 60, 60, 100]),
            fee_fixed_fen=draw.choice([0, 0, 10]),
            fee_min_fen=draw.choice([0, 0, 8]),
            fee_cap_fen=draw.choice([None, None, 200]),
        )
        for number in range(MERCHANTS)
    ]

    def payer(number: int, balance_fen: int) -> Payer:
        return Payer(
            payer_no=f"{run}-U{number:02d}",
            account_no=f"{run}-A{number:02d}",
            balance_fen=balance_fen,
            deposit_fen=balance_fen,
        )

    payers = [payer(number, RICH_FEN) for number in range(PAYERS)]
    poor = [payer(PAYERS + number, 0) for number in range(POOR_PAYERS)]
    numbers = [*(party.merchant_no for party in merchants), *(payer.payer_no for payer in (*payers, *poor))]
    return DemoRun(
        name=run,
        merchants=merchants,
        payers=payers,
        poor=poor,
        secrets={number: f"whsec_{_secret()}" for number in numbers},
    )


def intents(run: DemoRun, orders: int, seed: int) -> list[Intent]:
    """Return what the driver will send, in order: the same for the same seed."""
    draw = random.Random(f"intents {seed}")
    return [
        Intent(
            order_no=f"{run.name}-O{number:06d}",
            merchant_no=draw.choice(run.merchants).merchant_no,
            payer_no=draw.choice(run.poor if draw.random() < FAILING_SHARE else run.payers).payer_no,
            amount_fen=draw.randint(AMOUNT_FEN_MIN, AMOUNT_FEN_MAX),
            repeats=draw.choice([1, 2]) if draw.random() < REPEATED_SHARE else 0,
            method="balance" if draw.random() < BALANCE_SHARE else "bank_card",
        )
        for number in range(orders)
    ]


def enrol(settings: Settings, run: DemoRun, sink_url: str) -> None:
    """Merchants, payers, bank accounts and receivers exist: each in its service, by the service's own function and role."""
    unlimited = Limits(single_fen=RICH_FEN, daily_fen=RICH_FEN * 100, monthly_fen=RICH_FEN * 100)

    def engine(service: str) -> Any:
        return create_engine(driver_url(settings.dsn_of(service)), poolclass=NullPool).begin()

    with engine("payments") as connection:
        for merchant in run.merchants:
            number = merchant.merchant_no
            register_merchant(connection, **asdict(merchant), api_key=number, secret=run.secrets[number])
        for payer in (*run.payers, *run.poor):
            number = payer.payer_no
            secret = run.secrets[number]
            open_account(connection, number, bank_account_no=payer.account_no, limits=unlimited, secret=secret)
    with engine("bank") as connection:
        for payer in (*run.payers, *run.poor):
            open_bank_account(connection, payer.account_no, balance_fen=payer.balance_fen, currency=CNY)
    with engine("funds") as connection:
        for payer in run.payers:
            number, amount_fen = f"{payer.payer_no}-D", payer.deposit_fen
            deposit(connection, number, payer_no=payer.payer_no, amount_fen=amount_fen, currency=CNY, at=utc_now())
    with engine("notification") as connection:
        for merchant in run.merchants:
            number = merchant.merchant_no
            register_receiver(connection, number, url=f"{sink_url}/{number}", secret=run.secrets[number])


class Sink:
    """The merchants' side: verifies each notification, answers `success`, counts by notification id."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self.received: dict[str, int] = {}
        self.orders: set[str] = set()
        self._secrets = secrets

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncGenerator[str]:
        """Listen on the loopback; gives the address."""
        app = web.Application()
        app.router.add_post("/{merchant}", self._take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        at = signed_at(self._secrets[request.match_info["merchant"]], request.headers, body)
        if at is None or not is_fresh(at, utc_now()):
            return web.Response(status=401)
        identity = request.headers["webhook-id"]
        self.received[identity] = self.received.get(identity, 0) + 1
        self.orders.add(msgspec.json.decode(body)["order_no"])
        return web.Response(text="success")


class Driver:
    """Sends intents; each is in the journal before its first request."""

    def __init__(self, settings: Settings, run: DemoRun, journal: JournalWriter, done: Callable[[], None]) -> None:
        self._settings = settings
        self._run = run
        self._journal = journal
        self._done = done
        self._bank_secret = settings.bank_notify_secret.get_secret_value()
        self.starts: list[float] = []

    async def drive(self, wanted: list[Intent], *, rate: float | None) -> None:
        """Every intent has been paid, or refused by the bank. With a rate, each starts at its time, whatever the others do."""
        connector = aiohttp.TCPConnector(limit=0 if rate else CONCURRENCY)
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            try:
                await (self._open_loop(session, wanted, rate) if rate else self._closed_loop(session, wanted))
            except ExceptionGroup as group:  # one of them says enough
                raise group.exceptions[0] from None

    async def _open_loop(self, session: aiohttp.ClientSession, wanted: list[Intent], rate: float) -> None:
        begin = time.monotonic() + 0.1
        async with asyncio.TaskGroup() as group:
            for number, intent in enumerate(wanted):
                await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
                group.create_task(self._pay(session, intent))

    async def _closed_loop(self, session: aiohttp.ClientSession, wanted: list[Intent]) -> None:
        waiting = iter(wanted)

        async def one_after_another() -> None:
            for intent in waiting:
                await self._pay(session, intent)

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(one_after_another())

    async def _pay(self, session: aiohttp.ClientSession, intent: Intent) -> None:
        self.starts.append(time.monotonic())
        self._journal.write(intent)
        body = msgspec.json.encode(
            {
                "payer_no": intent.payer_no,
                "amount_fen": intent.amount_fen,
                "order_no": intent.order_no,
                "method": intent.method,
            }
        )
        secret = self._run.secrets[intent.merchant_no]

        def headers() -> dict[str, str]:
            signed = signed_headers(secret, message_id=intent.order_no, at=utc_now(), body=body)
            return {**signed, "merchant-key": intent.merchant_no}

        def signed_by_payer() -> dict[str, str]:
            payer = self._run.secrets[intent.payer_no]
            return signed_headers(payer, message_id=opened["payment_no"], at=utc_now(), body=b"")

        opened = await self._post(session, f"{self._settings.payments_url}/payments", body, headers)
        if intent.method == "balance":
            for _ in range(1 + intent.repeats):
                await self._post(session, opened["confirm_address"], b"", signed_by_payer)
        else:
            result = await self._post(session, opened["bank_address"], b"", dict)
            for _ in range(intent.repeats):
                await self._repeat(session, result)
        self._done()

    async def _repeat(self, session: aiohttp.ClientSession, result: dict[str, Any]) -> None:
        """The bank's notification comes in again, under another id than the bank gives it; each time under the same one."""
        body = msgspec.json.encode(msgspec.convert(result, BankNotification))
        message_id = result["transaction_no"]

        def headers() -> dict[str, str]:
            return signed_headers(self._bank_secret, message_id=message_id, at=utc_now(), body=body)

        await self._post(session, f"{self._settings.payments_url}/bank/notifications", body, headers)

    async def _post(
        self, session: aiohttp.ClientSession, url: str, body: bytes, headers: Callable[[], dict[str, str]]
    ) -> dict[str, Any]:
        """Return the answer of a request that may be repeated: tried again while the service is away."""
        deadline = time.monotonic() + PATIENCE_S
        problem = ""
        for attempt in range(1, 1_000):
            try:
                async with session.post(url, data=body, headers=headers()) as answer:
                    if answer.ok:
                        is_json = answer.content_type == "application/json"
                        content: dict[str, Any] = await answer.json() if is_json else {}
                        return content
                    problem = f"{answer.status} {(await answer.text())[:300]}"
                    if answer.status < 500 and answer.status != TOO_MANY_CONNECTIONS:
                        raise NotReady(f"{url.partition('?')[0]}: {problem}")
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = repr(error)
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(backoff_s(attempt, first_s=0.05, cap_s=1.0))
        raise NotReady(f"{url.partition('?')[0]}: no answer in {PATIENCE_S:.0f} s: {problem}")


def _secret() -> str:
    return b64encode(uuid4().bytes + uuid4().bytes).decode()
