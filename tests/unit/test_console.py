"""Sign-in: hashes, users, sessions, tries; under a clock of the test's."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from ops.console import sessions
from ops.console.app import listen
from ops.console.passwords import generated, hashed, matches
from ops.console.sessions import Session, Sessions, Tries
from ops.console.users import Role, User, parse_users, users_of
from ops.stack.state import StackFolder
from outbox.errors import Refused
from outbox.settings import Settings

OLGA = User(name="olga", role=Role.OPERATOR, password_hash="")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_hash_knows_its_password_and_no_other_and_never_comes_twice() -> None:
    password = generated()
    first, second = hashed(password), hashed(password, cost=16)
    assert first != second
    assert password not in first
    assert matches(password, first)
    assert matches(password, second)
    assert not matches(password + " ", first)
    assert not matches("", first)


@pytest.mark.parametrize("said", ["", "operator", "operator:", "operator:scrypt$1", "root:scrypt$2$8$3$J2oYOVUChTW49CczftwkJA==$HXmMFAo7NLuTxVyGIujSFcU4S3hx58jOAwfN8l8BjDM=",
                                  "operator:md5$2$8$3$aaaa$bbbb", "operator:scrypt$2$8$3$AAAA$"])  # fmt: skip
def test_a_user_that_is_none_is_refused_by_name(said: str) -> None:
    with pytest.raises(Refused, match="CONSOLE_USERS__OLGA"):
        parse_users({"olga": said})


def test_a_local_stack_makes_its_passwords_once_and_keeps_only_hashes(tmp_path: Path) -> None:
    folder = StackFolder(name="own", home=tmp_path)
    folder.make()
    users, passwords = users_of(Settings(), folder)
    assert {name: user.role for name, user in users.items()} == {"viewer": Role.VIEWER, "operator": Role.OPERATOR}
    assert all(matches(passwords[name], user.password_hash) for name, user in users.items())
    kept = folder.path / "console.json"
    assert not any(password in kept.read_text() for password in passwords.values())
    assert kept.stat().st_mode & 0o777 == 0o600
    assert users_of(Settings(), folder) == (users, {})


def test_without_a_user_there_is_no_console() -> None:
    with pytest.raises(Refused, match="nobody may sign in"):
        users_of(Settings(), None)
    named = Settings(console_users={"olga": SecretStr("operator:" + hashed("x", cost=2))})
    assert set(users_of(named, None)[0]) == {"olga"}


def test_a_session_ends_when_idle_when_old_and_when_closed(clock: Clock) -> None:
    kept = Sessions(clock)
    token = kept.open(OLGA)
    assert kept.find(token + "x") is None
    for _ in range(int(sessions.LIFE_S / sessions.IDLE_S)):
        clock.now += sessions.IDLE_S
        assert kept.find(token)
    clock.now += 1
    assert kept.find(token) is None, "used all the time, and twelve hours old"
    token = kept.open(OLGA)
    clock.now += sessions.IDLE_S + 1
    assert kept.find(token) is None
    token = kept.open(OLGA)
    kept.close(token)
    assert kept.find(token) is None


def test_of_too_many_sessions_the_longest_unused_is_over(clock: Clock) -> None:
    kept = Sessions(clock)
    first, second = kept.open(OLGA), kept.open(OLGA)
    assert kept.find(first)
    for _ in range(sessions.SESSIONS_MAX - 1):
        kept.open(OLGA)
    assert kept.find(first)
    assert kept.find(second) is None


def test_forms_are_of_one_session() -> None:
    session, other = (Session(user=OLGA, began=0, seen=0) for _ in range(2))
    assert session.takes(session.csrf)
    assert not session.takes(other.csrf)
    assert not session.takes("")


def test_five_wrong_passwords_a_minute_by_name_and_by_address(clock: Clock) -> None:
    tries = Tries(clock)
    for number in range(sessions.FAILURES_MAX):
        assert tries.wait_s("name olga", "address a") == 0
        tries.note("name olga", f"address {number}")
        clock.now += 1
    assert tries.wait_s("name olga", "address b") == pytest.approx(sessions.WINDOW_S - sessions.FAILURES_MAX)
    assert tries.wait_s("name viktor", "address 1") == 0
    clock.now += sessions.WINDOW_S - sessions.FAILURES_MAX
    assert tries.wait_s("name olga") == 0
    for _ in range(sessions.FAILURES_MAX):
        tries.note("name olga")
    tries.forget("name olga")
    assert tries.wait_s("name olga") == 0


def test_the_clear_is_for_this_machine_only() -> None:
    for host in ("0.0.0.0", "::", "203.0.113.1", "example"):
        with pytest.raises(Refused, match="CONSOLE_HTTPS"):
            listen(Settings(console_host=host, console_port=0))
    listen(Settings(console_port=0)).close()
    listen(Settings(console_host="0.0.0.0", console_port=0, console_https=True)).close()
