"""Who may hold how many HTTP connections open, and which is closed to make room. Decides only; `http_protocol` acts."""

from __future__ import annotations

import resource
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Protocol

from outbox.settings import Network, Settings

HOLDER_BITS = 64
"""Of an IPv6 address, what a provider gives to a customer: the customer chooses the rest, so it tells nobody apart."""

REQUESTS_MAX = 500
"""Requests in work at once. Eight transactions run; who waits behind so many others has given up."""

FILES_PER_CONNECTION = 2
"""Half of the files that a process may open are for connections, the others for what waits in the queue and for the rest."""


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What clients may hold of a process, and for how long."""

    connections: int
    per_address: int
    requests: int = REQUESTS_MAX
    head_s: float
    body_s: float
    idle_s: float
    trusted_proxies: tuple[Network, ...] = ()


def limits_of(settings: Settings, *, requests: int = REQUESTS_MAX) -> ConnectionLimits:
    """Return the settings' limits, reduced to the files that the process may open.

    Its soft limit of open files is raised first, as far as it is allowed to and as the settings need.
    """
    files = _files(settings.http_connections_max * FILES_PER_CONNECTION)
    connections = min(settings.http_connections_max, max(2, files // FILES_PER_CONNECTION))
    return ConnectionLimits(
        connections=connections,
        per_address=min(settings.http_connections_per_address, connections // 2),
        requests=requests,
        head_s=settings.http_head_timeout_s,
        body_s=settings.http_body_timeout_s,
        idle_s=settings.http_idle_timeout_s,
        trusted_proxies=settings.trusted_proxies,
    )


def _files(wanted: int) -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
    return max(soft, raised)


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """Return whether an address is a trusted proxy's.

    >>> from ipaddress import ip_network
    >>> is_trusted("10.0.0.7", [ip_network("10.0.0.0/8")]), is_trusted("a socket", [ip_network("10.0.0.0/8")])
    (True, False)
    """
    ip = _ip(address)
    return ip is not None and any(ip.version == network.version and ip in network for network in trusted)


def client_address(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return where a request comes from: the peer, or the last address of X-Forwarded-For that is no trusted proxy's.

    Counted from the right, since each proxy appends the address that it sees. The client itself can write whatever is left of
    an untrusted address.

    >>> from ipaddress import ip_network
    >>> client_address("10.0.0.7", ["6.6.6.6, 203.0.113.9, 10.0.0.8"], [ip_network("10.0.0.0/8")])
    '203.0.113.9'
    >>> client_address("203.0.113.9", ["6.6.6.6"], [ip_network("10.0.0.0/8")])
    '203.0.113.9'
    """
    address = peer
    for said in reversed(",".join(forwarded).split(",")):
        ip = _ip(said.strip())
        if ip is None or not is_trusted(address, trusted):
            break
        address = str(ip)
    return address


def holder_of(address: str) -> str:
    """Return on whose account an address counts: its own, or its network's for IPv6.

    >>> holder_of("203.0.113.9"), holder_of("::ffff:203.0.113.9"), holder_of("2001:db8::1") == holder_of("2001:db8::2")
    ('203.0.113.9', '203.0.113.9', True)
    """
    ip = _ip(address)
    return str(IPv6Network((int(ip), HOLDER_BITS), strict=False)) if isinstance(ip, IPv6Address) else str(ip or address)


def _ip(address: str) -> IPv4Address | IPv6Address | None:
    try:
        ip = ip_address(address)
    except ValueError:
        return None
    return (ip.ipv4_mapped if isinstance(ip, IPv6Address) else None) or ip


class Closable(Protocol):
    """A connection, as far as it matters here."""

    def drop(self, reason: str) -> None:
        """The connection is closed at once, without an answer."""

    def expire(self, now: float) -> None:
        """The connection is closed if a deadline has passed."""


class Connections:
    """The connections of a process. One event loop.

    A connection waits while its client has yet to send something: a request, or the rest of one. A waiting connection is no
    load; the one that waits longest is closed where another needs its place. One whose request is in work is never closed.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.open: set[Closable] = set()
        self.is_swept = False
        """Whether deadlines are being looked at."""
        self._waiting: OrderedDict[Closable, int] = OrderedDict()
        """Those that wait, the longest first, each with its turn: a lower one waits longer."""
        self._turn = 0
        self._held: dict[str, set[Closable]] = {}
        self._holders: dict[Closable, str] = {}

    @property
    def in_work(self) -> int:
        """How many connections have a request in work."""
        return len(self.open) - len(self._waiting)

    def admit(self, connection: Closable) -> bool:
        """Return whether there is a place for a connection; it waits from then on. The longest-waiting makes room for it."""
        if len(self.open) >= self.limits.connections:
            if not self._waiting:
                return False
            self._drop(next(iter(self._waiting)), "room")
        self.open.add(connection)
        self.waits(connection)
        return True

    def count(self, connection: Closable, address: str) -> bool:
        """Return whether its address may have this connection too; it then counts. The address's longest-waiting makes room."""
        holder = holder_of(address)
        held = self._held.get(holder, ())
        if len(held) >= self.limits.per_address:
            waiting = [other for other in held if other in self._waiting]
            if not waiting:
                return False
            self._drop(min(waiting, key=self._waiting.__getitem__), "address")
        self._held.setdefault(holder, set()).add(connection)
        self._holders[connection] = holder
        return True

    def uncount(self, connection: Closable) -> None:
        """The connection counts for no address any more."""
        if (holder := self._holders.pop(connection, None)) is not None:
            held = self._held[holder]
            held.discard(connection)
            if not held:
                del self._held[holder]

    def waits(self, connection: Closable) -> None:
        """The connection waits for its client from now on."""
        if connection in self.open:
            self._turn += 1
            self._waiting[connection] = self._turn
            self._waiting.move_to_end(connection)

    def works(self, connection: Closable) -> None:
        """The connection's request is in work."""
        self._waiting.pop(connection, None)

    def remove(self, connection: Closable) -> None:
        """The connection is closed. May be repeated."""
        self.uncount(connection)
        self._waiting.pop(connection, None)
        self.open.discard(connection)

    def _drop(self, connection: Closable, reason: str) -> None:
        self.remove(connection)
        connection.drop(reason)
