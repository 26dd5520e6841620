"""Where a notification may go: an address is judged after resolution, and again when it is connected to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

PORTS = (443, 8443)
"""Where receivers on the public internet listen."""

REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "::/96", "::ffff:0:0:0/96", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "64:ff9b:1::/48",
        "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
    )
)  # fmt: skip
"""Not of the public internet, whatever the library's own tables say. Source: IANA special-purpose registries, RFC 6890."""

NAT64 = ipaddress.ip_network("64:ff9b::/96")

LOOKUPS_MAX = 256
"""Names that are being resolved at a time. One whose name server is silent takes its thread for half a minute."""
LOOKUPS_KEPT = 64
"""Of those, for names that were resolved promptly the last time: the others cannot take them."""
PROMPT_S = 1.0
NAMES_MAX = 10_000
"""Names that are known to be resolved promptly."""


class ForbiddenAddress(OSError):
    """The receiver's address is private, or no address a receiver may have."""


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet; forms that hide an IPv4 one are unwrapped.

    >>> is_public("93.184.216.34"), is_public("127.0.0.1"), is_public("::ffff:10.0.0.1"), is_public("169.254.169.254")
    (True, False, False, False)
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in REFUSED)


@lru_cache(maxsize=4_096)
def check_url(url: str, *, allow_private: bool) -> URL:
    """Return the receiver's URL; raises ForbiddenAddress for what needs no look-up to be refused."""
    try:
        parsed = URL(url)
        port = parsed.port
    except ValueError as error:
        raise ForbiddenAddress(f"it is not a URL: {error}") from error
    if parsed.scheme != "https" and not (allow_private and parsed.scheme == "http"):
        raise ForbiddenAddress("it must begin with https://")
    if not parsed.host or parsed.user or parsed.password:
        raise ForbiddenAddress("it must name a host, and no user or password")
    if not allow_private and port not in PORTS:
        raise ForbiddenAddress(f"port {port} is not allowed: use one of {', '.join(map(str, PORTS))}")
    try:
        literal = ipaddress.ip_address(parsed.host)
    except ValueError:
        return parsed
    if not allow_private and not is_public(str(literal)):
        raise ForbiddenAddress(f"{literal} is not public")
    return parsed


class Resolver(AbstractResolver):
    """The system's resolver, in threads of its own: names that are slow to resolve hold up no database turn, and no other name."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS_MAX, thread_name_prefix="lookup")
        self._others = asyncio.Semaphore(LOOKUPS_MAX - LOOKUPS_KEPT)
        self._prompt: dict[str, None] = {}
        """Names that were resolved promptly the last time, the longest known first."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the host's addresses. Raises OSError."""
        is_prompt, loop = host in self._prompt, asyncio.get_running_loop()
        if not is_prompt:
            await self._others.acquire()

        def ask() -> list[Any]:
            began = time.monotonic()
            try:
                return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
            finally:  # whoever waited for it may have given up long ago
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._note, host, is_prompt, time.monotonic() - began)

        # Shielded: cancelled in the queue, it would never give its place back.
        places = await asyncio.shield(loop.run_in_executor(self._threads, ask))
        return [
            ResolveResult(
                hostname=host, host=str(place[0]), port=int(place[1]), family=family, proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for family, _, protocol, _, place in places
        ]  # fmt: skip

    def _note(self, host: str, was_prompt: bool, took_s: float) -> None:
        """The look-up has ended: its place is free, and it is known how long it took."""
        if not was_prompt:
            self._others.release()
        self._prompt.pop(host, None)
        if took_s <= PROMPT_S:
            self._prompt[host] = None
            if len(self._prompt) > NAMES_MAX:
                del self._prompt[next(iter(self._prompt))]

    async def close(self) -> None:
        """No look-up is waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class GuardedResolver(AbstractResolver):
    """Resolves names, and hands over public addresses only."""

    def __init__(self, *, allow_private: bool, resolver: Any = None) -> None:
        self._allow_private = allow_private
        self._resolver: Any = resolver or Resolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the host's addresses; raises ForbiddenAddress if one of them is not public."""
        addresses: list[ResolveResult] = await self._resolver.resolve(host, port, family)
        if not self._allow_private and not all(is_public(address["host"]) for address in addresses):
            raise ForbiddenAddress(f"{host} resolves to an address that is not public")
        return addresses

    async def close(self) -> None:
        """Nothing is held."""
        await self._resolver.close()


def open_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an address that is about to be connected to; raises ForbiddenAddress where it is not public.

    The last look: whatever a name has resolved to by now, and where no name was looked up.
    """
    family, kind, protocol, _, place = address
    if not is_public(str(place[0])):
        raise ForbiddenAddress(f"{place[0]} is not public")
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made
