"""What every request passes: headers, who is signed in, whether the form is ours; and how a page is rendered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import msgspec
from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ops.console.live import Feed
from ops.console.runner import Runner
from ops.console.sessions import Session, Sessions, Tries
from ops.console.users import User
from outbox.errors import Refused
from outbox.http.app import Database, HttpError, note_authenticated, read_body
from outbox.settings import Settings

T = TypeVar("T")

log = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
STATIC = HERE / "static"

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; object-src 'none'"
)
"""Nothing inline runs, and nothing comes from elsewhere. Images in style sheets are data."""

HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
FIELDS_MAX = 50
TEXT_MAX = 200
"""Characters of a filter's field, and of a reason."""

PAGES = (
    ("Overview", "/", "o"),
    ("Notifications", "/notifications", "n"),
    ("Receivers", "/receivers", "r"),
    ("Actions", "/acts", "a"),
)
"""What the navigation shows: name, address, and the key that follows g."""


class Headers:
    """Every answer has the headers above, and only what is static may be kept."""

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self._app = app
        self._headers = HEADERS | ({"strict-transport-security": "max-age=31536000"} if https else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                static = scope["path"].startswith("/static/")
                headers["cache-control"] = "public, max-age=31536000, immutable" if static else "no-store"
            await send(message)

        await self._app(scope, receive, with_headers)


def _version() -> str:
    """Return what the assets' addresses end with: another one for other content."""
    content = b"".join(path.read_bytes() for path in sorted(STATIC.iterdir()))
    return sha256(content).hexdigest()[:12]


def _environment(zone: str) -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.globals.update(version=_version(), PAGES=PAGES)
    made.filters.update(at=partial(_at, zone=ZoneInfo(zone)), number=_number, duration=_duration, pretty=_pretty)
    return made


def _at(moment: datetime | None, *, zone: ZoneInfo) -> str:
    """Return a time as tables show it, in the settings' zone.

    >>> _at(datetime.fromisoformat("2026-01-01T00:00:00.123456+00:00"), zone=ZoneInfo("Asia/Shanghai"))
    '2026-01-01 08:00:00.123'
    """
    return "" if moment is None else moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _pretty(content: str) -> str:
    """Return JSON with a line for each field, numbers as they were; anything else as it is."""
    try:
        return msgspec.json.format(content.encode(), indent=2).decode()
    except msgspec.DecodeError:
        return content


def _number(number: int) -> str:
    return f"{number:,}"


def _duration(seconds: float | None) -> str:
    """Return a duration in the unit that suits it.

    >>> _duration(0.0123), _duration(4.2), _duration(600), _duration(-0.5), _duration(None)
    ('12 ms', '4.2 s', '10 min', '-500 ms', '')
    """
    if seconds is None:
        return ""
    size = abs(seconds)
    if size < 1:
        return f"{seconds * 1000:.0f} ms"
    if size < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if size < 7200 else f"{seconds / 3600:.1f} h"


@dataclass
class Console:
    """What the routes share."""

    settings: Settings
    users: dict[str, User]
    reader: Database
    services: Mapping[str, Database]
    """Those that notify, each as its own role."""
    runner: Runner
    sessions: Sessions = field(default_factory=lambda: Sessions(time.monotonic))
    tries: Tries = field(default_factory=lambda: Tries(time.monotonic))
    hashing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """One password at a time is looked at: a flood of them takes no more than 32 MiB and one core."""
    feed: Feed = field(default_factory=Feed)
    pages: Environment = field(init=False)

    def __post_init__(self) -> None:
        self.pages = _environment(self.settings.zone)

    async def act(self, act: Callable[[], T]) -> T:
        """Return what an act of `ops` returns, which sees to its own transactions. Raises HttpError 503 as `transact` does."""
        try:
            return await asyncio.to_thread(act)
        except SQLAlchemyError as error:
            log.warning("action failed, nothing was done: %s %s", type(error).__name__, getattr(error, "orig", ""))
            raise HttpError(503, "unavailable", "the database does not answer: send the same request again") from error

    @property
    def cookie(self) -> str:
        """The session cookie's name: behind HTTPS a browser takes it from this very host only."""
        return "__Host-payrelay" if self.settings.console_https else "payrelay"


def console_of(request: Request) -> Console:
    """Return what the application was made with."""
    console: Console = request.app.state.console
    return console


class SignInFirst(Exception):
    """Nobody is signed in; the answer is the way to the door."""


def session_of(request: Request) -> Session | None:
    """Return the request's session."""
    console = console_of(request)
    token = request.cookies.get(console.cookie)
    session = console.sessions.find(token) if token else None
    if session is not None:
        note_authenticated(request)
    return session


def signed_in(request: Request) -> Session:
    """Return the request's session; raises SignInFirst."""
    if (session := session_of(request)) is None:
        raise SignInFirst
    return session


async def acting(request: Request, session: Annotated[Session, Depends(signed_in)]) -> Session:
    """Return an operator's session whose own form this is; raises HttpError 403."""
    form = await form_of(request)
    if not session.takes(form.get("csrf", "")):
        raise HttpError(403, "stale form", "this page is older than your sign-in, so nothing was done: load it again")
    if not session.may_act:
        raise HttpError(403, "not allowed", f"{session.user.name} is a viewer, who cannot act: sign in as an operator")
    return session


def _names_of(dependant: Any) -> Iterator[str]:
    """Give what a route reads of its address, its dependencies' included."""
    yield from (parameter.alias for parameter in dependant.query_params)
    for dependency in dependant.dependencies:
        yield from _names_of(dependency)


def known_names(request: Request, _: Annotated[Session, Depends(signed_in)]) -> None:
    """Every name in the address is one that the page reads, once; raises HttpError 400 for another: it would be left out unseen."""
    known = set(_names_of(request.scope["route"].dependant))
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            raise HttpError(
                400,
                "unknown filter",
                f"{name[:TEXT_MAX]!r} is none of {', '.join(sorted(known)) or 'its names: it has none'}",
            )
        if names.count(name) > 1:
            raise HttpError(400, "ambiguous filter", f"{name!r} is given {names.count(name)} times: give it once")


SEEN = Depends(known_names)
"""What every router but sign-in's depends on: somebody is signed in, and the address says what the page reads."""
Acting = Annotated[Session, Depends(acting)]


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a form, each once; raises HttpError for one from elsewhere, too large or no form."""
    if not hasattr(request.state, "form"):
        refuse_elsewhere(request)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise HttpError(415, "not a form", "this is not a form: send application/x-www-form-urlencoded")
        body = await read_body(request)
        try:
            fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
        except ValueError as error:
            raise HttpError(400, "not a form", "the form cannot be read: load the page again") from error
        request.state.form = {name: values[-1].replace("\0", "") for name, values in fields.items()}
    form: dict[str, str] = request.state.form
    return form


async def require_names(request: Request, known: Collection[str]) -> None:
    """The form has no other fields than these, its reason and its session's; raises Refused for one that would be left out unseen."""
    if others := sorted((await form_of(request)).keys() - {*known, "csrf", "reason"}):
        raise Refused(f"{others[0][:TEXT_MAX]!r} is no field of this form: {', '.join(sorted(known))}")


async def reason_of(request: Request) -> str:
    """Return why something is done; raises Refused for no reason."""
    reason = (await form_of(request)).get("reason", "").strip()
    if not reason or len(reason) > TEXT_MAX:
        raise Refused(f"say why, in at most {TEXT_MAX} characters: the audit table keeps the reason")
    return reason


def refuse_elsewhere(request: Request) -> None:
    """Raises HttpError 403 where a browser says that another site sends this request."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    elsewhere = site not in (None, "same-origin", "none")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        elsewhere = True
    if elsewhere:
        raise HttpError(403, "from elsewhere", "another site sent this form: nothing was done")


def page(
    request: Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **content: Any
) -> HTMLResponse:
    """Return a rendered page; everything in it is escaped."""
    session = session_of(request)
    zone = console_of(request).settings.zone
    shared = {"session": session, "path": request.url.path, "zone": zone, **content}
    content_html = console_of(request).pages.get_template(template).render(shared)
    return HTMLResponse(content_html, status_code=status, headers=headers)


def fragment(request: Request, template: str, **content: Any) -> str:
    """Return a rendered part of a page, escaped."""
    return console_of(request).pages.get_template(template).render(content)


async def followed(
    request: Request, subject: Hashable, read: Callable[[], Awaitable[T]], *, every_s: float
) -> AsyncGenerator[T]:
    """Give what is read of a subject for as long as who looks on is signed in."""
    console = console_of(request)
    token = request.cookies.get(console.cookie, "")
    async for content in console.feed.follow(subject, read, every_s=every_s):
        if not console.sessions.holds(token):
            return
        yield content


def go(to: str) -> Response:
    """Return the answer after which the browser asks for another page."""
    return RedirectResponse(to, status_code=303)
