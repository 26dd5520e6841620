"""What was done by whom: acts on everything that matched, followed live, and single ones."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import Connection

from consumers.notification.notifier.bulk import stop
from ops.console.edge import SEEN, Acting, console_of, followed, fragment, go, page
from ops.notifications.bulk import FOLLOWED_MAX, act, acts, held_up, items, single_acts, statuses

router = APIRouter(dependencies=[SEEN])

EVERY_S = 0.5


@router.get("/acts")
async def show_acts(request: Request) -> Response:
    """The latest."""
    reader = console_of(request).reader
    return page(request, "acts.html", acts=await reader.transact(acts), audit=await reader.transact(single_acts))


@router.get("/acts/{identity}")
async def show_act(request: Request, identity: UUID) -> Response:
    """One act, its progress and its items; live until all is finished."""
    seen = await console_of(request).reader.transact(partial(_read, identity=identity))
    return page(request, "act.html", **seen)


@router.get("/acts/{identity}/live", response_class=EventSourceResponse)
async def live(request: Request, identity: UUID) -> AsyncGenerator[ServerSentEvent]:
    """The act's progress, until it has ended and its items are finished."""
    reader = console_of(request).reader
    read = partial(reader.transact, partial(_read, identity=identity))
    async for seen in followed(request, ("act", identity), read, every_s=EVERY_S):
        yield ServerSentEvent(raw_data=fragment(request, "act_partial.html", **seen))
        if seen["act"].ended_at and not seen["moving"]:
            yield ServerSentEvent(raw_data="", event="finished")
            return


@router.post("/acts/{identity}/stop")
async def stop_act(request: Request, identity: UUID, session: Acting) -> Response:
    """The act goes no further."""
    for database in console_of(request).services.values():
        await database.transact(partial(stop, identity=identity, actor=session.user.name))
    return go(f"/acts/{identity}")


def _read(connection: Connection, identity: UUID) -> dict[str, Any]:
    now, action = statuses(connection, identity), act(connection, identity)
    moving = sum(count for status, count in now.items() if status not in ("SUCCESS", "FAILED"))
    # Beyond those that are followed nobody knows: then all that was made due is said to be resent only once none of these waits.
    unsent = now.get("CREATED", 0)
    return {
        "act": action,
        "now": now,
        "items": items(connection, identity),
        "moving": moving,
        "resent": action.done - unsent if action.done <= FOLLOWED_MAX or not unsent else None,
        "held_up": held_up(connection, identity),
    }
