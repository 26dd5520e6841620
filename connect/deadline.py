"""HTTP requests whose time-out is for the whole response.

In requests a read time-out is for each piece that arrives, and Python's own client reads past any number of `100 Continue`
responses. A server that keeps sending such, or a header byte by byte, would be waited for without limit.
"""

from __future__ import annotations

import io
import socket
import time
from http.client import HTTPResponse
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class _Received(io.RawIOBase):
    """What a socket receives until a deadline. Raises TimeoutError after it."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket) -> None:
        self._raw = raw
        self._connection = connection
        self._limit_s = connection.gettimeout()
        self._deadline = None if self._limit_s is None else time.monotonic() + self._limit_s

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Return how many bytes were read into the buffer."""
        if self._deadline is None:
            return self._raw.readinto(buffer)
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the response did not come whole in time")
        self._connection.settimeout(left_s)
        try:
            return self._raw.readinto(buffer)
        finally:
            self._connection.settimeout(self._limit_s)

    def close(self) -> None:
        """The socket is let go of."""
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *given: Any, **named: Any) -> None:
        super().__init__(sock, *given, **named)
        self.fp = io.BufferedReader(_Received(self.fp.detach(), sock))


class _Connection(HTTPConnection):
    response_class = _Response


class _SecureConnection(HTTPSConnection):
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *given: Any, **named: Any) -> None:
        """Connections are of the classes above."""
        super().init_poolmanager(*given, **named)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}


def session() -> requests.Session:
    """Return a session that uses no proxy, and whose read time-out is for a response as a whole, its body included."""
    made = requests.Session()
    made.trust_env = False
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Adapter())
    return made
