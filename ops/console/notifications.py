"""Notifications: the list, whose filter is its address; one with its history; and sending again, one or all that match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import Connection

from consumers.notification.notifier.bulk import COUNTED_MAX, begin_resend, count_matching
from consumers.notification.notifier.filter import STATUSES, NotificationFilter
from ops.console.edge import SEEN, TEXT_MAX, Acting, console_of, form_of, go, page, reason_of, require_names
from ops.notifications.bulk import new_id
from ops.notifications.operations import Matching, RecordRow, matching, queues, record, records, resend
from outbox.clock import in_zone
from outbox.errors import Refused
from schemas.numeric import parse_whole

router = APIRouter(dependencies=[SEEN])

PAGE_ROWS = 50


@dataclass(frozen=True, kw_only=True)
class FilterForm:
    """A filter as an address or a form holds it; times without a zone are in the settings' zone."""

    state: Annotated[str, Query(max_length=TEXT_MAX)] = ""
    queue: Annotated[str, Query(max_length=TEXT_MAX)] = ""
    merchant: Annotated[str, Query(max_length=TEXT_MAX)] = ""
    order: Annotated[str, Query(max_length=TEXT_MAX)] = ""
    http: Annotated[str, Query(max_length=TEXT_MAX)] = ""
    begin: Annotated[str, Query(max_length=TEXT_MAX, alias="from")] = ""
    end: Annotated[str, Query(max_length=TEXT_MAX, alias="to")] = ""

    def filter(self, zone: str) -> NotificationFilter:
        """Return what is meant; raises Refused for what can match nothing."""
        return NotificationFilter(
            status=self.state, queue=self.queue.strip(), merchant_no=self.merchant.strip(), order_no=self.order.strip(),
            http_status=self.http.strip().lower(), begin=_moment(self.begin, zone), end=_moment(self.end, zone),
        )  # fmt: skip

    @property
    def address(self) -> str:
        """Return the filter as an address has it: what is empty is left out."""
        return urlencode({name: said for name, said in self.named().items() if said})

    def named(self) -> dict[str, str]:
        """Return the filter's fields by their names in addresses."""
        return {
            "state": self.state, "queue": self.queue, "merchant": self.merchant, "order": self.order,
            "http": self.http, "from": self.begin, "to": self.end,
        }  # fmt: skip


def _moment(said: str, zone: str) -> datetime | None:
    if not said:
        return None
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        raise Refused(f"{said!r} is not a time: write e.g. 2026-11-25T15:30 or 2026-11-25T15:30:00+08:00") from None
    if moment.tzinfo:
        return moment
    try:
        return in_zone(moment, ZoneInfo(zone))
    except ValueError as error:
        raise Refused(str(error)) from error


@router.get("/notifications")
async def show_list(request: Request, query: Annotated[FilterForm, Depends()], before: UUID | None = None) -> Response:
    """The newest that match, how many do, and what can be done with them."""
    console = console_of(request)
    wanted = query.filter(console.settings.zone)

    def read(connection: Connection) -> tuple[list[RecordRow], Matching, list[str]]:
        names = [queue["queue"] for queue in queues(connection)]
        return records(connection, wanted, limit=PAGE_ROWS, before=before), matching(connection, wanted), names

    rows, all_found, names = await console.reader.transact(read)
    headers = {"hx-push-url": "/notifications" + ("?" + query.address if query.address else "")}
    return page(
        request, "notifications.html", headers=headers, asked=query, rows=rows, found=all_found, queues=names,
        states=STATUSES, before=before, more=rows[-1].id if len(rows) == PAGE_ROWS else None, counted_max=COUNTED_MAX,
        act_id=new_id(),
    )  # fmt: skip


@router.get("/notifications/{identity}")
async def show_one(request: Request, identity: UUID) -> Response:
    """Everything of one notification."""
    whole = await console_of(request).reader.transact(partial(record, identity=identity))
    return page(request, "notification.html", one=whole, timeline=timeline(whole))


def timeline(whole: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Return a notification's history in order: attempts as they went, postponements, acts."""
    lines = [{"kind": "attempt", "when": attempt["started_at"], **attempt} for attempt in whole["log"]]
    lines += [
        {"kind": "postponed", "when": postponement["made_at"], **postponement}
        for postponement in whole["postponements"]
    ]
    lines += [{"kind": "act", "when": action["acted_at"], **action} for action in whole["audit"]]
    return sorted(lines, key=lambda line: line["when"])


@router.post("/notifications/{identity}/resend")
async def resend_one(request: Request, identity: UUID, session: Acting) -> Response:
    """It is due now."""
    console, reason = console_of(request), await reason_of(request)
    chosen = await console.reader.transact(partial(records, wanted=NotificationFilter(id=identity), limit=1))
    act = partial(resend, console.settings, chosen, reason=reason, actor=session.user.name)
    done = await console.act(lambda: list(act()))
    if not any(due for _, due in done):
        raise Refused(
            f"notification {identity} was not sent again: it is not there, or is being sent just now; look again in a moment"
        )
    return go(f"/notifications/{identity}")


@router.post("/notifications/resend")
async def resend_matching(request: Request, session: Acting) -> Response:
    """Everything that matches and was there when it was counted is being sent again; the answer is where to follow that."""
    form, console, reason = await form_of(request), console_of(request), await reason_of(request)
    await require_names(request, {*FilterForm().named(), "act", "newest", "count"})
    query = FilterForm(
        state=form.get("state", ""), queue=form.get("queue", ""), merchant=form.get("merchant", ""),
        order=form.get("order", ""), http=form.get("http", ""), begin=form.get("from", ""), end=form.get("to", ""),
    )  # fmt: skip
    try:
        identity, newest, shown = (
            UUID(form.get("act", "")),
            UUID(form.get("newest", "")),
            parse_whole(form.get("count", "")),
        )
    except ValueError:
        raise Refused("the form does not say how many notifications were shown: load the list first") from None
    wanted = query.filter(console.settings.zone)
    count = partial(count_matching, wanted=wanted, newest=newest)
    matched = sum([await database.transact(count) for database in console.services.values()])
    if not matched:
        raise Refused("no notification matches any more, so nothing was done: load the list again")
    if matched > shown:
        raise Refused(
            f"{matched} notifications match now, but {shown} were shown, so nothing was done: load the list again"
        )
    begin = partial(
        begin_resend, identity=identity, wanted=wanted, newest=newest, reason=reason, actor=session.user.name
    )
    for database in console.services.values():
        await database.transact(begin)
    console.runner.wake()
    return go(f"/acts/{identity}")
