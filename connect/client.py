"""Kafka Connect's REST interface, on requests.

Retried: 409 (a rebalance is on) and connection errors, until a deadline; nothing else, so that an error is seen at once.
Whatever answers at that address is bounded in time and bytes, and believed only where it speaks as Kafka Connect does.
Source: Kafka documentation, section 8.3 "REST API", https://kafka.apache.org/documentation/#connect_rest
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from connect.deadline import session
from outbox.errors import NotReady, PayrelayError, UnknownName, Unreachable
from outbox.retry import backoff_s

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 30.0
"""For a response as a whole."""
FAILED_S = 5.0
"""A task that is FAILED this long after a restart has failed again."""
BYTES_MAX = 16 * 1024 * 1024
"""Of an answer; the largest, a status with stack traces, has some kilobytes."""

Taken = TypeVar("Taken")


class ConnectError(PayrelayError):
    """Kafka Connect refused the request."""


class NoConnector(UnknownName):
    """There is no connector of this name: payrelay connect apply --execute."""


class _BrokenOff(Exception):
    """An answer ended before it was whole."""


@dataclass(frozen=True, kw_only=True)
class TaskStatus:
    """A task as Kafka Connect sees it. RUNNING does not mean that events flow: `payrelay doctor` judges that."""

    id: int
    state: str
    worker: str
    cause: str
    """The first cause in a failed task's trace; empty otherwise."""


@dataclass(frozen=True, kw_only=True)
class ConnectorStatus:
    """A connector and its tasks as Kafka Connect sees them."""

    name: str
    state: str
    tasks: list[TaskStatus]

    @property
    def is_running(self) -> bool:
        return self.state == "RUNNING" and bool(self.tasks) and all(task.state == "RUNNING" for task in self.tasks)


