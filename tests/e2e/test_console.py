"""The console in a real browser."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser import Screen, chromium, console_process
from tests.providers import Stack


@pytest.fixture(scope="module")
def screen(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Generator[Screen]:
    folder = tmp_path_factory.mktemp("console")
    with chromium(folder) as browser, console_process(stack.settings, folder) as address:
        yield Screen(browser, address)


def test_one_signs_in_and_out(screen: Screen) -> None:
    screen.browser.delete_all_cookies()
    screen.go("/")
    assert screen.browser.current_url.endswith("/sign-in")
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
    assert screen.browser.current_url.endswith("/sign-in"), (
        "the cookie is good for nothing after the end of its session"
    )
    assert screen.complaints() == []


def test_a_page_is_worked_by_keys(screen: Screen) -> None:
    screen.sign_in("viktor")
    body = screen.find("body")
    body.send_keys("?")
    screen.find("dialog", text="these keys").send_keys(Keys.ESCAPE)
    screen.eventually(
        lambda: not screen.browser.find_elements("css selector", "dialog[open]"), what="the dialog closed"
    )
    assert screen.complaints() == []
