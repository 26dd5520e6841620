"""What merchants may ask: their own only, signed, not too often; and a feed that passes nothing over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import requests
import uvicorn

from consumers.notification.api import BURST, Rates, create_app
from consumers.notification.notifier.lanes import Result
from consumers.notification.receivers import rotate_secret
from consumers.notification.write import write
from outbox.clock import first_id_at, utc_now
from outbox.settings import Settings
from schemas.signature import signed_headers
from tests.notifier import SECRET, Desk, desks, ended
from tests.pipeline import engine_of, fresh_id
from tests.waiting import eventually

OTHER = "whsec_" + "b3RoZXI0" * 5


@pytest.fixture
def desk(settings: Settings, prefix: str) -> Iterator[Desk]:
    with desks(settings, prefix) as opened:
        made = opened()
        made.register("https://shop.example/0")
        made.register("https://shop.example/1", 1, OTHER)
        yield made


@pytest.fixture
def client(settings: Settings) -> Iterator[Callable[..., requests.Response]]:
    """The service on a port of its own, in a thread; asked by `requests`."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, what="the service listens")
    port = server.servers[0].sockets[0].getsockname()[1]
    with requests.Session() as session:
        yield lambda target, headers: session.get(f"http://127.0.0.1:{port}{target}", headers=headers, timeout=20)
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def ask(client: Callable[..., requests.Response], desk: Desk) -> Callable[..., Any]:
    def signed_get(target: str, *, number: int = 0, secret: str = SECRET, **headers: str) -> Any:
        signed = signed_headers(secret, message_id="q1", at=utc_now(), body=target.encode())
        return client(target, headers={**signed, "merchant-no": desk.merchant(number), **headers})

    return signed_get


def test_a_merchant_sees_its_own_by_id_and_by_order_and_nobody_elses(desk: Desk, ask: Any) -> None:
    desk.write(2, 0)
    desk.write(2, 1)
    for record in desk.records():
        number = int(record.merchant_no == desk.merchant(1))
        secret = (SECRET, OTHER)[number]
        answer = ask(f"/notifications/{record.id}", number=number, secret=secret)
        assert (answer.status_code, answer.json()["body"], answer.json()["status"]) == (200, {"a": 1}, "CREATED")
        other = ask(f"/notifications/{record.id}", number=1 - number, secret=(SECRET, OTHER)[1 - number])
        assert (other.status_code, other.json()["error"]) == (404, "no_notification")
    [shown] = ask(f"/notifications?order_no={desk.name}O1").json()["notifications"]
    assert shown["id"] == str(
        next(row.id for row in desk.records() if (row.merchant_no, row.order_no) == (desk.merchant(), f"{desk.name}O1"))
    )
    assert ask("/notifications?order_no=nobodys").json() == {"notifications": []}


def test_what_did_i_miss_since(desk: Desk, ask: Any) -> None:
    begun = datetime.now(UTC)
    desk.write(5)
    now = max(record.planned_at for record in desk.records())
    desk.finish([ended(claim, now, Result.SUCCESS) for claim in desk.claim(now, limit=3)], now)
    since = f"since={(begun - timedelta(seconds=1)).isoformat().replace('+', '%2B')}"
    records = [str(record.id) for record in desk.records()]
    undelivered = [str(record.id) for record in desk.records() if record.status != "SUCCESS"]
    page = ask(f"/notifications?{since}&limit=2").json()
    seen = [row["id"] for row in page["notifications"]]
    while page["notifications"]:
        page = ask(f"/notifications?after={page['after']}&limit=2").json()
        seen += [row["id"] for row in page["notifications"]]
    assert seen == records
    assert [row["id"] for row in ask(f"/notifications?{since}&missed=true").json()["notifications"]] == undelivered
    desk.write(1)
    assert len(ask(f"/notifications?after={page['after']}").json()["notifications"]) == 1, (
        "the cursor waits for the next"
    )


def test_the_feed_passes_nothing_over_that_commits_late(settings: Settings, desk: Desk, ask: Any) -> None:
    """A record whose transaction commits after a younger one's was shown would otherwise lie behind the cursor."""
    row = {"event_id": fresh_id(), "merchant_no": desk.merchant(), "payment_no": "P", "order_no": "late", "body": "{}"}
    cursor: Any = first_id_at(utc_now() - timedelta(seconds=1))
    with engine_of(settings, "notification").connect() as late:
        with late.begin():
            write(late, desk.queue.queue, [row])
            desk.write(1)
            page = ask(f"/notifications?after={cursor}").json()
            assert page["notifications"] == []
        page = ask(f"/notifications?after={page['after']}").json()
    assert [notification["order_no"] for notification in page["notifications"]] == ["late", f"{desk.name}O0"]


