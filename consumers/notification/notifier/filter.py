"""Which notifications are meant: the one filter of the command line, the console and what acts on everything that matches. Pure."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from outbox.clock import EPOCH, first_id_at
from outbox.errors import Misused

WAITING = "WAITING"
"""Not finished, whatever came of the last attempt."""
STATUSES = (WAITING, "CREATED", "HTTP_REQUEST_FAILED", "HTTP_REQUEST_SUCCESS", "SUCCESS", "FAILED")
NO_ANSWER = "none"
UNFINISHED = "(leased_until IS NOT NULL OR leased_until IS NULL AND finished_at IS NULL)"
"""What is finished has no lease: said in two parts, for each of which there is an index."""

_HTTP = re.compile(r"[1-5]\d\d|[1-5]xx|none", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class NotificationFilter:
    """Which notifications are meant; what is empty leaves all in. Raises Misused for what can match nothing."""

    id: UUID | None = None
    queue: str = ""
    status: str = ""
    """One of STATUSES."""
    merchant_no: str = ""
    order_no: str = ""
    payment_no: str = ""
    http_status: str = ""
    """Of the last attempt: 503, 5xx, or none where nothing was answered."""
    begin: datetime | None = None
    """Made from then on."""
    end: datetime | None = None
    """Made before then."""

    def __post_init__(self) -> None:
        if self.status and self.status not in STATUSES:
            raise Misused(f"{self.status!r} is no status; there are: {', '.join(STATUSES)}")
        if self.http_status and not _HTTP.fullmatch(self.http_status):
            raise Misused(f"{self.http_status!r} is no HTTP status: give e.g. 503, 5xx, or none for no answer")
        for moment in (self.begin, self.end):
            if moment is not None and moment.tzinfo is None:
                raise Misused(f"{moment.isoformat()} names no zone: add one, e.g. +08:00")
            if moment is not None and moment < EPOCH:
                raise Misused(
                    f"{moment.isoformat()} is before 1970, when there were no notifications: give a later time"
                )

    def given(self) -> dict[str, str]:
        """Return what is not empty, as text that `parsed` takes."""
        return {
            name: said.isoformat() if isinstance(said, datetime) else str(said)
            for name, said in asdict(self).items()
            if said
        }


def parsed(given: dict[str, str]) -> NotificationFilter:
    """Return the filter of such text.

    >>> parsed({"status": "FAILED", "begin": "2026-01-01T00:00:00+00:00"}).given()
    {'status': 'FAILED', 'begin': '2026-01-01T00:00:00+00:00'}
    """
    values: dict[str, Any] = dict(given)
    values |= {name: datetime.fromisoformat(given[name]) for name in ("begin", "end") if name in given}
    values |= {"id": UUID(given["id"])} if "id" in given else {}
    return NotificationFilter(**values)


def conditions(wanted: NotificationFilter) -> tuple[str, dict[str, Any]]:
    """Return the filter as conditions on `notify_record`, and their parameters. A notification's id tells when it was made.

    >>> conditions(NotificationFilter(status="WAITING", http_status="5xx"))
    ('(leased_until IS NOT NULL OR leased_until IS NULL AND finished_at IS NULL) AND http_status BETWEEN :http_low AND :http_high', {'http_low': 500, 'http_high': 599})
    >>> conditions(NotificationFilter())
    ('true', {})
    """
    clauses: list[str] = []
    given: dict[str, Any] = {}
    if wanted.status == WAITING:
        clauses.append(UNFINISHED)
    elif wanted.status:
        clauses.append(f"status = '{wanted.status}'")  # written out: partial indexes are by it
    for column in ("id", "queue", "merchant_no", "order_no", "payment_no"):
        if said := getattr(wanted, column):
            clauses.append(f"{column} = :{column}")
            given[column] = said
    if wanted.http_status == NO_ANSWER:
        clauses.append("http_status IS NULL AND attempts > 0")
    elif wanted.http_status:
        low = int(wanted.http_status.replace("x", "0"))
        clauses.append("http_status BETWEEN :http_low AND :http_high")
        given |= {"http_low": low, "http_high": low + (99 if "x" in wanted.http_status else 0)}
    for name, condition in (("begin", "id >= :begin"), ("end", "id < :end")):
        if (moment := getattr(wanted, name)) is not None:
            clauses.append(condition)
            given[name] = first_id_at(moment)
    return " AND ".join(clauses) or "true", given
