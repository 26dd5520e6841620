"""A process's own condition, in a small file that `payrelay status` reads."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

RUNNING = "running"

RELAPSE_S = 5.0
"""A subject that is well for less time than this counts as not having been well."""

KINDS = {"braked": "braked", "stopped": "stopped", "waiting for the database": "waiting"}
"""What a condition begins with, up to its colon, and its kind."""

log = logging.getLogger(__name__)


def kind_of(condition: str) -> str:
    """Return which of few kinds a condition is.

    >>> kind_of("braked: nothing passes"), kind_of("does not answer at 127.0.0.1:9092")
    ('braked', 'other')
    """
    return KINDS.get(condition.partition(":")[0], "other")


@dataclass
class _Spell:
    """How long a subject has not been well, in monotonic seconds."""

    kind: str
    since: float
    over_at: float | None = None

    def is_over(self, now: float) -> bool:
        return self.over_at is not None and now - self.over_at > RELAPSE_S


def _spell(before: _Spell | None, kind: str, now: float) -> _Spell:
    goes_on = before is not None and before.kind == kind and not before.is_over(now)
    return _Spell(kind, before.since if goes_on and before else now)


class Condition:
    """What a process has to say, by subject; written at each change, whole or not at all. Safe between threads."""

    def __init__(self, file: Path | None, name: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._name = name
        self._now = now
        self._said: dict[str, str] = {}
        self._spells: dict[str, _Spell] = {}
        self._lock = Lock()

    def tell(self, about: str, condition: str) -> None:
        """The subject's condition is known; an empty one takes the last word back."""
        with self._lock:
            if self._said.get(about, "") == condition:
                return
            if condition:
                log.warning("condition about=%s %s", about, condition)
                self._said[about] = condition
                self._spells[about] = _spell(self._spells.get(about), kind_of(condition), self._now())
            else:
                log.warning("condition about=%s over", about)
                del self._said[about]
                self._spells[about].over_at = self._now()
            self._write()

    def ages(self) -> dict[tuple[str, str], float]:
        """Return since how many seconds each subject has been as it says, by subject and kind; none while all is well.

        A partition that is braked is tried again each second, and says for a moment that it is well: that does not count.
        """
        now = self._now()
        with self._lock:
            self._spells = {about: spell for about, spell in self._spells.items() if not spell.is_over(now)}
            return {(about, spell.kind): now - spell.since for about, spell in self._spells.items()}

    def ready(self) -> None:
        """The process does its work."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        content = {self._name: RUNNING} if not self._said else {f"{key}": text for key, text in self._said.items()}
        scratch = self._file.with_suffix(".tmp")
        try:
            scratch.write_text(json.dumps(content))
            scratch.replace(self._file)
        except OSError as error:  # a full disk must not end what goes on without the file
            log.warning("the condition cannot be written, so payrelay status shows an older one: %s", error)
