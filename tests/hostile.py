"""Receivers that answer with raw bytes: whatever HTTP allows, and more. Each path is a script; what was sent of it is counted."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import repeat

SENT_MAX = 96_000_000
"""A script ends here, so that a client without bounds comes to an end too."""

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nsuccess"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\n" + b"".join(b"link-%d: %s\r\n" % (n, b"x" * 1_000) for n in range(8)) + b"\r\n"


def ok(*headers: bytes) -> bytes:
    """Return a whole response that has been taken in, with more headers."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\nsuccess"
    )


def endless(begin: bytes, more: bytes) -> Iterator[bytes]:
    yield begin
    yield from repeat(more * (1 + 60_000 // len(more)))


async def at_once(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def dripping(part: bytes) -> AsyncIterator[bytes]:
    while True:
        yield part
        await asyncio.sleep(0.05)


Script = Callable[[], AsyncIterator[bytes]]

SCRIPTS: dict[str, Script] = {
    "good": lambda: at_once(iter([GOOD])),
    "continue": lambda: at_once(endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
    "early": lambda: at_once(endless(b"", EARLY)),
    "continue-drip": lambda: dripping(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "byte-drip": lambda: dripping(b"H"),
    "header": lambda: at_once(endless(b"HTTP/1.1 200 OK\r\nx-long: ", b"y")),
    "headers": lambda: at_once(endless(b"HTTP/1.1 200 OK\r\n", b"x-many: y\r\n")),
    "reason": lambda: at_once(endless(b"HTTP/1.1 200 ", b"O")),
    "chunk-extensions": lambda: at_once(endless(CHUNKED, b"1;" + b"e" * 8_000 + b"\r\nx\r\n")),
    "trailers": lambda: at_once(endless(CHUNKED + b"0\r\n", b"x-trailer: y\r\n")),
    "second-responses": lambda: at_once(endless(GOOD, GOOD)),
}


@dataclass
class Hostile:
    """Where to send it, and what each script has sent."""

    url: str = ""
    sent: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    """Connections that are over, by script."""
    scripts: dict[str, Script] = field(default_factory=lambda: dict(SCRIPTS))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = ""
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while line := await reader.readline():
                    name = line.split()[1].decode().strip("/")
                    head = (await reader.readuntil(b"\r\n\r\n")).lower().splitlines()
                    [length] = [int(header.split(b":")[1]) for header in head if header.startswith(b"content-length")]
                    await reader.readexactly(length)
                    await self._play(name, writer)
        finally:
            self.ended[name] += 1
            writer.transport.abort()

    async def _play(self, name: str, writer: asyncio.StreamWriter) -> None:
        sent = 0
        async for part in self.scripts[name]():
            writer.write(part)
            await writer.drain()
            sent += len(part)
            self.sent[name] += len(part)
            if sent > SENT_MAX:
                raise ConnectionError("enough")


@contextmanager
def hostile() -> Iterator[Hostile]:
    """Such receivers listen on the loopback meanwhile, in a thread of their own."""
    made = Hostile()
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    server: asyncio.Server | None = None

    async def begin() -> None:
        nonlocal server
        server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()

    def run() -> None:
        task = loop.create_task(begin())
        loop.run_forever()
        assert server
        server.close()
        pending = asyncio.all_tasks(loop)
        for pending_task in pending:
            pending_task.cancel()
        loop.run_until_complete(asyncio.gather(task, *pending, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
