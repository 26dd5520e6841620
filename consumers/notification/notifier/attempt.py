"""One attempt at a receiver: a signed request over HTTP, and what its answer amounts to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime

import aiohttp

from consumers.notification.notifier.claims import Claimed, Ended
from consumers.notification.notifier.lanes import Result
from consumers.notification.notifier.responses import HEADER_BYTES_MAX, HEADERS_MAX, BoundedConnector
from consumers.notification.notifier.ssrf import ForbiddenAddress, GuardedResolver, check_url, open_socket
from outbox.clock import utc_now
from schemas.numeric import LENGTH_MAX, parse_whole
from schemas.signature import signed_headers

TIMEOUT = aiohttp.ClientTimeout(total=15, connect=3, sock_connect=3, sock_read=10, ceil_threshold=60)
ANSWER_BYTES_MAX = 64 * 1024
ANSWER_KEPT_MAX = 8 * 1024
"""Bytes of an answer that wait to be written down."""
HEADERS = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "payrelay-notifier"}
WAITING_STATUSES = (429, 503)
"""With these a receiver may ask for time."""


def new_session(*, allow_private: bool, resolver: object = None) -> aiohttp.ClientSession:
    """Return a session that connects to public addresses only, unless private ones are allowed; no proxy, no cookies, no redirects."""
    connector = BoundedConnector(
        resolver=GuardedResolver(allow_private=allow_private, resolver=resolver),
        socket_factory=None if allow_private else open_socket,
        limit=0,  # the sender's places bound it
        ttl_dns_cache=10,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=TIMEOUT,
        trust_env=False,
        auto_decompress=False,  # a small answer stays small
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=HEADERS,
        max_line_size=HEADER_BYTES_MAX,
        max_field_size=HEADER_BYTES_MAX,
        max_headers=HEADERS_MAX,
    )


async def attempt(
    session: aiohttp.ClientSession,
    record: Claimed,
    word: str,
    *,
    allow_private: bool,
    clock: Callable[[], datetime] = utc_now,
) -> Ended:
    """Return what came of sending a notification, within the total time-out. Whatever is wrong with its receiver, nothing is raised."""
    started_at, began = clock(), time.monotonic()

    def ended(result: Result, error: str = "", **more: object) -> Ended:
        ended_at = started_at + timedelta(seconds=time.monotonic() - began)
        return Ended(claimed=record, started_at=started_at, ended_at=ended_at, result=result, error=error, **more)  # type: ignore[arg-type]

    if record.url is None or record.secret is None:
        return ended(Result.HTTP_REQUEST_FAILED, f"merchant {record.merchant_no} has no receiver")
    body = record.body.encode()
    status: int | None = None
    try:
        url = check_url(record.url, allow_private=allow_private)
        headers = signed_headers(
            record.secret, message_id=str(record.id), at=started_at, body=body, old_secret=record.old_secret
        )
        async with (
            asyncio.timeout(TIMEOUT.total),  # whatever the client's own timers count
            session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            status = answer.status
            content = await _beginning(answer)
            result = result_of(status, content, word)
            return ended(
                result,
                _shortcoming(result, status, word),
                http_status=status,
                response=content[:ANSWER_KEPT_MAX].decode(errors="replace"),
                retry_after=retry_after(status, answer.headers, now=clock()),
            )
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one receiver, the others are served
        answered = "" if status is None else f"status {status}, and its body did not come whole: "
        return ended(Result.HTTP_REQUEST_FAILED, answered + error_text(error), http_status=status)


def _shortcoming(result: Result, status: int, word: str) -> str:
    """Return what an answer lacks to be a success; empty for one that is."""
    if result is Result.SUCCESS:
        return ""
    return f"status {status}" + (f", but not the word {word}" if result is Result.HTTP_REQUEST_SUCCESS else "")


def error_text(error: BaseException) -> str:
    """Return an error in a line: of a forbidden address, that, and not what the HTTP client made of it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ForbiddenAddress):
        cause = cause.__cause__
    shown = cause or error
    if isinstance(shown, TimeoutError) and not str(shown):
        return f"TimeoutError: no complete response within {TIMEOUT.total:g} s, or nothing for {TIMEOUT.sock_read:g} s"
    return f"{type(shown).__name__}: {shown}".rstrip(": ")


def result_of(status: int, content: bytes, word: str) -> Result:
    """Return what an answer means: taken in is a 2xx with the agreed word, and white space around it.

    >>> str(result_of(200, b" success\\n", "success")), str(result_of(200, b"Success", "success")), str(result_of(302, b"success", "success"))
    ('SUCCESS', 'HTTP_REQUEST_SUCCESS', 'HTTP_REQUEST_FAILED')
    """
    if not 200 <= status < 300:
        return Result.HTTP_REQUEST_FAILED
    return Result.SUCCESS if content.strip() == word.encode() else Result.HTTP_REQUEST_SUCCESS


def retry_after(status: int, headers: Mapping[str, str], *, now: datetime) -> timedelta | None:
    """Return how much time a receiver asks for, in seconds or until an instant; None where it asks for none that can be read.

    >>> from datetime import UTC
    >>> retry_after(429, {"retry-after": "20"}, now=datetime(2026, 1, 1, tzinfo=UTC))
    datetime.timedelta(seconds=20)
    """
    wanted = next((value for name, value in headers.items() if name.lower() == "retry-after"), "").strip()
    if status not in WAITING_STATUSES or not wanted or len(wanted) > 64:
        return None
    if wanted.isdecimal():
        try:  # HTTP allows zeros in front
            return timedelta(seconds=min(parse_whole(wanted.lstrip("0") or "0", high=10**LENGTH_MAX), 86_400))
        except ValueError:
            return None
    try:
        until = parsedate_to_datetime(wanted)
        return max(timedelta(), min(until - now, timedelta(days=1)))
    except (ValueError, TypeError, OverflowError):  # no date, or one without a zone
        return None


async def _beginning(answer: aiohttp.ClientResponse) -> bytes:
    """Return an answer's body, as far as we care to read."""
    body = bytearray()
    async for chunk in answer.content.iter_chunked(ANSWER_BYTES_MAX):
        body += chunk
        if len(body) >= ANSWER_BYTES_MAX:
            break
    return bytes(body)
