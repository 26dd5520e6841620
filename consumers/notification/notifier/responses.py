"""How much of a receiver's response the notifier takes: interim responses, headers and bytes are bounded while they arrive.

aiohttp reads past 1xx responses without a bound, and its loop never waits while more of them are buffered, so that its own
time-out does not fire. Here they are counted and dropped in the protocol, before anything is buffered.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import set_exception

INTERIM_MAX = 20
"""1xx responses before the response itself."""
HEADERS_MAX = 1_000
HEADER_BYTES_MAX = 64 * 1024
"""Of one header field, and of the status line."""
HEAD_BYTES_MAX = 256 * 1024
"""Status line and headers, those of interim responses included."""
WIRE_BYTES_MAX = 1024 * 1024
"""Everything that one attempt receives: a body's framing can be far larger than the body."""
SLICE_BYTES = 8 * 1024
"""The parser gets so much of a head at a time: what is over a bound is not parsed first."""


class ResponseTooLarge(aiohttp.ClientError):
    """The receiver sent more than a response may have."""


class BoundedResponse(ResponseHandler):
    """A connection that is cut off once a response exceeds its bounds, or more arrives than was requested."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim = 0
        self._received = 0
        self._has_head = False
        self._cut_off = False

    def set_response_params(self, **given: Any) -> None:
        """A new response is expected."""
        self._interim = self._received = 0
        self._has_head = False
        super().set_response_params(**given)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; a head slice by slice, a body at once."""
        if not data or self._parser is None:
            super().data_received(data)
            return
        if self._has_head and (self._payload is None or self._payload.is_eof()):
            self._refuse("more arrived after the response had ended")
        begin = 0
        while begin < len(data) and not self._cut_off:
            end = len(data) if self._has_head else begin + SLICE_BYTES
            part = data[begin:end]
            begin += len(part)
            self._received += len(part)
            super().data_received(part)
            if not self._has_head and self._received > HEAD_BYTES_MAX:
                self._refuse(f"the headers exceed {HEAD_BYTES_MAX:,} bytes")
            elif self._received > WIRE_BYTES_MAX:
                self._refuse(f"the response exceeds {WIRE_BYTES_MAX:,} bytes")

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Pass a response on; an interim one is counted, and nobody waits for it."""
        status = data[0].code
        if 100 <= status < 200 and status != 101:
            self._interim += 1
            if self._interim > INTERIM_MAX:
                self._refuse(f"more than {INTERIM_MAX} interim responses (status {status})")
        elif self._has_head:
            self._refuse("a second response arrived for one request")
        else:
            self._has_head = True
            super().feed_data(data, size)

    def _refuse(self, why: str) -> None:
        """Whoever waits has the error, the connection is gone at once, and nothing received is kept."""
        if self._cut_off:
            return
        self._cut_off = True
        error, payload = ResponseTooLarge(why), self._payload
        self._buffer.clear()
        self.set_exception(error)
        if payload is not None and not payload.is_eof():
            set_exception(payload, error)
        if self.transport is not None:
            self.transport.abort()


class BoundedConnector(aiohttp.TCPConnector):
    """A connector all of whose connections bound what they receive."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._factory = partial(BoundedResponse, loop=self._loop)  # type: ignore[assignment]
