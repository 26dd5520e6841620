"""The console as a process of its own, and a real headless Chromium in front of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, WebDriverException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from ops.console.passwords import hashed
from ops.stack.parts import tied
from outbox.settings import Settings
from tests.pipeline import ROOT, environment
from tests.waiting import eventually

PASSWORDS = {"olga": "olga's long password", "viktor": "viktor's long password"}
"""An operator and a viewer."""
USERS = {
    name: f"{role}:{hashed(PASSWORDS[name], cost=16)}" for name, role in (("olga", "operator"), ("viktor", "viewer"))
}
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,900", "--lang=en",
)  # fmt: skip


@dataclass
class Served:
    """A console's process and its address."""

    process: subprocess.Popen[bytes]
    address: str


@contextmanager
def console_process(settings: Settings, folder: Path) -> Generator[Served]:
    """Give a console that `payrelay console` serves; it ends in order with the block, unless the test has killed it."""
    users = {f"PAYRELAY_CONSOLE_USERS__{name.upper()}": said for name, said in USERS.items()}
    log = folder / "console.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            tied([sys.executable, "-m", "ops.cli.main", "console"]),
            env={**os.environ, **environment(settings), **users, "PAYRELAY_CONSOLE_PORT": "0"},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        announced = eventually(
            lambda: re.search(r"the console is at (\S+)", log.read_text()) or process.poll(),
            within_s=60,
            what="the console",
        )
        assert isinstance(announced, re.Match), log.read_text()[-3000:]
        yield Served(process, announced.group(1))
        if process.poll() is None:
            process.terminate()
            assert process.wait(10) == 0, log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def chromium(folder: Path, *flags: str) -> Generator[Chrome]:
    """Give a headless Chromium found on the machine; without one, the skip says what to install."""
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no Chromium with its driver on the PATH: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, *flags, f"--user-data-dir={folder / 'chromium'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=ChromeService(driver))
    browser.set_page_load_timeout(20)
    try:
        yield browser
    finally:
        browser.quit()


@dataclass
class Screen:
    """A browser in front of one console."""

    browser: Chrome
    address: str

    def go(self, path: str) -> None:
        self.browser.get(self.address + path)

    def find(self, css: str, *, text: str = "") -> WebElement:
        """Return the first visible element with that text, once it is there."""

        def first_visible() -> WebElement | None:
            try:
                elements = self.browser.find_elements(By.CSS_SELECTOR, css)
                return next((element for element in elements if element.is_displayed() and text in element.text), None)
            except (NoSuchElementException, StaleElementReferenceException):
                return None
            except WebDriverException as error:  # an element that went while it was looked at
                if "does not belong to the document" not in str(error):
                    raise
                return None

        return self.eventually(first_visible, what=f"{css} with {text!r}")

    def eventually(self, condition: Callable[[], Any], *, what: str) -> Any:
        try:
            return eventually(condition, within_s=30, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.browser.current_url}\n{self.text[:3000]}") from None

    @property
    def text(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").text

    def read(self, css: str) -> str:
        """Return the text of the first such element at once: what is replaced live cannot go stale in between."""
        return str(self.browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", css))

    def at(self, path: str) -> None:
        """The browser comes to show that address."""
        self.eventually(lambda: self.browser.current_url == self.address + path, what=f"the browser at {path}")

    def sign_in(self, name: str) -> None:
        """That user is signed in, and nobody else was."""
        self.browser.delete_all_cookies()
        self.go("/sign-in")
        self.find("[name=name]").send_keys(name)
        self.find("[name=password]").send_keys(PASSWORDS[name] + "\n")
        self.find("nav", text=name)

    def complaints(self) -> list[str]:
        """Return what the browser has complained of since the last call, violations of the policy among it."""
        return [entry["message"] for entry in self.browser.get_log("browser")]
