"""Names of receivers that are slow to resolve hold up no other receiver."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from consumers.notification.notifier import ssrf as guard
from consumers.notification.notifier.ssrf import Resolver


@pytest.mark.parametrize(
    ("silent", "known"), [(100, False), (300, True)], ids=["a new name beside 100", "a known name beside 300"]
)
def test_names_whose_server_is_silent_hold_up_no_other(
    monkeypatch: pytest.MonkeyPatch, silent: int, known: bool
) -> None:
    ended = threading.Event()

    def looked_up(host: str, *_: object) -> list[Any]:
        if host.startswith("silent") and ended.wait(30):
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 443))]

    async def main() -> bool:
        resolver = Resolver()
        if known:
            await resolver.resolve("prompt.example")
        hanging = [asyncio.create_task(resolver.resolve(f"silent-{number}.example")) for number in range(silent)]
        try:
            await asyncio.sleep(0.1)
            [address] = await asyncio.wait_for(resolver.resolve("prompt.example"), 3)
        except TimeoutError:
            return False
        finally:
            ended.set()
            await asyncio.gather(*hanging, return_exceptions=True)
            await resolver.close()
        assert all(isinstance(lookup.exception(), OSError) for lookup in hanging)
        return address["host"] == "93.184.216.34"

    monkeypatch.setattr(guard.socket, "getaddrinfo", looked_up)
    assert asyncio.run(main()), "it waits behind names that nobody resolves"


def test_a_look_up_that_nobody_waits_for_any_more_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LOOKUPS_MAX", 3)
    monkeypatch.setattr(guard, "LOOKUPS_KEPT", 1)
    ended = threading.Event()

    def looked_up(host: str, *_: object) -> list[Any]:
        if host == "silent.example":
            ended.wait(30)
        return []

    async def main() -> None:
        resolver = Resolver()
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(resolver.resolve("silent.example"), 0.1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(resolver.resolve("new.example"), 0.2)
        ended.set()
        assert await asyncio.wait_for(resolver.resolve("new.example"), 10) == []
        await resolver.close()

    monkeypatch.setattr(guard.socket, "getaddrinfo", looked_up)
    asyncio.run(main())
