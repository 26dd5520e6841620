"""Kafka Connect's REST interface, on requests.

Retried: 409 (a rebalance is on) and connection errors, until a deadline; nothing else, so that an error is seen at once.
Source: Kafka documentation, section 8.3 "REST API", https://kafka.apache.org/documentation/#connect_rest
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import requests

from outbox.errors import NotReady, PayrelayError, Unreachable
from outbox.retry import backoff_s

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 30.0
FAILED_S = 5.0
"""A task that is FAILED this long after a restart has failed again."""


class ConnectError(PayrelayError):
    """Kafka Connect refused the request."""


class NoConnector(PayrelayError):
    """There is no connector of this name: payrelay connect apply."""


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

    >>> first_cause("o.a.k.ConnectException: it broke\\n\\tat x\\nCaused by: java.io.IOException: no slot\\n\\tat y")
    'java.io.IOException: no slot'
    """
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return (causes or lines or [""])[-1 if causes else 0][:500]


class ConnectClient:
    """A worker's REST interface. Every call has time-outs; every write may be repeated."""

    def __init__(self, url: str, *, patience_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.patience_s = patience_s
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between us and the worker

    def config(self, name: str) -> dict[str, str] | None:
        """Return a connector's configuration, references to secrets unresolved; None where there is no such connector."""
        try:
            answer: dict[str, str] = self._call("GET", f"/connectors/{quote(name)}/config")
        except NoConnector:
            return None
        return answer

    def validate(self, config: dict[str, str]) -> list[str]:
        """Return what is wrong with a configuration, field by field; empty where all is well."""
        plugin = config["connector.class"].rsplit(".", 1)[-1]
        answer = self._call("PUT", f"/connector-plugins/{quote(plugin)}/config/validate", config)
        return [
            f"{item['value']['name']}: {message}" for item in answer["configs"] for message in item["value"]["errors"]
        ]

    def put_config(self, name: str, config: dict[str, str]) -> None:
        """The connector exists with this configuration."""
        self._call("PUT", f"/connectors/{quote(name)}/config", config)

    def delete(self, name: str) -> None:
        """There is no connector of this name; its source offsets are kept."""
        self._call("DELETE", f"/connectors/{quote(name)}")

    def status(self, name: str) -> ConnectorStatus:
        """Return what Kafka Connect says of a connector; raises NoConnector where there is none."""
        answer = self._call("GET", f"/connectors/{quote(name)}/status")
        return ConnectorStatus(
            name=answer["name"],
            state=answer["connector"]["state"],
            tasks=[
                TaskStatus(
                    id=task["id"],
                    state=task["state"],
                    worker=task["worker_id"],
                    cause=first_cause(task.get("trace", "")),
                )
                for task in answer["tasks"]
            ],
        )

    def restart(self, name: str, *, only_failed: bool = False) -> None:
        """Connector and tasks are being restarted, or only those of them that failed."""
        flags = f"includeTasks=true&onlyFailed={str(only_failed).lower()}"
        self._call("POST", f"/connectors/{quote(name)}/restart?{flags}")

    def pause(self, name: str) -> None:
        """The connector is told to pause: tasks stay, and read nothing."""
        self._call("PUT", f"/connectors/{quote(name)}/pause")

    def stop(self, name: str) -> None:
        """The connector is told to stop: its tasks end and let go of their slot."""
        self._call("PUT", f"/connectors/{quote(name)}/stop")

    def resume(self, name: str) -> None:
        """A paused or stopped connector is told to go on."""
        self._call("PUT", f"/connectors/{quote(name)}/resume")

    def offsets(self, name: str) -> list[dict[str, Any]]:
        """Return what Kafka Connect has noted of how far a connector has read: partition and offset, as `put_offsets` takes them."""
        found: list[dict[str, Any]] = self._call("GET", f"/connectors/{quote(name)}/offsets")["offsets"]
        return found

    def put_offsets(self, name: str, offsets: Sequence[Mapping[str, Any]]) -> None:
        """Kafka Connect has noted these offsets of a stopped connector; a partition without an offset is forgotten."""
        self._call("PATCH", f"/connectors/{quote(name)}/offsets", {"offsets": list(offsets)})

    def delete_offsets(self, name: str) -> None:
        """Kafka Connect has nothing noted of how far a stopped connector has read."""
        self._call("DELETE", f"/connectors/{quote(name)}/offsets")

    def wait_running(self, name: str, *, timeout_s: float = 60.0) -> ConnectorStatus:
        """Return the status once connector and tasks run; raises NotReady with the first cause otherwise."""

        begun = time.monotonic()

        def fails_for_good(status: ConnectorStatus) -> bool:
            # A restarted task is told as FAILED for a while yet.
            return time.monotonic() - begun > FAILED_S and any(task.state == "FAILED" for task in status.tasks)

        status = self._wait(name, lambda status: status.is_running or fails_for_good(status), timeout_s=timeout_s)
        if fails_for_good(status):
            causes = "; ".join(f"task {task.id}: {task.cause}" for task in status.tasks if task.state == "FAILED")
            raise NotReady(f"{name}: {causes}. Mend the cause, then: payrelay connect restart")
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
        raise NotReady(f"{name}: after {timeout_s:.0f} s: {seen}. See: payrelay logs connect")

    def _call(self, method: str, path: str, body: object = None) -> Any:
        deadline = time.monotonic() + self.patience_s
        for attempt in range(1, 1_000):
            problem: Exception
            try:
                answer = self._session.request(
                    method, self.url + path, json=body, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
                )
            except requests.ConnectionError as error:
                problem = Unreachable(f"Kafka Connect does not answer at {self.url}: {_short(error)}")
            except requests.Timeout as error:
                raise Unreachable(f"Kafka Connect at {self.url} took longer than {READ_TIMEOUT_S:.0f} s") from error
            except (
                requests.RequestException
            ) as error:  # cut off, redirected for ever, no URL: what else its calls raise
                raise Unreachable(f"Kafka Connect does not answer at {self.url}: {_short(error)}") from error
            else:
                if answer.status_code != requests.codes.conflict:
                    return _content(answer)
                problem = NotReady(f"Kafka Connect is rebalancing: {_message(answer)}")
            if time.monotonic() > deadline:
                raise problem
            time.sleep(backoff_s(attempt, first_s=0.1, cap_s=2.0, jitter=random.random()))  # noqa: S311 - no secret
        raise AssertionError("unreachable")


def _content(answer: requests.Response) -> Any:
    if answer.status_code == requests.codes.not_found and "/connectors/" in answer.url:
        raise NoConnector
    if not answer.ok:
        raise ConnectError(f"Kafka Connect: {answer.status_code} {_message(answer)}")
    try:
        return answer.json() if answer.content else None
    except ValueError as error:
        raise ConnectError(f"{answer.url} does not answer as Kafka Connect does: PAYRELAY_CONNECT_URL") from error


def _message(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])[:1000]
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]


def _short(error: Exception) -> str:
    return str(error.__cause__ or error).rsplit(":", 1)[-1].strip(" )'\"")[:200]
