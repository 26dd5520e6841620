"""Processes of the notifier's benchmark: a sink of 20 ms, a bare aiohttp loop to it, and the notifier itself."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp
import uvloop
from aiohttp import web

from consumers.notification.notifier.sender import run as run_sender
from ops.cli.context import current_settings

SINK_S = 0.02
SILENT = "/silent"
"""Beneath it nothing is answered."""
SILENT_S = 3_600.0
BODY = b'{"type":"payment.settled.v1","payment_no":"P000001","order_no":"O000001","amount_fen":10000,"currency":"CNY"}'


async def sink() -> None:
    """Answer `success` after 20 ms, and beneath /silent nothing, on a port that is printed on standard output, until killed."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(SILENT_S if request.path.startswith(SILENT) else SINK_S)
        return web.Response(text="success")

    app = web.Application()
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


async def bare(url: str, count: int, in_flight: int) -> None:
    """Post so many bodies, so many at a time, and nothing else; print how long it took."""
    left = iter(range(count))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one_after_another() -> None:
            for _ in left:
                async with session.post(url, data=BODY) as answer:
                    assert (await answer.read()) == b"success"

        begun = time.monotonic()
        await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
        print(json.dumps({"seconds": time.monotonic() - begun}), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["sink"]:
            uvloop.run(sink())
        case ["bare", url, count, in_flight]:
            uvloop.run(bare(url, int(count), int(in_flight)))
        case ["notifier", queue]:
            run_sender(current_settings(), {queue: "notification"})
