"""Sign in and out."""

from __future__ import annotations

import asyncio
import math
from base64 import b64encode
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from ops.console.edge import Console, console_of, form_of, go, page, session_of, signed_in
from ops.console.passwords import BLOCK, COST, HASH_BYTES, LANES, SALT_BYTES, matches
from ops.console.sessions import Session
from ops.console.users import User
from outbox.http.app import HttpError

router = APIRouter()

NOBODY_HASH = "$".join(
    [
        "scrypt",
        str(COST),
        str(BLOCK),
        str(LANES),
        b64encode(bytes(SALT_BYTES)).decode(),
        b64encode(bytes(HASH_BYTES)).decode(),
    ]
)
"""What an unknown name's password is held against, so that it takes as long as a known one's. It is nobody's."""


@router.get("/sign-in")
async def show_sign_in(request: Request) -> Response:
    """The form; who is signed in already goes on."""
    return go("/") if session_of(request) else page(request, "sign_in.html", wrong="")


@router.post("/sign-in")
async def sign_in(request: Request, form: Annotated[dict[str, str], Depends(form_of)]) -> Response:
    """The browser has a session of its own from then on, and the one before is over."""
    console = console_of(request)
    name = form.get("name", "").strip().lower()[:64]
    who = [f"name {name}"]
    is_proxied = console.settings.console_https and not console.settings.trusted_proxies
    if request.client and not is_proxied:  # behind a proxy that is not trusted all come from one address
        who.append(f"address {request.client.host}")
    if (wait_s := console.tries.wait_s(*who)) > 0:
        message = f"Too many tries: again in {math.ceil(wait_s)} s."
        return page(request, "sign_in.html", status=429, wrong=message, headers={"retry-after": str(math.ceil(wait_s))})
    console.tries.note(*who)
    user = await _known(console, name, form.get("password", ""))
    if user is None:
        return page(request, "sign_in.html", status=403, wrong="No such name, or not its password.")
    console.tries.forget(*who)
    console.sessions.close(request.cookies.get(console.cookie, ""))
    answer = go("/")
    https = console.settings.console_https
    answer.set_cookie(console.cookie, console.sessions.open(user), httponly=True, samesite="strict", secure=https)
    return answer


@router.post("/sign-out")
async def sign_out(
    request: Request,
    session: Annotated[Session, Depends(signed_in)],
    form: Annotated[dict[str, str], Depends(form_of)],
) -> Response:
    """The session is over."""
    if not session.takes(form.get("csrf", "")):
        raise HttpError(403, "stale form", "this page is older than your sign-in, so nothing was done: load it again")
    console = console_of(request)
    console.sessions.close(request.cookies[console.cookie])
    answer = go("/sign-in")
    answer.delete_cookie(console.cookie, httponly=True, samesite="strict", secure=console.settings.console_https)
    return answer


async def _known(console: Console, name: str, password: str) -> User | None:
    """Return the user of that name and password."""
    user = console.users.get(name)
    kept = user.password_hash if user else NOBODY_HASH
    async with console.hashing:
        same = await asyncio.to_thread(matches, password[:1024], kept)
    return user if same else None
