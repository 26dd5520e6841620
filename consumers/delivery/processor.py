"""What a consumer is to the delivery loop: its handler and that handler's contract, and which failures may pass by themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from outbox.errors import AheadOfClock
from schemas.codec import Envelope
from schemas.events import Event
from schemas.topics import Topic

TRANSIENT_CLASSES = ("08", "40", "53", "57", "58")
"""SQLSTATE classes: connection, rollback (serialization, deadlock), resources, operator intervention, system."""

TRANSIENT_CODES = ("25006", "25P03", "25P04", "55P03", "55006")
"""Read-only (a fail-over is on), idle or whole transaction timed out, lock not available, object in use."""


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A consumer of topics: its name, the service that owns its rows, and its handler."""

    name: str
    service: str
    topics: tuple[Topic, ...]
    handle: Callable[[Connection, Sequence[Envelope]], Collection[UUID] | None]
    """Applies events in order, in the caller's transaction. Depends on the events and on its own rows only.

    If the result depends on the order of events, the handler compares `version` with the version in its locked row, passes
    over an older event, and returns the ids that it passed over: superseded. Such an event counts as applied. If order does
    not matter, it returns None. It raises DuplicateFact if the fact has its effect already; any other error rejects the events.
    """
    notifies: Callable[[Event], bool] = lambda _: False
    """Whether the event's effect includes a notification, which cannot be taken back once it is sent."""
    resend: Callable[[Connection, Collection[UUID]], int] | None = None
    """Sends the notifications of applied events again, under the same notification ids; returns of how many events."""


class DuplicateFact(Exception):
    """A second event for a fact that already has its effect."""


def is_transient(error: BaseException) -> bool:
    """Return whether the same attempt may succeed later: the listed errors, and no others."""
    if isinstance(error, PoolTimeoutError | AheadOfClock):  # no connection came free, or the session's ids are ahead
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlstate", None)
    if code is None:  # the server went away before it could say why
        return isinstance(error, (OperationalError, InterfaceError)) or error.connection_invalidated
    return code.startswith(TRANSIENT_CLASSES) or code in TRANSIENT_CODES


def error_line(error: BaseException) -> str:
    """Return an error in one line, without the statement's parameters."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]
