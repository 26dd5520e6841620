"""Who is signed in, and how often a wrong password may be tried. Both live in the process: its end signs everyone out."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from threading import Lock

from ops.console.users import Role, User

IDLE_S = 30 * 60
"""After this long without a request a session is over."""
LIFE_S = 12 * 3600
"""After this long it is over anyway."""
SESSIONS_MAX = 1_000

FAILURES_MAX = 5
"""Wrong passwords of one name, or from one address, within the window; then it has to pass."""
WINDOW_S = 60.0
REMEMBERED_MAX = 10_000


@dataclass(kw_only=True)
class Session:
    """One sign-in."""

    user: User
    began: float
    seen: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """What every form of this session carries."""

    @property
    def may_act(self) -> bool:
        return self.user.role is Role.OPERATOR

    def takes(self, csrf: str) -> bool:
        """Return whether a form is one of this session's."""
        return compare_digest(csrf.encode(), self.csrf.encode())


class Sessions:
    """The sessions by their tokens' digests: what is in memory is good for no request. Safe between threads."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: OrderedDict[bytes, Session] = OrderedDict()
        self._lock = Lock()

    def open(self, user: User) -> str:
        """The user is signed in by the returned token; of too many sessions, the longest unused is over."""
        token, now = secrets.token_urlsafe(32), self._now()
        with self._lock:
            self._kept[_digest(token)] = Session(user=user, began=now, seen=now)
            while len(self._kept) > SESSIONS_MAX:
                self._kept.popitem(last=False)
        return token

    def find(self, token: str) -> Session | None:
        """Return the token's session, used now; None where there is none any more."""
        digest = _digest(token)
        with self._lock:
            session = self._live(digest)
            if session is not None:
                session.seen = self._now()
                self._kept.move_to_end(digest)
            return session

    def holds(self, token: str) -> bool:
        """Return whether the token is good; this is no use of it: a page left open does not keep anybody signed in."""
        with self._lock:
            return self._live(_digest(token)) is not None

    def close(self, token: str) -> None:
        """The token is good for nothing any more."""
        with self._lock:
            self._kept.pop(_digest(token), None)

    def _live(self, digest: bytes) -> Session | None:
        now, session = self._now(), self._kept.get(digest)
        if session is not None and (now - session.seen > IDLE_S or now - session.began > LIFE_S):
            del self._kept[digest]
            return None
        return session


class Tries:
    """Counts wrong passwords by name and by address. Safe between threads."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failed: OrderedDict[str, list[float]] = OrderedDict()
        self._lock = Lock()

    def wait_s(self, *who: str) -> float:
        """Return for how long none of these may try again; 0 where they may now."""
        now = self._now()
        with self._lock:
            waits = [0.0]
            for key in who:
                recent = [at for at in self._failed.get(key, ()) if now - at < WINDOW_S]
                if len(recent) >= FAILURES_MAX:
                    waits.append(WINDOW_S - (now - recent[-FAILURES_MAX]))
            return max(waits)

    def note(self, *who: str) -> None:
        """Each of these has tried again. Noted before the password is looked at, so that tries at once all count."""
        now = self._now()
        with self._lock:
            for key in who:
                self._failed[key] = [*self._failed.get(key, ())[-FAILURES_MAX + 1 :], now]
                self._failed.move_to_end(key)
            while len(self._failed) > REMEMBERED_MAX:
                self._failed.popitem(last=False)

    def forget(self, *who: str) -> None:
        """These have shown the right password."""
        with self._lock:
            for key in who:
                self._failed.pop(key, None)


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()
