"""Receivers under test on the loopback: each answers as its path says, and everything that came is kept."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

BOMB = gzip.compress(b"\0" * 50_000_000, 1)


@dataclass
class ReceivedRequest:
    """A request that came in."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Sink:
    """What came, and where to send it."""

    url: str = ""
    came: list[ReceivedRequest] = field(default_factory=list)
    delay_s: float = 0.0
    refuse: set[str] = field(default_factory=set)
    """Ids answered with 500."""
    scripted: tuple[int, str] = (200, "success")
    """What /scripted answers: a status and a body."""

    def times(self) -> Counter[str]:
        return Counter(request.id for request in self.came)

    async def take(self, request: web.Request) -> web.StreamResponse:
        came = ReceivedRequest(request.path, dict(request.headers.items()), await request.read())
        came.headers = {name.lower(): value for name, value in came.headers.items()}
        self.came.append(came)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if came.id in self.refuse:
            return web.Response(status=500, text="not now")
        answer = getattr(self, "_" + request.path.strip("/").split("/")[0], None)
        return await answer(request) if answer else web.Response(text=" success\n")

    async def _scripted(self, _: web.Request) -> web.Response:
        return web.Response(status=self.scripted[0], text=self.scripted[1])

    async def _almost(self, _: web.Request) -> web.Response:
        return web.Response(text="SUCCESS")

    async def _word(self, _: web.Request) -> web.Response:
        return web.Response(status=204)

    async def _gone(self, _: web.Request) -> web.Response:
        return web.Response(status=410, text="gone\0 \N{SNOWMAN}")

    async def _moved(self, _: web.Request) -> web.Response:
        return web.Response(status=307, headers={"location": f"{self.url}/good"}, text="success")

    async def _later(self, _: web.Request) -> web.Response:
        return web.Response(status=429, headers={"retry-after": "30"})

    async def _huge(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(2_000):
            await answer.write(b"x" * 65_536)
        return answer

    async def _packed(self, _: web.Request) -> web.Response:
        return web.Response(body=BOMB, headers={"content-encoding": "gzip"})

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(10_000):
            await answer.write(b"x")
            await asyncio.sleep(0.05)
        return answer

    async def _silent(self, _: web.Request) -> web.Response:
        await asyncio.sleep(600)
        raise AssertionError

    async def _headers(self, _: web.Request) -> web.Response:
        return web.Response(text="success", headers={f"x-{number}": "y" * 100 for number in range(3_000)})


@contextmanager
def sinking() -> Iterator[Sink]:
    """Receivers listen on the loopback meanwhile, in a thread of their own."""
    sink = Sink()
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    runner: Any = None

    async def begin() -> None:
        nonlocal runner
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", sink.take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        sink.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()

    def serve() -> None:
        loop.run_until_complete(begin())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield sink
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