def first_cause(trace: str) -> str:
    """Return the innermost cause of a Java stack trace, in one line.

    What was suppressed on the way, as closing failed after the failure, is indented, with causes of its own: it is none.

    >>> first_cause("o.a.k.ConnectException: it broke\\n\\tat x\\nCaused by: java.io.IOException: no slot\\n\\tat y")
    'java.io.IOException: no slot'
    >>> first_cause("A: it broke\\n\\tat x\\n\\tSuppressed: B: close\\n\\tCaused by: C: socket\\nCaused by: D: no slot\\n\\tat y")
    'D: no slot'
    """
    lines = [line.rstrip() for line in trace.splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    known = [cause for cause in causes if not cause.startswith("[CIRCULAR REFERENCE")]
    return (known or lines[:1] or [""])[-1].strip()[:500]


class ConnectClient:
    """A worker's REST interface. Every call has time-outs; every write may be repeated."""

    def __init__(self, url: str, *, patience_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.patience_s = patience_s
        self._session = session()  # no proxy between us and the worker

    def config(self, name: str) -> dict[str, str] | None:
        """Return a connector's configuration, references to secrets unresolved; None where there is no such connector."""
        try:
            return self._call("GET", _path(name, "config"), take=_config)
        except NoConnector:
            return None

    def validate(self, config: dict[str, str]) -> list[str]:
        """Return what is wrong with a configuration, field by field; empty where all is well."""
        plugin = config["connector.class"].rsplit(".", 1)[-1]
        return self._call("PUT", f"/connector-plugins/{quote(plugin, safe='')}/config/validate", config, take=_problems)

    def put_config(self, name: str, config: dict[str, str]) -> None:
        """The connector exists with this configuration."""
        self._call("PUT", _path(name, "config"), config, take=lambda content: content["name"])

    def delete(self, name: str) -> None:
        """There is no connector of this name; its source offsets are kept."""
        self._call("DELETE", _path(name), take=_nothing)

    def status(self, name: str) -> ConnectorStatus:
        """Return the status that Kafka Connect reports for a connector; raises NoConnector where there is none."""
        return self._call("GET", _path(name, "status"), take=_status)

    def restart(self, name: str, *, only_failed: bool = False) -> None:
        """The connector and its tasks are being restarted, or only those that failed."""
        flags = f"includeTasks=true&onlyFailed={str(only_failed).lower()}"
        self._call("POST", _path(name, f"restart?{flags}"), take=lambda content: content and content["connector"])

    def pause(self, name: str) -> None:
        """The connector is asked to pause: its tasks stay and read nothing."""
        self._call("PUT", _path(name, "pause"), take=_nothing)

    def stop(self, name: str) -> None:
        """The connector is asked to stop: its tasks end and release their slot."""
        self._call("PUT", _path(name, "stop"), take=_nothing)

    def resume(self, name: str) -> None:
        """A paused or stopped connector is asked to resume."""
        self._call("PUT", _path(name, "resume"), take=_nothing)

    def offsets(self, name: str) -> list[dict[str, Any]]:
        """Return the offsets that Kafka Connect stores for a connector: partition and offset, as `put_offsets` takes them."""
        return self._call("GET", _path(name, "offsets"), take=_offsets)

    def put_offsets(self, name: str, offsets: Sequence[Mapping[str, Any]]) -> None:
        """Kafka Connect stores these offsets for a stopped connector; a partition without an offset has none any more."""
        self._call("PATCH", _path(name, "offsets"), {"offsets": list(offsets)}, take=lambda content: content["message"])

    def delete_offsets(self, name: str) -> None:
        """Kafka Connect stores no offset for a stopped connector any more."""
        self._call("DELETE", _path(name, "offsets"), take=lambda content: content["message"])

    def wait_running(self, name: str, *, timeout_s: float = 60.0) -> ConnectorStatus:
        """Return the status once connector and tasks run; raises NotReady with the first cause otherwise."""

        begun = time.monotonic()

        def fails_for_good(status: ConnectorStatus) -> bool:
            # A restarted task is reported as FAILED for a while yet.
            return time.monotonic() - begun > FAILED_S and any(task.state == "FAILED" for task in status.tasks)

        status = self._wait(name, lambda status: status.is_running or fails_for_good(status), timeout_s=timeout_s)
        if fails_for_good(status):
            causes = "; ".join(f"task {task.id}: {task.cause}" for task in status.tasks if task.state == "FAILED")
            raise NotReady(f"connector {name} has failed: {causes}. Fix the cause, then: payrelay connect restart")
        return status

    def wait_stopped(self, name: str, *, timeout_s: float = 60.0) -> ConnectorStatus:
        """Return the status once the connector is stopped and has no task any more; raises NotReady otherwise."""
        return self._wait(name, lambda status: status.state == "STOPPED" and not status.tasks, timeout_s=timeout_s)

    def _wait(self, name: str, done: Any, *, timeout_s: float) -> ConnectorStatus:
        deadline = time.monotonic() + timeout_s
        seen = "unknown"
        while time.monotonic() < deadline:
            try:
                status = self.status(name)
            except NoConnector:  # the worker may not have read its own configuration topic yet
                seen = "no connector of this name"
            else:
                if done(status):
                    return status
                seen = f"connector {status.state}, tasks {[task.state for task in status.tasks]}"
            time.sleep(0.05)
        raise NotReady(f"{name} is not ready after {timeout_s:.0f} s: {seen}. Its log says why: payrelay logs connect")

    def _call(self, method: str, path: str, body: object = None, *, take: Callable[[Any], Taken]) -> Taken:
        """Return what `take` makes of the answer's content. Raises Unreachable where the answer is not Kafka Connect's."""
        deadline = time.monotonic() + self.patience_s
        for attempt in range(1, 1_000):
            problem: Exception
            try:
                with self._session.request(
                    method, self.url + path, json=body, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                    stream=True, allow_redirects=False,
                ) as answer:  # fmt: skip
                    content = _read(answer)
            except (
                requests.exceptions.InvalidURL,
                requests.exceptions.InvalidSchema,
                requests.exceptions.MissingSchema,
            ) as error:
                raise Unreachable(f"PAYRELAY_CONNECT_URL is no address of Kafka Connect: {self.url!r}") from error
            except requests.Timeout as error:
                if not isinstance(error, requests.ConnectTimeout):
                    raise Unreachable(f"Kafka Connect at {self.url} took longer than {READ_TIMEOUT_S:.0f} s") from error
                problem = Unreachable(f"Kafka Connect does not answer at {self.url}: {_short(error)}")
            except (requests.RequestException, HTTPError, HTTPException, OSError, _BrokenOff) as error:
                problem = Unreachable(f"Kafka Connect does not answer at {self.url}: {_short(error)}")
            else:
                if answer.status_code != requests.codes.conflict:
                    return self._taken(f"{method} {path}", answer, content, take)
                problem = NotReady(f"Kafka Connect is rebalancing, try again: {_message(content)}")
            if time.monotonic() > deadline:
                raise problem
            time.sleep(backoff_s(attempt, first_s=0.1, cap_s=2.0, jitter=random.random()))  # noqa: S311 - no secret
        raise AssertionError("unreachable")

    def _taken(self, request: str, answer: requests.Response, content: bytes, take: Callable[[Any], Taken]) -> Taken:
        code, kind = answer.status_code, answer.headers.get("content-type", "no type").partition(";")[0]
        stranger = f"{self.url} is not Kafka Connect ({request}: {code} {kind}): correct PAYRELAY_CONNECT_URL"
        if answer.is_redirect:
            to = answer.headers.get("location", "")
            raise Unreachable(f"{stranger}; it redirects to {to[:200]!r}")
        try:
            said: Any = json.loads(content) if content else None
            if not answer.ok:
                _refuse(code, str(said["message"]), request, stranger)
            if said is None and code == requests.codes.ok:
                raise ValueError("nothing")
            return take(said)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise Unreachable(stranger) from error


def _path(name: str, rest: str = "") -> str:
    return f"/connectors/{quote(name, safe='')}" + (f"/{rest}" if rest else "")


def _read(answer: requests.Response) -> bytes:
    """Return an answer's content. Raises as requests does, also for an answer that arrives too slowly."""
    content = b""
    try:
        while piece := answer.raw.read1(64 * 1024, decode_content=True):
            content += piece
            if len(content) > BYTES_MAX:
                raise _BrokenOff(f"its answer is longer than {BYTES_MAX} bytes")
    except ReadTimeoutError as error:
        raise requests.ReadTimeout from error
    length = answer.headers.get("content-length", "")
    if answer.raw.length_remaining and length:
        raise _BrokenOff(f"status {answer.status_code}, and its answer broke off")
    return content


def _refuse(code: int, message: str, request: str, stranger: str) -> None:
    """Raises the error that an unsuccessful answer means: NoConnector only where Kafka Connect names the connector."""
    method, path = request.split(" ", 1)
    name = unquote(path.removeprefix("/connectors/").partition("/")[0])
    if code == requests.codes.not_found and path.startswith("/connectors/") and name in message:
        raise NoConnector(f"there is no connector {name}: payrelay connect apply --execute")
    if code == requests.codes.not_found:
        raise Unreachable(f"{stranger}; it says: {message[:200]}")
    raise ConnectError(f"Kafka Connect refuses {method} {path}: {code} {message[:1000]}")


def _nothing(content: Any) -> None:
    if content is not None:
        raise ValueError("something")


def _config(content: Any) -> dict[str, str]:
    return dict(content.items())


def _problems(content: Any) -> list[str]:
    return [f"{item['value']['name']}: {message}" for item in content["configs"] for message in item["value"]["errors"]]


def _status(content: Any) -> ConnectorStatus:
    return ConnectorStatus(
        name=content["name"],
        state=content["connector"]["state"],
        tasks=[
            TaskStatus(
                id=task["id"],
                state=task["state"],
                worker=task["worker_id"],
                cause=first_cause(task.get("trace", "")),
            )
            for task in content["tasks"]
        ],
    )


def _offsets(content: Any) -> list[dict[str, Any]]:
    return [dict(entry) for entry in content["offsets"]]


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])[:1000]
    except (ValueError, LookupError, TypeError):
        return content[:300].decode(errors="replace")


def _short(error: Exception) -> str:
    return str(error.__cause__ or error).rsplit(":", 1)[-1].strip(" )'\"")[:200] or type(error).__name__
