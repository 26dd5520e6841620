"""Where a notification must never go: hostile addresses and names, and none of them is reached."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from itertools import cycle
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
import uvloop

from consumers.notification.notifier import ssrf as guard
from consumers.notification.notifier.attempt import attempt, new_session
from consumers.notification.notifier.claims import Claimed
from consumers.notification.notifier.lanes import Result
from consumers.notification.notifier.ssrf import PORTS
from outbox.clock import utc_now
from tests.notifier import SECRET

LITERALS = [
    # loopback, this host, private, link-local, shared, metadata services
    "127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254",
    "192.168.0.1", "192.168.255.254", "169.254.169.254", "169.254.170.2", "169.254.0.1", "100.64.0.1", "100.100.100.200", "100.127.255.254",
    # for documentation, benchmarks, protocols, of the future, to many
    "192.0.0.1", "192.0.0.192", "192.0.2.1", "198.51.100.7", "203.0.113.9", "198.18.0.1", "198.19.255.254", "192.88.99.1", "240.0.0.1",
    "255.255.255.255", "224.0.0.1", "239.255.255.250",
    # IPv6: own, link, unique local, site local, documentation, discard, segment routing, to many
    "[::1]", "[::]", "[fe80::1]", "[fe80::a9fe:a9fe]", "[fc00::1]", "[fd00:ec2::254]", "[fec0::1]", "[2001:db8::1]", "[3fff::1]", "[100::1]",
    "[5f00::1]", "[ff02::1]", "[ff0e::1]",
    # IPv6 that hides IPv4: mapped, compatible, translated, NAT64, 6to4, Teredo
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:a9fe:a9fe]", "[0:0:0:0:0:ffff:10.0.0.1]", "[::127.0.0.1]", "[::7f00:1]",
    "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]", "[2002:c0a8:101::1]", "[2001:0:7f00:1::1]", "[2001:0:4136:e378:8000:63bf:80ff:fffe]", "[2001:10::1]",
    # IPv4 in the forms that a resolver reads: decimal, octal, hexadecimal, short
    "2130706433", "2852039166", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "0", "0x0", "10.1", "192.168.1",
    # names of this machine
    "localhost", "localhost.", "LOCALHOST", "ip6-localhost", "\uff11\uff12\uff17.0.0.1", "\u2460\u2461\u2466.0.0.1",
]  # fmt: skip

URLS = [
    "http://good.example/", "ftp://good.example/", "file:///etc/passwd", "gopher://good.example/", "//good.example/", "good.example", "",
    "https:///x", "https://", "https://user@good.example/", "https://user:word@good.example/", "https://good.example@127.0.0.1/",
    "https://good.example:22/", "https://good.example:6379/", "https://good.example:80/", "https://good.example:99999/", "https://[::1/",
    "https://good.example:443:80/",
]  # fmt: skip

NAMES: dict[str, list[list[str]]] = {
    "private.example": [["10.0.0.1"]],
    "metadata.example": [["169.254.169.254"]],
    "one-of-two.example": [["93.184.216.34", "127.0.0.1"]],
    "mapped.example": [["::ffff:127.0.0.1"]],
    "scoped.example": [["fe80::1%lo"]],
    "nat64.example": [["64:ff9b::7f00:1"]],
    "rebinding.example": [["93.184.216.34"], ["127.0.0.1"]],
}
"""What a name resolves to, the first time, the second, and so on."""


class Resolver:
    """A name server of the hostile: answers differ from one question to the next."""

    def __init__(self) -> None:
        self._answers = {name: cycle(answers) for name, answers in NAMES.items()}

    async def resolve(self, host: str, port: int, _family: Any) -> list[dict[str, Any]]:
        addresses = next(self._answers[host])
        return [
            {"hostname": host, "host": address, "port": port, "family": socket.AF_INET6 if ":" in address else socket.AF_INET, "proto": 0, "flags": 0}
            for address in addresses
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing is held."""


def record(url: str) -> Claimed:
    now = utc_now()
    return Claimed(
        id=uuid4(), queue="q", merchant_no="M", body="{}", rule='{"1":0}', attempt=1, rule_begin=0, planned_at=now, postponed=False,
        leased_until=now + timedelta(seconds=30), url=url, secret=SECRET, old_secret=None,
    )  # fmt: skip


