"""The protocol of every HTTP server of ours: uvicorn's, with deadlines and with bounds on what a client may send and hold.

A connection receives a head and a body under a deadline; once a request is whole it is in work and has none. What is refused
here is answered like every other error, and the connection is then closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import Enum
from functools import partial
from math import inf
from typing import Any, cast

import httptools
import msgspec
import uvicorn
from prometheus_client import Counter
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from outbox.http.limits import FILES_PER_CONNECTION, Connections, client_address, is_trusted

HEAD_BYTES_MAX = 16 * 1024
"""Of a request's line and headers together."""
HEADERS_MAX = 100
MESSAGE_BYTES_MAX = 512 * 1024
"""Of a whole request as it is sent: it bounds what is read and thrown away after an early answer."""
PIPELINED_MAX = 8
"""Requests that wait behind another of their connection; it is closed behind them."""
PIECE_BYTES = 16 * 1024
"""So much is parsed before the bounds are looked at again."""

SWEEP_S = 0.1
"""How often deadlines are looked at: for 1,000 connections that takes some 0.1 ms, less than a timer for each request would."""
LINGER_S = 2.0
"""How long a refused client may go on sending. On a connection that is closed too early, the answer is lost."""

CLOSED = Counter(
    "http_connections_closed",
    "Connections closed on their client, by reason: head, body or answer took too long; too_large; malformed; room, address "
    "or overload: too many connections, too many of one address, too many requests in work.",
    ["reason"],
)

Refusal = tuple[int, str, str, str]
"""Status, error, message, and the reason that is counted."""

MALFORMED: Refusal = (400, "bad_request", "this is no HTTP/1.1 request", "malformed")
HEAD_TOO_SLOW: Refusal = (408, "too_slow", "the request's headers did not come in time; send it again", "head")
BODY_TOO_SLOW: Refusal = (408, "too_slow", "the request's body did not come in time; send it again", "body")
BODY_TOO_LARGE: Refusal = (413, "body_too_large", f"a request may have {MESSAGE_BYTES_MAX} bytes at most", "too_large")
TOO_MANY: Refusal = (429, "too_many_connections", "your address has too many connections; close some", "address")
HEAD_TOO_LARGE: Refusal = (
    431, "head_too_large", f"a request may have {HEADERS_MAX} headers and {HEAD_BYTES_MAX} bytes of them at most", "too_large",
)  # fmt: skip
OVERLOADED: Refusal = (503, "overloaded", "too many requests are in work; send it again in a second", "overload")

App = Callable[..., Awaitable[None]]

log = logging.getLogger(__name__)


class Receiving(Enum):
    """What a connection is in the middle of."""

    NOTHING = 0
    HEAD = 1
    BODY = 2


