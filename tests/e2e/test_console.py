"""The console as a process, by plain requests and in a real browser, before real records that a real notifier sends."""

from __future__ import annotations

import json
import random
import re
import socket
from collections.abc import Generator
from contextlib import ExitStack
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import UUID

import pytest
import requests
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from sqlalchemy import text

from consumers.notification.control import pause, resume
from consumers.notification.notifier.bulk import STEP
from consumers.notification.receivers import register_receiver
from consumers.notification.write import write
from ops.notifications.bulk import new_id
from ops.notifications.operations import pause_receiver
from ops.notifications.receivers import receivers
from outbox.clock import utc_now
from outbox.settings import Settings
from tests.browser import PASSWORDS, Screen, chromium, console_process
from tests.integration.test_sender import running
from tests.notifier import PATIENT, SECRET, Desk, desks
from tests.pipeline import ROOT, engine_of, fresh_id
from tests.providers import Stack
from tests.sink import Sink, sinking
from tests.waiting import eventually

HOSTILE = [
    "<script>window.hit = 1; document.title = 'hit'</script>",
    "<img src=x onerror=\"window.hit = 1\">",
    "\"><svg onload=window.hit=1>",
    "</pre><iframe srcdoc=\"<script>parent.hit = 1</script>\"></iframe>",
    "<a href=\"javascript:window.hit=1\" class=row autofocus onfocus=window.hit=1>x</a>",
    "<div hx-get=/sign-out hx-trigger=load hx-on:htmx:load=\"window.hit=1\" data-hx-on::load='window.hit=1'>",
    "<hx-partial hx-target=\"body\"><script>window.hit = 1</script></hx-partial>",
    "{{ 7 * 7 }}{% raw %}</script><style>*{display:none}</style><base href=//example.invalid>",
    "<meta http-equiv=refresh content=0;url=/sign-in><form action=/sign-out method=post><button autofocus>",
    "\u202e\x00\x1b[31m<!--",
]  # fmt: skip


