"""How a process says how it is, to whoever watches it: a small file that `payrelay status` reads."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from threading import Lock

RUNNING = "running"

KINDS = {"braked": "braked", "stopped": "stopped", "waiting for the database": "waiting"}
"""What a condition begins with, up to its colon, and its kind."""

log = logging.getLogger(__name__)


def kind_of(condition: str) -> str:
    """Return which of few kinds a condition is.

    >>> kind_of("braked: nothing passes"), kind_of("does not answer at 127.0.0.1:9092")
    ('braked', 'other')
    """
    return KINDS.get(condition.partition(":")[0], "other") if condition else ""


class Condition:
    """What a process has to say, by subject; written at each change, whole or not at all. Safe between threads."""

    def __init__(self, file: Path | None, name: str) -> None:
        self._file = file
        self._name = name
        self._said: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._lock = Lock()

    def tell(self, about: str, condition: str) -> None:
        """The subject's condition is known; an empty one takes the last word back."""
        with self._lock:
            if self._said.get(about, "") == condition:
                return
            if condition:
                log.warning("condition about=%s %s", about, condition)
                if kind_of(self._said.get(about, "")) != kind_of(condition):
                    self._since[about] = time.monotonic()
                self._said[about] = condition
            else:
                log.warning("condition about=%s over", about)
                del self._said[about], self._since[about]
            self._write()

    def ages(self) -> dict[tuple[str, str], float]:
        """Return since how many seconds each subject has been as it says, by subject and kind; none while all is well."""
        with self._lock:
            now = time.monotonic()
            return {(about, kind_of(said)): now - self._since[about] for about, said in self._said.items()}

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
            log.warning("condition not written: %s", error)