def test_a_cursor_from_before_the_clock_was_set_back_passes_nothing_over(desk: Desk, ask: Any) -> None:
    desk.write(1)
    ahead = utc_now() + timedelta(hours=2)
    page = ask(f"/notifications?after={first_id_at(ahead)}").json()
    assert [notification["order_no"] for notification in page["notifications"]] == [f"{desk.name}O0"]
    assert page["after"] < str(first_id_at(utc_now()))
    since = f"since={ahead.isoformat().replace('+', '%2B')}"
    assert ask(f"/notifications?{since}").json()["notifications"] == []


@pytest.mark.parametrize("what", ["secret", "merchant", "target", "time", "nobody", "nothing"])
def test_who_has_not_signed_sees_nothing(client: Any, desk: Desk, what: str) -> None:
    desk.write(1)
    target = f"/notifications/{desk.record().id}"
    at = utc_now() - timedelta(minutes=6) if what == "time" else utc_now()
    body = (target + "x" if what == "target" else target).encode()
    headers = signed_headers(OTHER if what == "secret" else SECRET, message_id="q", at=at, body=body)
    headers["merchant-no"] = {"merchant": desk.merchant(1), "nobody": "nobody"}.get(what, desk.merchant())
    answer = client(target, {} if what == "nothing" else headers)
    assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")


def test_while_secrets_rotate_either_is_good(desk: Desk, ask: Any) -> None:
    desk.write(1)
    target = f"/notifications/{desk.record().id}"
    for until, expected in ((utc_now() + timedelta(minutes=1), 200), (utc_now(), 401)):
        with desk.engine.begin() as connection:
            rotate_secret(connection, desk.merchant(), secret=OTHER, old_until=until)
        assert (ask(target).status_code, ask(target, secret=OTHER).status_code) == (expected, 200)


def test_who_asks_too_often_waits(desk: Desk, ask: Any) -> None:
    desk.write(1)
    target = f"/notifications/{desk.record().id}"
    answers = [ask(target).status_code for _ in range(60)]
    assert set(answers) == {200, 429}
    assert answers[: int(BURST)] == [200] * int(BURST)
    assert ask(target, number=1, secret=OTHER).status_code == 404, "others do not"


def test_rates_are_a_bucket_that_fills() -> None:
    now = 0.0
    rates = Rates(lambda: now)
    assert [rates.allows("M") for _ in range(21)] == [True] * 20 + [False]
    now = 0.5
    assert [rates.allows("M") for _ in range(6)] == [True] * 5 + [False]
    now = 1e6
    assert [rates.allows("M") for _ in range(21)] == [True] * 20 + [False]
    for number in range(20_000):
        rates.allows(str(number))
    assert len(rates._buckets) == 10_000


@pytest.mark.parametrize("target", [
    "/notifications", "/notifications?after=x", "/notifications?since=yesterday", "/notifications?since=2026-01-01T00:00:00",
    "/notifications?after=00000000-0000-7000-8000-000000000000&limit=0", "/notifications?after=00000000-0000-7000-8000-000000000000&limit=201",
    "/notifications?order_no=a&order_no=b", "/notifications?order_no=a&missed=true", "/notifications?all=1", "/notifications/x",
    "/notifications?since=2026-01-01T00:00:00Z&missed=yes", "/notifications?since=2026-01-01T00:00:00Z&after=00000000-0000-7000-8000-000000000000",
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(ask: Any, target: str) -> None:
    assert (ask(target).status_code, ask(target).json()["error"]) == (400, "bad_request")


@pytest.mark.parametrize(
    "limit",
    ["00000000199999", "000000100" + "9" * 4_391, "9" * 4_400, "1_0", "%2B5", "%205", "05", "5.0", "%D9%A3", ""],
)
def test_a_limit_is_a_number_from_1_to_200_in_one_spelling(ask: Any, limit: str) -> None:
    answer = ask(f"/notifications?since=2026-01-01T00:00:00Z&limit={limit}")
    assert answer.status_code == 400
    assert answer.json()["error"] == "bad_request"
    assert ask("/notifications?since=2026-01-01T00:00:00Z&limit=200").status_code == 200


@pytest.mark.parametrize("since", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_any_time_may_be_asked_for(ask: Any, since: str) -> None:
    assert ask(f"/notifications?since={since}").status_code == 200


def test_a_text_with_a_nul_is_refused(ask: Any) -> None:
    assert ask("/notifications?order_no=%00").status_code == 400
    assert UUID(int=0) < first_id_at(utc_now())
