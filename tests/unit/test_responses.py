"""What the notifier takes of a response, over real sockets: no receiver holds it, or fills it, beyond the documented bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import aiohttp
import pytest
import uvloop

from consumers.notification.notifier import attempt as attempting
from consumers.notification.notifier.attempt import attempt, new_session
from consumers.notification.notifier.claims import Claimed, Ended
from consumers.notification.notifier.lanes import Result
from outbox.clock import utc_now
from tests.hostile import EARLY, GOOD, SCRIPTS, Hostile, at_once, hostile, ok
from tests.waiting import eventually

TOTAL_S = 2.0
SENT_MAX = 16_000_000
"""What may be sent to a client that reads no more: 1 MiB, and what sockets buffer."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempting, "TIMEOUT", aiohttp.ClientTimeout(total=TOTAL_S, connect=2, ceil_threshold=60))


@pytest.fixture
def receivers() -> Iterator[Hostile]:
    with hostile() as made:
        yield made


def record(url: str) -> Claimed:
    now = utc_now()
    return Claimed(
        id=uuid4(), queue="q", merchant_no="M", body="{}", rule='{"1":0}', attempt=1, rule_begin=0, planned_at=now, postponed=False,
        leased_until=now + timedelta(seconds=30), url=url, secret="whsec_" + "YWJj" * 8, old_secret=None,
    )  # fmt: skip


def send(*urls: str) -> list[Ended]:
    """Return what came of sending to these, all at a time."""

    async def main() -> list[Ended]:
        async with new_session(allow_private=True) as session:
            return await asyncio.gather(*(attempt(session, record(url), "success", allow_private=True) for url in urls))

    return uvloop.run(main())


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ("good", "second-responses")])
def test_no_response_is_taken_beyond_its_bounds_or_its_time(receivers: Hostile, name: str) -> None:
    begun = time.monotonic()
    [ended] = send(f"{receivers.url}/{name}")
    took_s = time.monotonic() - begun
    assert (ended.result, ended.http_status) == (Result.HTTP_REQUEST_FAILED, None) or name in (
        "chunk-extensions",
        "trailers",
    )
    assert ended.result is not Result.SUCCESS
    assert took_s < TOTAL_S + 1.5, f"{took_s:.1f} s"
    assert receivers.sent[name] < SENT_MAX, f"{receivers.sent[name]:,} bytes were taken"
    eventually(lambda: receivers.ended[name] == 1, what="the connection is closed")


def test_receivers_that_flood_delay_nobody(receivers: Hostile) -> None:
    """Four that never stop sending 1xx, and one that is polite."""
    bad = [f"{receivers.url}/{name}" for name in ("continue", "early", "continue", "early")]
    good = [f"{receivers.url}/good"] * 20
    *_, last = (outcome for outcome in send(*bad, *good))
    assert last.result is Result.SUCCESS
    took_s = max((outcome.ended_at - outcome.started_at).total_seconds() for outcome in send(*bad, *good)[4:])
    assert took_s < 1.0, f"{took_s:.1f} s"


def test_a_connection_that_waits_for_its_next_request_takes_nothing(receivers: Hostile) -> None:
    """It was answered, is kept, and then the receiver goes on sending."""

    async def main() -> Ended:
        async with new_session(allow_private=True) as session:
            ended = await attempt(session, record(f"{receivers.url}/second-responses"), "success", allow_private=True)
            await asyncio.to_thread(
                eventually, lambda: receivers.ended["second-responses"], what="the connection is closed"
            )
            return ended

    uvloop.run(main())
    assert receivers.sent["second-responses"] < SENT_MAX, f"{receivers.sent['second-responses']:,} bytes were taken"


TAKEN = {
    "9,000 bytes in a header": [ok(b"x-long: " + b"y" * 9_000)],
    "64 KiB in a header with its name": [ok(b"x-long: " + b"y" * (64 * 1024 - 10))],
    "150 headers": [ok(*(b"x-%d: y" % number for number in range(150)))],
    "999 headers": [ok(*(b"x-%d: y" % number for number in range(999)))],
    "250,000 bytes of headers": [ok(*(b"x-%d: %s" % (number, b"y" * 10_000) for number in range(25)))],
    "20 interim responses": [*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 10, *[EARLY] * 10, GOOD],
}


@pytest.mark.parametrize("what", TAKEN)
def test_a_response_within_the_documented_bounds_is_taken(receivers: Hostile, what: str) -> None:
    receivers.scripts["it"] = lambda: at_once(iter(TAKEN[what]))
    [ended] = send(f"{receivers.url}/it")
    assert (ended.result, ended.error) == (Result.SUCCESS, "")


REFUSED = {
    "1,001 headers": [ok(*(b"x-%d: y" % number for number in range(1_000)))],
    "more than 64 KiB in a header": [ok(b"x-long: " + b"y" * (64 * 1024 + 1))],
    "more than 256 KiB of headers": [ok(*(b"x-%d: %s" % (number, b"y" * 10_000) for number in range(30)))],
    "21 interim responses": [*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 21, GOOD],
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_response_beyond_them_is_refused_with_its_reason(receivers: Hostile, what: str) -> None:
    receivers.scripts["it"] = lambda: at_once(iter(REFUSED[what]))
    [ended] = send(f"{receivers.url}/it")
    assert ended.result is Result.HTTP_REQUEST_FAILED
    assert any(word in ended.error for word in ("header", "Header", "interim", "bytes"))
