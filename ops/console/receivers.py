"""Receivers: who is sent to, who is paused or held up; pausing and resuming one, or all that match."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from ops.console.edge import SEEN, TEXT_MAX, Acting, console_of, form_of, go, page, reason_of, require_names
from ops.notifications.operations import pause_receiver, queues, resume_receiver
from ops.notifications.receivers import RECEIVERS_MAX, STATES, receivers
from outbox.errors import Refused

router = APIRouter(dependencies=[SEEN])

Words = Annotated[str, Query(max_length=TEXT_MAX)]


@router.get("/receivers")
async def show(request: Request, queue: Words = "", merchant: Words = "", state: Words = "") -> Response:
    """The receivers that match."""
    reader = console_of(request).reader
    wanted = {"queue": queue, "merchant_no": merchant.strip(), "state": state}
    names = [queue["queue"] for queue in await reader.transact(queues)]
    _require_known(wanted, names)
    rows = await reader.transact(lambda connection: receivers(connection, **wanted, limit=RECEIVERS_MAX + 1))
    return page(
        request, "receivers.html", asked={"queue": queue, "merchant": merchant, "state": state}, states=STATES,
        rows=rows[:RECEIVERS_MAX], more=len(rows) > RECEIVERS_MAX, queues=names,
    )  # fmt: skip


def _require_known(wanted: Mapping[str, str], queues_: Collection[str]) -> None:
    for name, known in (("queue", queues_), ("state", STATES)):
        if wanted[name] and wanted[name] not in known:
            raise Refused(f"{wanted[name]!r} is not a {name}; there are: {', '.join(known)}")


@router.post("/receivers/{action}")
async def act(request: Request, action: Literal["pause", "resume"], session: Acting) -> Response:
    """Each receiver that matches, one transaction each, is paused or resumed; as many must match as were shown."""
    form, console, reason = await form_of(request), console_of(request), await reason_of(request)
    wanted = {
        "queue": form.get("queue", ""),
        "merchant_no": form.get("merchant", "").strip(),
        "state": form.get("state", ""),
    }
    await require_names(request, ("queue", "merchant", "state", "matched", "back"))
    _require_known(wanted, [queue["queue"] for queue in await console.reader.transact(queues)])
    rows = await console.reader.transact(lambda connection: receivers(connection, **wanted, limit=RECEIVERS_MAX + 1))
    if str(len(rows)) != form.get("matched") or len(rows) > RECEIVERS_MAX:
        raise Refused(
            f"{len(rows)} receivers match now, and they are not those that were shown, so nothing was done: load the list again"
        )
    change = pause_receiver if action == "pause" else resume_receiver
    for row in rows:
        given = {"reason": reason, "actor": session.user.name}
        await console.act(partial(change, console.settings, row.queue, row.merchant_no, **given))
    back = form.get("back", "")
    return go(back if back.startswith("/receivers?") else "/receivers")