class _Refused(Exception):
    """The parser stops where it is."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection. `connections` are all of the process, of whichever server."""

    def __init__(self, *, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all = connections
        self._limits = connections.limits
        self._peer = ""
        self._is_proxy = False
        self.authenticated = False
        """Set, from any thread, once the client has proved who it is: the connection then counts for no address."""
        self._receiving = Receiving.NOTHING
        self._timed = Receiving.NOTHING
        """For which part of the request the deadline is."""
        self._is_in_work = False
        self._is_deaf = False
        """Whether what comes is thrown away."""
        self._deadline = inf
        self._write_deadline = inf
        self._piece_bytes = 0
        self._message_bytes = 0
        """What has come of this request, from the piece on in which it began."""
        self._refusal = MALFORMED

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection has a place and the time for a head, or is closed."""
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else ""
        self._is_proxy = is_trusted(self._peer, self._limits.trusted_proxies)
        refusal = None
        if not self._all.admit(self):
            refusal = OVERLOADED
        elif not self._is_proxy and not self._all.count(self, self._peer):
            refusal = TOO_MANY
        if refusal is not None:
            CLOSED.labels(refusal[-1]).inc()
            self._all.remove(self)
            self._is_deaf = True
            transport.write(self._answer(refusal))
            transport.close()
            return
        self._deadline = self._in(self._limits.head_s)
        if not self._all.is_swept:
            self._all.is_swept = True
            self.loop.call_later(SWEEP_S, _sweep, self._all, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection's place is free."""
        self._all.remove(self)
        super().connection_lost(exc)

    def drop(self, reason: str) -> None:
        """The connection is closed at once, without an answer."""
        CLOSED.labels(reason).inc()
        self._is_deaf = True
        self._give_up_request()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """What came is parsed, piece by piece: no more than the bounds allow is ever held."""
        if len(data) <= PIECE_BYTES:
            self._take(data)
            return
        for begin in range(0, len(data), PIECE_BYTES):
            self._take(data[begin : begin + PIECE_BYTES])

    def _take(self, piece: bytes) -> None:
        if self._is_deaf or self.transport.is_closing():
            return
        self._piece_bytes = len(piece)
        self._message_bytes += len(piece)
        if (refusal := self._parse(piece)) is not None:
            self._refuse(refusal)
        elif self._receiving is not self._timed:
            self._begin_to_wait()

    def _begin_to_wait(self) -> None:
        """The rest of a head or body has a deadline. Requests that come in one piece, as most do, need none."""
        self._timed = self._receiving
        if self._receiving is not Receiving.NOTHING:
            self._deadline = self._in(self._limits.head_s if self._receiving is Receiving.HEAD else self._limits.body_s)
            if not self._is_in_work:
                self._all.waits(self)

    def _parse(self, piece: bytes) -> Refusal | None:
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as offer:  # is not taken up: what follows is the next request
            rest = piece[offer.args[0] :]
            return self._parse(rest) if rest else None
        except httptools.HttpParserError:
            return self._refusal
        if self._receiving is Receiving.NOTHING:
            return None
        if len(self.headers) > HEADERS_MAX:  # trailers are among them
            return HEAD_TOO_LARGE
        if self._receiving is Receiving.HEAD:
            return HEAD_TOO_LARGE if self._message_bytes > HEAD_BYTES_MAX + PIECE_BYTES else None
        return BODY_TOO_LARGE if self._message_bytes > MESSAGE_BYTES_MAX else None

    # What the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope["state"]["connection"] = self
        self._receiving, self._timed = Receiving.HEAD, Receiving.NOTHING
        self._message_bytes = self._piece_bytes

    def on_headers_complete(self) -> None:
        """The request goes to the application, or is refused."""
        if len(self.headers) > HEADERS_MAX or (
            self._message_bytes > HEAD_BYTES_MAX and self._head_bytes() > HEAD_BYTES_MAX
        ):
            self._refusal = HEAD_TOO_LARGE
            raise _Refused
        if len(self.pipeline) >= PIPELINED_MAX:
            self._refusal = OVERLOADED
            raise _Refused
        refusal = self._refusal_of_request()
        self.app = self.config.loaded_app if refusal is None else cast(Any, partial(_refusing, refusal))
        super().on_headers_complete()
        self._receiving = Receiving.BODY

    def on_message_complete(self) -> None:
        """The request is whole: it is in work, unless it was answered before."""
        super().on_message_complete()
        self._receiving = Receiving.NOTHING
        if self.cycle.response_complete:
            self._deadline = self._in(self._limits.idle_s)
            return
        self._deadline = inf
        if not self._is_in_work:
            self._is_in_work = True
            self._all.works(self)

    def on_response_complete(self) -> None:
        """The next request of the connection is begun; without one, it waits."""
        self.server_state.total_requests += 1
        if self._is_proxy or self.authenticated:
            self._all.uncount(self)
        if self.pipeline and not self.transport.is_closing():
            self.flow.resume_reading()
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._is_in_work = False
        self._all.waits(self)
        if self.transport.is_closing():
            self._write_deadline = self._in(self._limits.body_s)
        else:
            self.flow.resume_reading()
            if self._receiving is Receiving.NOTHING:
                self._deadline = self._in(self._limits.idle_s)

    # What the transport and the clock call

    def pause_writing(self) -> None:
        """The client does not take in its answer: it has a deadline."""
        super().pause_writing()
        self._write_deadline = self._in(self._limits.body_s)

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        self._write_deadline = inf

    def expire(self, now: float) -> None:
        """The connection is closed if a deadline has passed."""
        if now >= self._write_deadline:
            self.drop("answer")
        elif self.transport.is_closing():
            self._write_deadline = min(self._write_deadline, now + self._limits.body_s)
        elif now < self._deadline:
            return
        elif self._is_deaf:
            self.transport.abort()
        elif self.flow.read_paused:  # we do not read: that is not the client's fault
            self._deadline = now + self._limits.head_s
        elif self._receiving is Receiving.NOTHING:
            self._deadline, self._write_deadline = inf, now + LINGER_S
            self.transport.close()
        else:
            self._refuse(HEAD_TOO_SLOW if self._receiving is Receiving.HEAD else BODY_TOO_SLOW)

    # What is refused

    def _refusal_of_request(self) -> Refusal | None:
        if self._all.in_work >= self._limits.requests:
            return OVERLOADED
        if not self._is_proxy:
            return None
        said = [value.decode("latin-1") for name, value in self.headers if name == b"x-forwarded-for"]
        address = client_address(self._peer, said, self._limits.trusted_proxies)
        self.scope["client"] = (address, 0)
        self.authenticated = False
        self._all.uncount(self)
        if is_trusted(address, self._limits.trusted_proxies) or self._all.count(self, address):
            return None
        return TOO_MANY

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse(self, refusal: Refusal) -> None:
        """Nothing more is read. The answer goes out where none is on its way, behind those of the requests before."""
        CLOSED.labels(refusal[-1]).inc()
        self._is_deaf = True
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering and self._receiving is not Receiving.BODY:
            self.cycle.keep_alive = False  # its end closes the connection
            self._deadline = inf
            return
        if is_answering and (self.pipeline or self.cycle.response_started):
            self.transport.abort()
            return
        if is_answering or self._receiving is not Receiving.BODY:
            self.transport.write(self._answer(refusal))
        self._give_up_request()
        self.flow.resume_reading()
        self.transport.write_eof()
        self._deadline = self._in(LINGER_S)

    def _give_up_request(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _answer(self, refusal: Refusal) -> bytes:
        status, headers, body = _written(refusal)
        lines = [*self.server_state.default_headers, *headers]
        return STATUS_LINE[status] + b"".join(b"%b: %b\r\n" % line for line in lines) + b"\r\n" + body

    def _in(self, seconds: float) -> float:
        return self.loop.time() + seconds


def server_config(app: Any, connections: Connections, **given: Any) -> uvicorn.Config:
    """Return the configuration of a server whose connections are bounded, together with those of other servers."""
    return uvicorn.Config(
        app,
        http=cast(Any, partial(BoundedProtocol, connections=connections)),
        ws="none",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=max(1, connections.limits.connections // FILES_PER_CONNECTION),
        **given,
    )


def _written(refusal: Refusal) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    status, error, message, _ = refusal
    body = msgspec.json.encode({"error": error, "message": message})
    length = str(len(body)).encode()
    return (
        status,
        [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")],
        body,
    )


async def _refusing(refusal: Refusal, _scope: Any, _receive: Any, send: Any) -> None:
    """An application that refuses every request."""
    CLOSED.labels(refusal[-1]).inc()
    status, headers, body = _written(refusal)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _sweep(connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
    """Every connection whose deadline has passed is closed; looked at again for as long as there are connections."""
    now = loop.time()
    for connection in tuple(connections.open):
        try:
            connection.expire(now)
        except Exception:  # whatever is wrong with one connection, the others have their deadlines
            log.exception("a connection could not be closed in time")
            connections.remove(connection)
    connections.is_swept = bool(connections.open)
    if connections.is_swept:
        loop.call_later(SWEEP_S, _sweep, connections, loop)
