"""What was done by whom: acts on everything that matched, followed live, and single ones."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import Connection

from consumers.notification.acts import stop
from ops.console.edge import SEEN, Acting, console_of, followed, fragment, go, page
from ops.notify_records import act, acts, audit, items

router = APIRouter(dependencies=[SEEN])

EVERY_S = 0.5


@router.get("/acts")
async def show_acts(request: Request) -> Response:
    """The latest."""
    reader = console_of(request).reader
    return page(request, "acts.html", acts=await reader.transact(acts), audit=await reader.transact(audit))


@router.get("/acts/{number}")
async def show_act(request: Request, number: int) -> Response:
    """One act, its progress and its items; live until all is finished."""
    seen = await console_of(request).reader.transact(partial(_read, number=number))
    return page(request, "act.html", number=number, **seen)


@router.get("/acts/{number}/live", response_class=EventSourceResponse)
async def live(request: Request, number: int) -> AsyncGenerator[ServerSentEvent]:
    """The act's progress, until it has ended and its items are finished."""
    reader = console_of(request).reader
    read = partial(reader.transact, partial(_read, number=number))
    async for seen in followed(request, ("act", number), read, every_s=EVERY_S):
        yield ServerSentEvent(raw_data=fragment(request, "act_partial.html", **seen))
        if seen["act"]["ended_at"] and not seen["moving"]:
            yield ServerSentEvent(raw_data="", event="finished")
            return


@router.post("/acts/{number}/stop")
async def stop_act(request: Request, number: int, session: Acting) -> Response:
    """The act goes no further."""
    await console_of(request).notification.transact(partial(stop, number=number, actor=session.user.name))
    return go(f"/acts/{number}")


def _read(connection: Connection, number: int) -> dict[str, Any]:
    found = act(connection, number)
    moving = sum(count for status, count in found["now"].items() if status not in ("SUCCESS", "FAILED"))
    return {"act": found, "items": items(connection, number), "moving": moving}
