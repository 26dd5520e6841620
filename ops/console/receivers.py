"""Receivers: who is sent to, who is paused or held up; pausing and resuming one, or all that match."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from consumers.notification.records import pause, resume
from ops.console.edge import SEEN, Acting, console_of, form_of, go, page
from ops.console.notifications import TEXT_MAX, reason_of
from ops.notify_records import RECEIVER_STATES, RECEIVERS_MAX, queues, receivers
from outbox.clock import utc_now
from outbox.errors import Refused

router = APIRouter(dependencies=[SEEN])

Words = Annotated[str, Query(max_length=TEXT_MAX)]


@router.get("/receivers")
async def show(request: Request, queue: Words = "", merchant: Words = "", state: Words = "") -> Response:
    """The receivers that match."""
    reader = console_of(request).reader
    wanted = {"queue": queue, "merchant_no": merchant.strip(), "state": state}
    rows = await reader.transact(lambda connection: receivers(connection, **wanted, limit=RECEIVERS_MAX + 1))
    names = await reader.transact(queues)
    return page(
        request, "receivers.html", asked={"queue": queue, "merchant": merchant, "state": state}, states=RECEIVER_STATES,
        rows=rows[:RECEIVERS_MAX], more=len(rows) > RECEIVERS_MAX, queues=names,
    )  # fmt: skip


@router.post("/receivers/{action}")
async def act(request: Request, action: Literal["pause", "resume"], session: Acting) -> Response:
    """Each receiver that matches, one transaction each, is paused or resumed; as many must match as were shown."""
    form, console, reason = await form_of(request), console_of(request), await reason_of(request)
    wanted = {
        "queue": form.get("queue", ""),
        "merchant_no": form.get("merchant", "").strip(),
        "state": form.get("state", ""),
    }
    rows = await console.reader.transact(lambda connection: receivers(connection, **wanted, limit=RECEIVERS_MAX + 1))
    if str(len(rows)) != form.get("matched") or len(rows) > RECEIVERS_MAX:
        raise Refused(f"{len(rows)} receivers match now, not those that were shown: look again")
    change = pause if action == "pause" else resume
    for row in rows:
        done = partial(
            change, queue=row.queue, merchant_no=row.merchant_no, reason=reason, actor=session.user.name, now=utc_now()
        )
        await console.notification.transact(done)
    back = form.get("back", "")
    return go(back if back.startswith("/receivers?") else "/receivers")
