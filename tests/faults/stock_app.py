"""A stock Faust app as its users' guide would have it: python -m tests.faults.stock_app PATTERN FAULT GROUP TOPIC FOLDER BROKER.

It writes down each offset once it is through with it. At one offset, once, it raises, or takes its time until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faust

AT = 55

PATTERN, FAULT, GROUP, TOPIC, FOLDER, BROKER = sys.argv[1:]
folder = Path(FOLDER)

app = faust.App(
    GROUP,
    broker=f"kafka://{BROKER}",
    autodiscover=False,
    web_enabled=False,
    topic_disable_leader=True,
    topic_allow_declare=False,
    consumer_auto_offset_reset="earliest",
    broker_commit_interval=0.5,
    stream_wait_empty=False,
    datadir=folder / "data",
)
topic = app.topic(TOPIC, key_serializer="raw", value_serializer="raw")


async def handle(*events: Any) -> None:
    offsets = [event.message.offset for event in events]
    fault = folder / "fault"
    if AT in offsets and not fault.exists():
        fault.touch()
        if FAULT == "exception":
            raise RuntimeError(f"at offset {AT}")
        await asyncio.sleep(60)
    await asyncio.sleep(0.002)
    with (folder / "handled").open("a") as file:
        file.writelines(f"{offset}\n" for offset in offsets)


async def events_one_by_one(stream: Any) -> None:
    async for event in stream.events():
        await handle(event)


async def noack(stream: Any) -> None:
    async for event in stream.noack().events():
        await handle(event)
        await stream.ack(event)


async def take(stream: Any) -> None:
    async for events in stream.take_events(10, within=0.1):
        await handle(*events)


def noack_take(size: int) -> Callable[[Any], Any]:
    async def consume(stream: Any) -> None:
        async for events in stream.noack_take(size, within=0.1):
            await handle(*events)
            for event in events:
                await stream.ack(event)

    return consume


PATTERNS: dict[str, Callable[[Any], Any]] = {
    "events": events_one_by_one,
    "noack": noack,
    "take": take,
    "noack_take(1)": noack_take(1),
    "noack_take(10)": noack_take(10),
}

app.agent(topic, name="stock")(PATTERNS[PATTERN])

if __name__ == "__main__":
    faust.Worker(app, redirect_stdouts=False, loglevel="ERROR").execute_from_commandline()
