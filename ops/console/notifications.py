"""Notifications: the list, whose filter is its address; one with its history; and sending again, one or all that match."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import Connection

from consumers.notification.acts import begin_resend, resend_records
from consumers.notification.search import STATES, Filter
from ops.console.edge import SEEN, Acting, console_of, form_of, go, page
from ops.notify_records import COUNTED_MAX, PAGE, Found, RecordRow, found, queues, record, records, timeline
from outbox.errors import Refused

router = APIRouter(dependencies=[SEEN])

TEXT_MAX = 200


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A filter as it stands in an address, or in a form; times without a zone are the settings' zone's."""

    state: Annotated[str, Query(max_length=TEXT_MAX)] = ""
    queue: Annotated[str, Query(max_length=TEXT_MAX)] = ""
    merchant: Annotated[str, Query(max_length=TEXT_MAX)] = ""
    order: Annotated[str, Query(max_length=TEXT_MAX)] = ""
    http: Annotated[str, Query(max_length=TEXT_MAX)] = ""
    begin: Annotated[str, Query(max_length=TEXT_MAX, alias="from")] = ""
    end: Annotated[str, Query(max_length=TEXT_MAX, alias="to")] = ""

    def filter(self, zone: str) -> Filter:
        """Return what is meant; raises Refused for what can match nothing."""
        return Filter(
            state=self.state, queue=self.queue.strip(), merchant_no=self.merchant.strip(), order_no=self.order.strip(),
            http=self.http.strip().lower(), begin=_moment(self.begin, zone), end=_moment(self.end, zone),
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
        raise Refused(f"{said!r} is no time: such as 2026-11-25T15:30 or 2026-11-25T15:30:00+08:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))


@router.get("/notifications")
async def show_list(request: Request, asked: Annotated[Asked, Depends()], before: UUID | None = None) -> Response:
    """The newest that match, how many do, and what can be done with them."""
    console = console_of(request)
    wanted = asked.filter(console.settings.zone)

    def read(connection: Connection) -> tuple[list[RecordRow], Found, list[str]]:
        return records(connection, wanted, before=before), found(connection, wanted), queues(connection)

    rows, all_found, names = await console.reader.transact(read)
    headers = {"hx-push-url": "/notifications" + ("?" + asked.address if asked.address else "")}
    return page(
        request, "notifications.html", headers=headers, asked=asked, rows=rows, found=all_found, queues=names,
        states=STATES, before=before, more=rows[-1].id if len(rows) == PAGE else None, counted_max=COUNTED_MAX,
    )  # fmt: skip


@router.get("/notifications/{identity}")
async def show_one(request: Request, identity: UUID) -> Response:
    """Everything of one notification."""
    whole = await console_of(request).reader.transact(partial(record, identity=identity))
    return page(request, "notification.html", one=whole, timeline=timeline(whole))


@router.post("/notifications/{identity}/resend")
async def resend_one(request: Request, identity: UUID, session: Acting) -> Response:
    """It is due now."""
    reason = await reason_of(request)
    act = partial(resend_records, ids=[identity], reason=reason, actor=session.user.name)
    if not await console_of(request).notification.transact(act):
        raise Refused(f"notification {identity} is not there, or just being sent: look again in a moment")
    return go(f"/notifications/{identity}")


@router.post("/notifications/resend")
async def resend_matching(request: Request, session: Acting) -> Response:
    """Everything that matches, as it was counted, is being sent again; the answer is where that is followed."""
    form, console = await form_of(request), console_of(request)
    asked = Asked(
        state=form.get("state", ""), queue=form.get("queue", ""), merchant=form.get("merchant", ""),
        order=form.get("order", ""), http=form.get("http", ""), begin=form.get("from", ""), end=form.get("to", ""),
    )  # fmt: skip
    try:
        matched, newest = int(form.get("matched", "")), UUID(form.get("newest", ""))
    except ValueError:
        raise Refused("nothing was counted: look at the list first") from None
    begin = partial(
        begin_resend, wanted=asked.filter(console.settings.zone), matched=matched, newest=newest,
        reason=await reason_of(request), actor=session.user.name,
    )  # fmt: skip
    number = await console.notification.transact(begin)
    console.runner.wake()
    return go(f"/acts/{number}")


async def reason_of(request: Request) -> str:
    """Return why something is done; raises Refused for no reason."""
    reason = (await form_of(request)).get("reason", "").strip()
    if not reason or len(reason) > TEXT_MAX:
        raise Refused(f"say why, in at most {TEXT_MAX} characters: it is kept in the audit table")
    return reason