@pytest.fixture(scope="module")
def address(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    with console_process(stack.settings, tmp_path_factory.mktemp("console")) as served:
        yield served.address


@pytest.fixture(scope="module")
def screen(address: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Screen]:
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield Screen(browser, address)


@pytest.fixture
def receiver() -> Generator[Sink]:
    with sinking() as made:
        yield made


@pytest.fixture
def desk(settings: Settings, prefix: str, receiver: Sink) -> Generator[Desk]:
    """A queue of the test's own whose records have one attempt."""
    with desks(settings, prefix) as opened:
        made = opened(rule='{"1":0}', breaker_failures=PATIENT)
        made.register(receiver.url + "/scripted")
        yield made


def failed(desk: Desk, settings: Settings, count: int) -> None:
    """So many records of the desk have been sent by a real notifier, and given up."""
    desk.write(count)
    with running(settings, desk):
        eventually(lambda: all(row.status == "FAILED" for row in desk.records()), what="all given up")


def signed_in(address: str, name: str = "olga") -> tuple[requests.Session, str]:
    """Return a session of that user's, and what its forms carry."""
    session = requests.Session()
    answer = session.post(f"{address}/sign-in", data={"name": name, "password": PASSWORDS[name]})
    assert answer.status_code == 200
    token = re.search(r'name="csrf" value="([^"]+)"', answer.text)
    assert token
    return session, token.group(1)


def test_one_signs_in_and_out(screen: Screen) -> None:
    screen.browser.delete_all_cookies()
    screen.go("/")
    screen.at("/sign-in")
    screen.find("[name=name]").send_keys("olga")
    screen.find("[name=password]").send_keys("not her password\n")
    screen.find("[role=alert]", text="No such name, or not its password.")
    assert [said for said in screen.complaints() if "403" not in said] == []
    screen.sign_in("olga")
    cookie = screen.browser.get_cookie("payrelay")
    assert cookie
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    screen.find("button", text="Sign out").click()
    screen.find("[name=name]")
    screen.browser.add_cookie({"name": "payrelay", "value": cookie["value"]})
    screen.go("/")
    assert screen.browser.current_url.endswith("/sign-in"), "the cookie is good for nothing after its session's end"
    assert screen.complaints() == []


def test_find_failed_resend_all_that_match_and_watch_them_succeed(
    screen: Screen, settings: Settings, desk: Desk, receiver: Sink
) -> None:
    receiver.scripted = 503, "down for the night"
    failed(desk, settings, 60)
    receiver.scripted = 200, "success"
    screen.sign_in("olga")
    screen.find("nav a", text="Notifications").click()
    Select(screen.find("form.filter [name=state]")).select_by_value("FAILED")
    Select(screen.find("form.filter [name=queue]")).select_by_value(desk.queue.queue)
    screen.find("p[role=status]", text="60 match")
    screen.at(f"/notifications?state=FAILED&queue={desk.queue.queue}")
    assert len(screen.browser.find_elements(By.CSS_SELECTOR, "tbody tr")) == 50
    screen.find("details.act summary", text="Resend all 60 that match").click()
    screen.find("details.act [name=reason]").send_keys("their night is over")
    with running(settings, desk):
        screen.find("details.act button", text="Resend 60 now").click()
        screen.find("p[role=status]", text="SUCCESS 60")
    assert "60 of 60 resent · all looked at · SUCCESS 60" in screen.read("p[role=status]")
    assert sorted(receiver.times()) == sorted(str(row.id) for row in desk.records())
    assert {row.status for row in desk.records()} == {"SUCCESS"}
    with engine_of(settings, "ops").connect() as connection:
        statement = "SELECT * FROM notification.notify_audit WHERE queue = :queue"
        audit = connection.execute(text(statement), {"queue": desk.queue.queue}).all()
    assert len(audit) == 60
    assert {(row.action, row.outcome, row.reason, row.actor) for row in audit} == {
        ("RESEND", "DUE", "their night is over", "olga")
    }
    assert screen.complaints() == []


def test_everything_is_worked_by_keys(screen: Screen, settings: Settings, desk: Desk, receiver: Sink) -> None:
    receiver.scripted = 503, "not now"
    failed(desk, settings, 3)
    screen.sign_in("olga")

    def press(*keys: str) -> None:
        """Press keys where the focus is."""
        ActionChains(screen.browser).send_keys(*keys).perform()

    press("?")
    screen.find("dialog", text="these keys")
    press(Keys.ESCAPE)
    screen.eventually(lambda: not screen.browser.find_elements(By.CSS_SELECTOR, "dialog[open]"), what="no dialog")
    press("g", "n")
    screen.at("/notifications")
    press("/")
    assert focus(screen) == "state"
    press("F", Keys.TAB, Keys.TAB, desk.merchant(), Keys.ENTER)
    screen.at(f"/notifications?state=FAILED&merchant={desk.merchant()}")
    screen.find("p[role=status]", text="3 match")
    screen.browser.execute_script("document.activeElement.blur()")
    press("j", "j", "k", Keys.ENTER)
    newest = desk.records()[-1]
    screen.at(f"/notifications/{newest.id}")
    while focus(screen) != "Resend now…":
        press(Keys.TAB)
    press(Keys.ENTER, Keys.TAB, "by keys", Keys.ENTER)
    screen.find("#timeline tr", text="RESEND by olga")
    assert desk.audit()[0].reason == "by keys"
    assert screen.complaints() == []


def focus(screen: Screen) -> str:
    """Return the name, or the text, of what has the focus."""
    element = screen.browser.switch_to.active_element
    return element.get_attribute("name") or element.text


def test_a_viewer_looks_and_has_nothing_to_act_with(
    screen: Screen, settings: Settings, desk: Desk, receiver: Sink
) -> None:
    receiver.scripted = 503, "not now"
    failed(desk, settings, 2)
    own = f"queue={desk.queue.queue}"
    paths = (f"/notifications?{own}", f"/notifications/{desk.records()[0].id}", f"/receivers?{own}")
    for name, forms in (("olga", 1), ("viktor", 0)):
        screen.sign_in(name)
        for path in paths:
            screen.go(path)
            screen.find("main", text=desk.merchant())
            actions = screen.browser.find_elements(By.CSS_SELECTOR, "main form[method=post]")
            assert len(actions) == forms, (name, path)


def test_figures_are_live_and_nothing_is_read_while_the_page_is_hidden(
    screen: Screen, settings: Settings, desk: Desk, receiver: Sink
) -> None:
    screen.sign_in("viktor")
    screen.go("/")
    screen.eventually(lambda: len(screen.browser.find_elements(By.CSS_SELECTOR, ".chart canvas")) == 3, what="charts")

    def sent() -> int:
        return int(screen.read("#tiles article strong").replace(",", ""))

    def drawn() -> float:
        """Return what the chart shows as sent in the last full minute."""
        series = json.loads(screen.browser.execute_script("return document.getElementById('charts').dataset.series"))
        return float(sum(series["sent"][-12:]) * 5)

    screen.eventually(lambda: sent() < 300 and drawn() < 300, what="a quiet minute")
    desk.write(300)
    with running(settings, desk):
        screen.eventually(lambda: sent() >= 300, what="300 sent in the figures")
        screen.eventually(lambda: drawn() >= 300, what="300 sent in the chart")
    screen.browser.execute_script(HIDE, True)
    idle = "SELECT extract(epoch FROM clock_timestamp() - max(query_start)) FROM pg_stat_activity WHERE application_name LIKE '%console reader'"

    def idle_s() -> float:
        with engine_of(settings, "ops").connect() as connection:
            return float(connection.execute(text(idle)).scalar_one())

    screen.eventually(lambda: idle_s() > 4, what="no reading for 4 s, where there was one a second")
    screen.browser.execute_script(HIDE, False)
    screen.eventually(lambda: idle_s() < 2, what="reading again")
    assert screen.complaints() == []


HIDE = """
  const hidden = arguments[0];
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
"""


def test_receivers_that_match_are_paused_and_resumed(address: str, settings: Settings, prefix: str) -> None:
    """In the merchants' own queue, which the command line knows too."""
    merchants = [f"{prefix}M{number}" for number in range(2)]
    for merchant in merchants:
        with engine_of(settings, "notification").begin() as connection:
            register_receiver(connection, merchant, url="https://shop.example", secret=SECRET)
        pause_receiver(settings, "merchant", merchant, reason="made", actor="test")
    session, csrf = signed_in(address)

    def states() -> list[str]:
        with engine_of(settings, "ops").connect() as connection:
            return [row.state for merchant in merchants for row in receivers(connection, merchant_no=merchant)]

    def act(action: str, merchant: str, matched: int) -> int:
        form = {"csrf": csrf, "reason": "a visit", "queue": "merchant", "merchant": merchant, "matched": matched}
        return session.post(
            f"{address}/receivers/{action}", data={**form, "back": f"/receivers?merchant={merchant}"}
        ).status_code

    assert states() == ["paused", "paused"]
    assert act("resume", merchants[0], 2) == 400, "not what was shown"
    assert act("resume", merchants[0], 1) == 200
    assert states() == ["sending", "paused"]
    assert act("pause", merchants[0], 1) == 200
    assert act("pause", merchants[0], 1) == 200, "as it was"
    assert states() == ["paused", "paused"]
    assert act("burn", merchants[0], 1) == 400
    assert (
        session.post(f"{address}/receivers/pause", data={"csrf": csrf, "reason": " ", "matched": 1}).status_code == 400
    )
    shown = session.get(f"{address}/acts").text
    assert "a visit" in shown
    listed = f'href="/notifications?queue=merchant&amp;merchant={merchants[0]}"'
    for state, shows in (("paused", True), ("sending", False), ("", True)):
        answer = session.get(f"{address}/receivers", params={"merchant": merchants[0], "state": state})
        assert (listed in answer.text) == shows, state


def held_up(desk: Desk, number: int = 0) -> None:
    """The receiver's breaker is open for the next hour."""
    with desk.engine.begin() as connection:
        opened = """INSERT INTO notify_lane (queue, merchant_no, failures, opened_at, blocked_cause, blocked_until)
                    VALUES (:queue, :merchant_no, 5, clock_timestamp(), 'BREAKER', clock_timestamp() + interval '1 hour')
                    ON CONFLICT (queue, merchant_no) DO UPDATE
                    SET failures = 5, opened_at = EXCLUDED.opened_at, blocked_cause = 'BREAKER', blocked_until = EXCLUDED.blocked_until"""
        connection.execute(text(opened), {"queue": desk.queue.queue, "merchant_no": desk.merchant(number)})


def test_a_receiver_that_fails_is_paused_before_its_breaker_closes(
    screen: Screen, settings: Settings, prefix: str, receiver: Sink
) -> None:
    with desks(settings, prefix) as opened:
        desk = opened(prefix, lives_in="merchant")
        desk.register(f"{receiver.url}/gone")
        desk.write(1)
        held_up(desk)
        screen.sign_in("olga")
        screen.go(f"/receivers?merchant={desk.merchant()}")
        screen.find("tbody tr", text="BREAKER")
        screen.find("tbody summary", text="Resume…")
        screen.find("tbody summary", text="Pause…").click()
        screen.find("tbody details[open] [name=reason]").send_keys("they asked us to\n")
        screen.find("tbody tr", text="paused")
        [lane] = desk.rows("SELECT * FROM notify_lane WHERE merchant_no = :merchant_no", merchant_no=desk.merchant())
        assert lane.paused_at is not None
    assert screen.complaints() == []


def test_what_is_held_up_is_not_said_to_be_resent(
    screen: Screen, settings: Settings, desk: Desk, receiver: Sink
) -> None:
    receiver.scripted = 503, "not now"
    failed(desk, settings, 4)
    held_up(desk)
    receiver.scripted = 200, "success"
    screen.sign_in("olga")
    screen.go(f"/notifications?state=FAILED&queue={desk.queue.queue}")
    screen.find("details.act summary", text="Resend all 4 that match").click()
    screen.find("details.act [name=reason]").send_keys("fixed")
    with running(settings, desk):
        screen.find("details.act button", text="Resend 4 now").click()
        screen.find("p[role=status]", text="all looked at")
        assert screen.read("p[role=status]").strip() == "0 of 4 resent, 4 held up (BREAKER) · all looked at · CREATED 4"
        with desk.engine.begin() as connection:
            resume(connection, desk.queue.queue, desk.merchant(), reason="fixed", actor="test")
        screen.find("p[role=status]", text="4 of 4 resent · all looked at · SUCCESS 4")
    assert screen.complaints() == []


UNKNOWN = [
    "/notifications?statu=FAILED", "/notifications?State=FAILED", "/notifications?status=FAILED&queue=merchant", "/notifications?merchant_no=M",
    "/notifications?state=FAILED&state=SUCCESS", "/notifications?state=failed", "/receivers?states=paused", "/receivers?state=blocked",
    "/receivers?queue=nobody", "/acts?state=FAILED", "/?queue=merchant",
]  # fmt: skip


@pytest.mark.parametrize("path", UNKNOWN)
def test_an_address_that_says_what_the_page_does_not_read_is_refused(address: str, path: str) -> None:
    """What is left out unseen leaves everything in, and all of that can be acted on."""
    answer = signed_in(address)[0].get(address + path)
    assert (answer.status_code, "Resend" in answer.text, "Pause" in answer.text) == (400, False, False)
    wrong = path.partition("?")[2].split("&")[0]
    assert any(word in answer.text for word in wrong.split("="))


@pytest.mark.parametrize("action", ["notifications/resend", "receivers/pause"])
def test_a_form_with_a_field_that_is_not_read_acts_on_nothing(
    address: str, settings: Settings, desk: Desk, receiver: Sink, action: str
) -> None:
    failed_status = 503, "not now"
    receiver.scripted = failed_status
    failed(desk, settings, 1)
    session, csrf = signed_in(address)
    form = {
        "csrf": csrf,
        "reason": "x",
        "queue": desk.queue.queue,
        "newest": str(desk.record().id),
        "act": str(new_id()),
        "count": 1,
    }
    if action.startswith("receivers"):
        form = {"csrf": csrf, "reason": "x", "queue": desk.queue.queue, "matched": 1}
    answer = session.post(f"{address}/{action}", data={**form, "merchant_no": "M"})
    assert (answer.status_code, "merchant_no" in answer.text) == (400, True)
    assert desk.audit() == []


def test_pages_fit_screens_of_1280_and_390_pixels_with_identifiers_as_long_as_they_get(
    screen: Screen, settings: Settings, desk: Desk, receiver: Sink
) -> None:
    with desk.engine.begin() as connection:
        rows = [
            {"event_id": fresh_id(), "merchant_no": desk.merchant(), "payment_no": f"{desk.name}P{'9' * 40}", "order_no": f"{desk.name}O{'9' * 40}",
             "body": "{}"}
        ]  # fmt: skip
        write(connection, desk.queue.queue, rows)
    receiver.scripted = 503, "not now"
    with running(settings, desk):
        eventually(lambda: desk.record().status == "FAILED", what="given up")
    assert desk.resend([desk.record().event_id])
    with desk.engine.begin() as connection:
        pause(connection, desk.queue.queue, desk.merchant(), reason="a word of it " * 8, actor=f"olga.{'o' * 25}")
    screen.sign_in("olga")
    paths = [
        "/",
        f"/notifications?queue={desk.queue.queue}",
        f"/receivers?queue={desk.queue.queue}",
        "/acts",
        f"/notifications/{desk.record().id}",
    ]
    try:
        for width in (1280, 390):
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
            screen.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            for path in paths:
                screen.go(path)
                screen.find("nav button", text="Sign out")
                assert screen.browser.execute_script(OFF_SCREEN, "nav a, nav button, h1, .bar > *") == [], (width, path)
                if width == 1280:
                    assert screen.browser.execute_script(OFF_SCREEN, "th, td") == [], path
    finally:
        screen.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert screen.complaints() == []


OFF_SCREEN = """
  return [...document.querySelectorAll(arguments[0])]
    .filter((element) => { const at = element.getBoundingClientRect(); return at.width && (at.right > screen.width + 0.5 || at.left < 0); })
    .map((element) => element.innerText);
"""


def test_a_charts_legend_tells_figures_without_a_pointer_on_it(screen: Screen, settings: Settings, desk: Desk) -> None:
    screen.sign_in("olga")
    screen.go("/")
    legends = "return [...document.querySelectorAll('.u-legend')].map((legend) => [...legend.querySelectorAll('.u-value')].map((value) => value.innerText))"
    for _ in range(2):  # as it is loaded, and once it is live
        legend_values = screen.eventually(lambda: screen.browser.execute_script(legends), what="legends")
        assert [len(values) for values in legend_values] == [3, 2, 3]
        assert all(value and value != "--" for values in legend_values for value in values), legend_values
        assert all(value.endswith("/s") for value in legend_values[0][1:]), legend_values
        screen.browser.execute_script("document.getElementById('charts').dataset.series = ''")
        screen.eventually(
            lambda: screen.browser.execute_script("return document.getElementById('charts').dataset.series !== ''"),
            what="live figures",
        )


def test_a_console_killed_in_an_act_leaves_it_to_the_next(
    settings: Settings, desk: Desk, receiver: Sink, tmp_path: Path
) -> None:
    """It is killed while it waits for a record of its second step, with the first one done."""
    desk.write(STEP + 10)
    last = desk.records()[-1]
    with console_process(settings, tmp_path) as served:
        session, csrf = signed_in(served.address)
        with engine_of(settings, "notification").begin() as holder:
            holder.execute(text("SELECT FROM notify_record WHERE id = :id FOR UPDATE"), {"id": last.id})
            form = {
                "csrf": csrf,
                "reason": "killed",
                "queue": desk.queue.queue,
                "newest": str(last.id),
                "act": str(new_id()),
            }

            def resend(shown: int) -> int:
                answer = session.post(f"{served.address}/notifications/resend", data=form | {"count": shown})
                return answer.status_code

            assert resend(STEP + 9) == 400, "more match than were shown"
            assert [resend(STEP + 10) for _ in range(2)] == [200, 200], "a double click is one act"
            eventually(lambda: len(desk.audit()) == STEP, what="the first step")
            waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%console notification' AND wait_event_type = 'Lock'"
            with engine_of(settings, "ops").connect() as connection:
                eventually(lambda: connection.execute(text(waits)).scalar_one(), what="the second step waits")
            served.process.kill()
            served.process.wait()
    (tmp_path / "next").mkdir()
    with console_process(settings, tmp_path / "next"):
        eventually(lambda: len(desk.audit()) == STEP + 10, what="the rest")
    assert sorted(row.record_id for row in desk.audit()) == [record.id for record in desk.records()]
    assert {(row.outcome, row.actor) for row in desk.audit()} == {("DUE", "olga")}


def test_connections_that_send_nothing_keep_nobody_away(address: str) -> None:
    place = urlsplit(address)
    with ExitStack() as stack:
        for number in range(300):
            idle = stack.enter_context(socket.create_connection((place.hostname, place.port), 10))
            idle.sendall(b"G" * (number % 2))
        assert [requests.get(f"{address}{path}", timeout=5).status_code for path in ("/health", "/sign-in")] == [
            200,
            200,
        ]


def test_no_filter_is_an_error_of_ours(address: str) -> None:
    session, _ = signed_in(address)
    for path, fields in FILTERS.items():
        for field, said in product(fields, NASTY):
            answer = session.get(address + path, params={field: said})
            assert answer.status_code in (200, 400), (path, field, said, answer.status_code)
            assert HOSTILE[0] not in answer.text


FILTERS = {"/notifications": ("state", "merchant", "http", "from", "before"), "/receivers": ("state", "merchant")}

NASTY = [
    *HOSTILE, "' OR 1=1 --", "%", "\\", "{service}", ":queue", "1e400", "-1", "9" * 40, "0001-01-01T00:00", "9999-12-31T23:59:59",
    "2026-01-01T00:00:00+14:00", "1969-12-31T23:59", "\U0001f600", "ü" * 200, "x" * 201, "5xx", "NONE", "WAITING", "00000000-0000-0000-0000-000000000000",
]  # fmt: skip


def test_a_hostile_answer_runs_nowhere(screen: Screen, settings: Settings, desk: Desk, receiver: Sink) -> None:
    """Stored by a real notifier from what a receiver answered; and so hostile are the body, the order and the filter."""
    for number, hostile in enumerate(HOSTILE):
        receiver.scripted = 500, hostile
        stored = hostile.replace("\0", "")
        row = {
            "event_id": fresh_id(),
            "merchant_no": desk.merchant(),
            "payment_no": stored,
            "order_no": stored,
            "body": stored,
        }
        with desk.engine.begin() as connection:
            write(connection, desk.queue.queue, [row])
        with running(settings, desk):
            eventually(lambda: len(desk.log()) == number + 1, what="the attempt")  # noqa: B023 - awaited here
    screen.sign_in("olga")
    pages = [f"/notifications?queue={desk.queue.queue}", "/acts", "/receivers?merchant=" + quote(HOSTILE[1])]
    pages += ["/notifications?order=" + quote(hostile) for hostile in HOSTILE if "\0" not in hostile]
    for record in desk.records():
        screen.go(f"/notifications/{record.id}")
        screen.find("#timeline details summary").click()
        shown = screen.find("pre.answer").text
        assert shown[:12].strip() in record_answer(desk, record.id)
        assert hit(screen) is None
    for path in pages:
        screen.go(path)
        screen.find("h1")
        assert hit(screen) is None
        assert screen.browser.title.endswith("payrelay")
    assert screen.browser.current_url.startswith(screen.address)
    assert [said for said in screen.complaints() if "400" not in said] == []


def hit(screen: Screen) -> object:
    return screen.browser.execute_script("return window.hit ?? null")


def record_answer(desk: Desk, identity: UUID) -> str:
    return str(next(row.response for row in desk.log() if row.record_id == identity))


PAGES = ("/", "/notifications", "/receivers", "/acts", "/sign-in", "/nothing-here", "/notifications/no-uuid", "/static/console.js",
         "/notifications?state=nonsense", "/health")  # fmt: skip


def test_every_answer_forbids_what_is_inline_framed_or_kept(address: str) -> None:
    session, _ = signed_in(address)
    for path in PAGES:
        headers = session.get(address + path).headers
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
        assert ("no-store" in headers["cache-control"]) != path.startswith("/static")
        assert "server" not in headers


def test_nobody_sees_anything_before_signing_in(address: str) -> None:
    for path in (
        "/",
        "/notifications",
        "/receivers",
        "/acts",
        "/acts/1",
        "/acts/1/live",
        "/live",
        f"/notifications/{fresh_id()}",
    ):
        answer = requests.get(timeout=20, url=address + path, allow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in"), path
    for path in ACTIONS:
        answer = requests.post(timeout=20, url=address + path, data={"reason": "x"}, allow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in"), path
    part = requests.get(timeout=20, url=address + "/notifications", headers={"hx-request": "true"})
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/sign-in")


ACTIONS = (
    "/notifications/01a2079e-7a00-7000-8000-000000000001/resend",
    "/notifications/resend",
    "/receivers/pause",
    "/receivers/resume",
    "/acts/1/stop",
)


@pytest.mark.parametrize("path", ACTIONS)
def test_a_change_takes_an_operator_a_form_of_his_session_and_this_site(address: str, path: str) -> None:
    session, csrf = signed_in(address)
    other, other_csrf = signed_in(address)
    viewer, viewer_csrf = signed_in(address, "viktor")
    refused = [
        session.post(address + path, data={"reason": "x"}),
        session.post(address + path, data={"reason": "x", "csrf": other_csrf}),
        viewer.post(address + path, data={"reason": "x", "csrf": viewer_csrf}),
        session.post(
            address + path, data={"reason": "x", "csrf": csrf}, headers={"origin": "http://elsewhere.invalid"}
        ),
        session.post(address + path, data={"reason": "x", "csrf": csrf}, headers={"sec-fetch-site": "cross-site"}),
        session.post(address + path, data={"reason": "x", "csrf": csrf}, headers={"sec-fetch-site": "same-site"}),
    ]
    assert [answer.status_code for answer in refused] == [403] * 6
    assert session.post(address + path, json={"reason": "x", "csrf": csrf}).status_code == 415
    assert session.post(address + path, data={"reason": "x" * 70_000, "csrf": csrf}).status_code == 413
    assert session.get(address + path, allow_redirects=False).status_code in (400, 404, 405)
    session.close()
    other.close()
    viewer.close()


def test_wrong_passwords_are_slowed_down_and_a_right_one_then_too(address: str) -> None:
    """From an address of its own, which nobody else is kept from signing in at."""

    class FromElsewhere(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args: Any, **given: Any) -> None:
            super().init_poolmanager(*args, **given, source_address=("127.0.0.9", 0))

    with requests.Session() as session:
        session.mount("http://", FromElsewhere())
        answers = [
            session.post(f"{address}/sign-in", data={"name": f"nobody{number % 2}", "password": "x"})
            for number in range(7)
        ]
        assert [answer.status_code for answer in answers] == [403] * 5 + [429] * 2
        assert 0 < int(answers[-1].headers["retry-after"]) <= 60
        right = session.post(f"{address}/sign-in", data={"name": "olga", "password": PASSWORDS["olga"]})
        assert right.status_code == 429, "from that address"
    signed_in(address)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_follow_the_scheme_and_are_legible(
    screen: Screen, settings: Settings, desk: Desk, receiver: Sink, scheme: str
) -> None:
    """Text stands out from what is behind it, by 4.5 to 1 as WCAG 2.2 asks."""
    receiver.scripted = 503, "<h1>Service Unavailable</h1>"
    failed(desk, settings, 3)
    wear(screen, scheme)
    screen.sign_in("olga")
    own = f"queue={desk.queue.queue}"
    for path in ("/", f"/notifications?{own}", f"/notifications/{desk.records()[0].id}", f"/receivers?{own}", "/acts"):
        screen.go(path)
        screen.find("h1")
        seen, faint = screen.browser.execute_script(FAINT)
        assert seen > 15, path
        assert faint == [], path
    dark = screen.browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
    assert screen.complaints() == []


def wear(screen: Screen, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    screen.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def test_the_pictures_of_the_readme(
    screen: Screen, settings: Settings, receiver: Sink, prefix: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Made from records that a notifier sent, and a quarter of an hour of attempts drawn with a seed."""
    if not request.config.getoption("--screenshots"):
        pytest.skip("--screenshots makes them again")
    with desks(settings, prefix) as opened:
        desk = opened("shops", rule='{"1":0,"2":"1s"}', breaker_failures=PATIENT)
        for number, path in enumerate(["told", "told", "almost", "gone"]):
            desk.register(f"{receiver.url}/{path}", number)
            desk.write(6, number, body='{"type":"payment.settled.v1","payment_no":"P20261125","amount_fen":12800,"currency":"CNY","status":"SETTLED"}')  # fmt: skip
        with running(settings, desk):
            eventually(lambda: all(row.finished_at for row in desk.records()), what="all finished")
        desk.write(3, 3)
        fill(desk)
        given_up = next(row for row in desk.records() if row.status == "FAILED")
        paths = {
            "overview": "/",
            "notifications": "/notifications?queue=shops",
            "notification": f"/notifications/{given_up.id}",
        }
        with console_process(settings, tmp_path) as served:  # one that has read nothing yet
            own = Screen(screen.browser, served.address)
            own.sign_in("olga")
            for name, path in paths.items():
                picture(own, name, path)


def picture(screen: Screen, name: str, path: str) -> None:
    """The README's picture of a page is as it looks now."""
    wear(screen, "dark" if name == "notification" else "light")
    screen.browser.set_window_size(1200, 760)
    screen.go(path)
    if name == "overview":
        drawn = "return JSON.parse(document.getElementById('charts').dataset.series).waiting.filter((v) => v !== null).length > 3"
        screen.eventually(lambda: screen.browser.execute_script(drawn), what="what waits, drawn")
    for details in screen.browser.find_elements(By.CSS_SELECTOR, "#timeline tr:last-child details summary"):
        details.click()
    IMAGES.mkdir(exist_ok=True)
    screen.browser.save_screenshot(str(IMAGES / f"console-{name}.png"))


IMAGES = ROOT / "docs" / "images"

FAINT = """
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const seen = [...document.querySelectorAll("main *, header *")]
    .filter((element) => element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return [seen.length, seen.map((element) => [element, light(rgb(getComputedStyle(element).color)), light(behind(element))])
    .map(([element, ink, paper]) => [element.outerHTML.slice(0, 80), (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)])
    .filter(([, ratio]) => ratio < 4.5)];
"""


def fill(desk: Desk) -> None:
    """A quarter of an hour of attempts is in the log, drawn with a seed, so that the pictures' charts have lines."""
    draw, now = random.Random(7), utc_now()
    rows = []
    for number in range(2_700):
        ended = now - timedelta(seconds=number / 3)
        bad = draw.random() < (0.25 if 300 < number / 3 < 420 else 0.02)
        late = timedelta(seconds=draw.lognormvariate(-4.2, 0.6))
        rows.append(
            {
                "at": ended,
                "late": late,
                "result": "HTTP_REQUEST_FAILED" if bad else "SUCCESS",
                "queue": desk.queue.queue,
            }
        )
    with desk.engine.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO notify_record_log (record_id, attempt, queue, merchant_no, planned_at, postponed, started_at, ended_at,
                                               url, result, http_status, response, error, counted)
                VALUES (uuidv7(), 1, :queue, 'M0', CAST(:at AS timestamptz) - CAST(:late AS interval), false, :at, :at,
                        'https://receiver.invalid/', :result, 200, '', '', true)"""),
            rows,
        )
