"""Who may sign in, as settings name them, or as the local stack's folder keeps them: name -> `role:hash`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ops.console.passwords import generated, hashed, matches
from ops.stack.state import StackFolder
from outbox.errors import Misused
from outbox.settings import Settings

FILE = "console.json"


class Role(StrEnum):
    """What a user may do."""

    VIEWER = "viewer"
    """Look at everything."""
    OPERATOR = "operator"
    """And act."""


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody who may sign in."""

    name: str
    role: Role
    password_hash: str


def parse_users(given: Mapping[str, str]) -> dict[str, User]:
    """Return the users by their names; raises Refused naming the one that is not of the form role:hash."""
    users = {}
    for name, said in given.items():
        role, _, password_hash = said.partition(":")
        try:
            if not re.fullmatch(r"(?=.{1,64}$)[a-z0-9]+(_[a-z0-9]+)*", name):
                raise ValueError(name)
            users[name] = User(name=name, role=Role(role), password_hash=password_hash)
            matches("", password_hash)
        except ValueError:
            raise Misused(
                f"PAYRELAY_CONSOLE_USERS__{name.upper()} is not a user: it must be viewer or operator, a colon and a hash. To print one: "
                f"payrelay console user {name}"
            ) from None
    return users


def users_of(settings: Settings, folder: StackFolder | None) -> tuple[dict[str, User], dict[str, str]]:
    """Return who may sign in, and the passwords that were made just now, which nobody can read again.

    Where settings name nobody, a local stack has a viewer and an operator, made at the first call. Raises Refused where
    there is no local stack either.
    """
    if settings.console_users:
        return parse_users({name: said.get_secret_value() for name, said in settings.console_users.items()}), {}
    if folder is None:
        raise Misused(
            "nobody may sign in, because no user is set. Set PAYRELAY_CONSOLE_USERS__NAME to the value that this prints: payrelay console user NAME"
        )
    if kept := folder.read(FILE):
        return parse_users(kept), {}
    passwords = {role.value: generated() for role in Role}
    made = {name: f"{name}:{hashed(password)}" for name, password in passwords.items()}
    folder.write(FILE, made)
    return parse_users(made), passwords
