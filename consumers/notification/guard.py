"""Where a notification may go: an address is judged after resolution, at connect time."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


class ForbiddenAddress(OSError):
    """The receiver's address is private, or no address a receiver may have."""


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet; forms that hide an IPv4 one are unwrapped.

    >>> is_public("93.184.216.34"), is_public("127.0.0.1"), is_public("::ffff:10.0.0.1"), is_public("169.254.169.254")
    (True, False, False, False)
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if any(ip in network for network in NAT64):
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)))
    return ip.is_global and not ip.is_multicast


def check_url(url: str, *, allow_private: bool) -> URL:
    """Return the receiver's URL; raises ForbiddenAddress for what needs no look-up to be refused."""
    parsed = URL(url)
    if parsed.scheme != "https" and not (allow_private and parsed.scheme == "http"):
        raise ForbiddenAddress("https is needed")
    if not parsed.host or parsed.user or parsed.password:
        raise ForbiddenAddress("a host and no user is needed")
    try:
        literal = ipaddress.ip_address(parsed.host)
    except ValueError:
        return parsed
    if not allow_private and not is_public(str(literal)):
        raise ForbiddenAddress(f"{literal} is not public")
    return parsed


class GuardedResolver(AbstractResolver):
    """Resolves names, and hands over public addresses only: what is connected to is what was judged."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._resolver: Any = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the host's addresses; raises ForbiddenAddress if one of them is not public."""
        found: list[ResolveResult] = await self._resolver.resolve(host, port, family)
        if not self._allow_private and not all(is_public(one["host"]) for one in found):
            raise ForbiddenAddress(f"{host} resolves to an address that is not public")
        return found

    async def close(self) -> None:
        """Nothing is held."""
        await self._resolver.close()