async def unguarded(self: Any, host: str, port: int = 0, family: Any = None) -> list[dict[str, Any]]:
    return await self._resolver.resolve(host, port, family)  # type: ignore[no-any-return]


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address that a socket of this process was to be connected to; none is, whatever it is."""
    addresses: list[Any] = []

    async def noted(_: Any, sock: Any, address: Any) -> None:
        sock.close()
        addresses.append(address[0])
        raise OSError(1, "not here")

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", noted)
    return addresses


def send(*urls: str, resolver: Any = None) -> list[tuple[Result, str]]:
    async def main() -> list[tuple[Result, str]]:
        async with new_session(allow_private=False, resolver=resolver) as session:
            made = [await attempt(session, record(url), "success", allow_private=False) for url in urls]
            return [(outcome.result, outcome.error) for outcome in made]

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(main())


def test_the_lists_are_as_long_as_was_promised() -> None:
    assert len({*LITERALS, *URLS, *NAMES}) >= 60


@pytest.mark.parametrize("port", PORTS)
def test_no_hostile_address_is_reached(reached: list[Any], port: int) -> None:
    answers = send(*(f"https://{blocked}:{port}/hook" for blocked in LITERALS))
    for literal, (result, error) in zip(LITERALS, answers, strict=True):
        assert result is Result.HTTP_REQUEST_FAILED, literal
        assert "ForbiddenAddress" in error or "not public" in error or "InvalidUrl" in error or "DNS" in error, (
            f"{literal}: {error}"
        )
    assert reached == []


def test_no_hostile_url_is_followed(reached: list[Any]) -> None:
    for url, (result, error) in zip(URLS, send(*URLS, resolver=Resolver()), strict=True):
        assert (result, error.partition(":")[0]) == (Result.HTTP_REQUEST_FAILED, "ForbiddenAddress"), url
    assert reached == []


def test_no_name_that_resolves_to_a_hostile_address_is_reached(reached: list[Any]) -> None:
    hostile = [name for name in NAMES if name != "rebinding.example"]
    for name, (result, error) in zip(
        hostile, send(*(f"https://{host}/" for host in hostile), resolver=Resolver()), strict=True
    ):
        assert result is Result.HTTP_REQUEST_FAILED
        assert "not public" in error, f"{name}: {error}"
    assert reached == []


def test_a_name_that_is_bound_again_after_the_look_up_is_not_reached(reached: list[Any]) -> None:
    """Each attempt is a session's first: nothing is remembered of the answer that was harmless."""
    resolver = Resolver()
    errors = [send("https://rebinding.example/", resolver=resolver)[0][1] for _ in range(4)]
    assert set(reached) == {"93.184.216.34"}
    assert "not public" in errors[1]
    assert "not public" in errors[3]


def test_an_answer_that_got_past_the_resolver_is_refused_as_it_is_connected_to(
    reached: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "consumers.notification.notifier.ssrf.GuardedResolver.resolve",
        unguarded,
    )
    for name in ("private.example", "metadata.example", "mapped.example", "nat64.example"):
        [(_, error)] = send(f"https://{name}/", resolver=Resolver())
        assert "not public" in error, error
    assert reached == []


def test_names_that_are_slow_to_resolve_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Event()

    def look_up(host: str, *_: object) -> list[Any]:
        if host.startswith("slow"):
            answers.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 443))]

    async def among_slow_ones() -> list[Any]:
        resolver = guard.Resolver()
        slow = [asyncio.create_task(resolver.resolve(f"slow{number}.example")) for number in range(30)]
        try:
            return await asyncio.wait_for(resolver.resolve("good.example", 443), 30)
        finally:
            answers.set()
            await asyncio.gather(*slow)
            await resolver.close()

    monkeypatch.setattr(guard.socket, "getaddrinfo", look_up)
    [address] = uvloop.run(among_slow_ones())
    assert (address["host"], address["port"]) == ("93.184.216.34", 443)


def test_a_public_address_is_connected_to_and_nothing_else_was_wrong(reached: list[Any]) -> None:
    [(_, error)] = send("https://93.184.216.34/", resolver=Resolver())
    assert reached == ["93.184.216.34"]
    assert "not here" in error
