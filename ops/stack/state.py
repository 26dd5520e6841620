"""What a stack knows of itself, as files: `.payrelay/stacks/<name>/` with ports, secrets, states, logs and data.

A stack is up exactly while its supervisor holds the lock on `lock`: no process number is trusted, so neither a stale
state file nor a reboot can mislead.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import secrets
import socket
import struct
import sys
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.stack.processes import HTTP_SERVICES, INFRASTRUCTURE, port_names
from outbox.environment import Environment
from outbox.errors import Misused, NotReady

if TYPE_CHECKING:  # `payrelay status` reads files, and no settings
    from outbox.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PORTS = range(20_000, 30_000)
"""Below the kernel's range for outgoing connections, which could otherwise take a port between two starts."""

NAME = re.compile("[a-z0-9-]{1,40}")
STATE = "state.json"
SECRETS = "connect.secrets"
"""What Connect reads the connector's password from."""

CAN_ASK = hasattr(fcntl, "F_OFD_GETLK")
"""Linux tells who holds a lock; elsewhere one has to try, and a supervisor that starts tries for a while."""
FLOCK = struct.Struct("hhqqi0q")
LOCK_TRIES = 20


def file_stem(part: str) -> str:
    """Return what the files of a part are named after; no part's name has a hyphen of its own.

    >>> file_stem("worker:notifier:merchant"), part_of("worker-notifier-merchant")
    ('worker-notifier-merchant', 'worker:notifier:merchant')
    """
    return part.replace(":", "-")


def part_of(stem: str) -> str:
    """Return the part whose files are named after this."""
    return stem.replace("-", ":")


@dataclass(kw_only=True)
class PartState:
    """One row of `payrelay status`."""

    name: str
    state: str = "stopped"
    pid: int | None = None
    port: int | None = None
    metrics_port: int | None = None
    version: str = ""
    since: str = ""
    restarts: int = 0
    last_exit: str = ""
    condition: str = ""


@dataclass(frozen=True, kw_only=True)
class StackFolder:
    """A stack's own folder and what lies in it."""

    name: str
    home: Path = field(default_factory=lambda: (Environment().payrelay_home or ROOT / ".payrelay").resolve())

    def __post_init__(self) -> None:
        """Raises Misused where the name is none: it becomes a folder's, which `down --wipe` removes."""
        if not NAME.fullmatch(self.name):
            raise Misused(f"{self.name!r} names no stack: a name has 1 to 40 characters of a-z, 0-9 and -")

    @property
    def path(self) -> Path:
        return self.home / "stacks" / self.name

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def conditions(self) -> Path:
        return self.path / "conditions"

    @property
    def stops(self) -> Path:
        return self.path / "stops"

    def as_connect_reads_it(self, name: str) -> str:
        """Return the path of a file of this folder for Connect, which runs in it.

        A reference to a secret has to be absolute, and can hold neither a colon nor a brace, nor a list of paths a comma.
        """
        return f"/proc/self/cwd/{name}" if sys.platform == "linux" else str(self.path / name)

    def make(self) -> None:
        """The folder exists, readable by its owner only, with a state file."""
        for folder in (self.path, self.logs, self.conditions, self.stops):
            folder.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        if not (self.path / STATE).exists():
            self.write(STATE, {})

    def read(self, name: str) -> dict[str, Any]:
        """Return a JSON file's content; empty where it is missing or torn."""
        try:
            content = json.loads((self.path / name).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, name: str, content: object) -> None:
        """The file holds the content, whole or not at all, and only its owner can read it."""
        target = self.path / name
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file, indent=1)
        scratch.replace(target)

    def lock(self) -> int | None:
        """Return a descriptor that holds the stack's lock until it is closed; None while somebody else holds it."""
        self.make()
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(LOCK_TRIES):
            if _lock(descriptor):
                return descriptor
            if CAN_ASK:
                break
            time.sleep(0.01)
        os.close(descriptor)
        return None

    def is_up(self) -> bool:
        """Return whether a supervisor holds the lock. Only asks for it: whoever looks keeps no supervisor from starting."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return _is_locked(descriptor)
        finally:
            os.close(descriptor)

    def stopped_parts(self) -> dict[str, str]:
        """Return the parts that are to stand still, and why.

        A stop is a file of the part's name: an operator's stays until he takes it back, a command's (`PART@…`) holds for as
        long as that command has it locked, so that one that was killed leaves nothing stopped. What is not locked is removed.
        """
        stopped: dict[str, str] = {}
        for path in self.stops.glob("[!.]*"):
            part, _, of_command = path.name.partition("@")
            try:
                with path.open() as file:
                    if of_command and _is_shareable(file.fileno()):
                        path.unlink()
                        continue
                    stopped[part_of(part)] = file.read(200)
            except FileNotFoundError:
                continue
        return stopped

    def ports(self) -> dict[str, int]:
        """Return a free port for each name: the ones of the last time where they are still free."""
        kept = self.read("ports.json")
        ports: dict[str, int] = {}
        for name in port_names():
            port = kept.get(name)
            while not isinstance(port, int) or port in ports.values() or not _is_free(port):
                port = random.choice(PORTS)  # noqa: S311 - no secret
            ports[name] = port
        self.write("ports.json", ports)
        return ports

    def secrets(self) -> dict[str, str]:
        """Return the stack's passwords and signing secrets, made at the first call. What another version of the code has made stays."""
        from outbox.settings import CONNECTOR, READER, SEARCHER, SERVICES

        kept = self.read("secrets.json")
        wanted = [*SERVICES, READER, SEARCHER, CONNECTOR, "owner"]
        made = kept | {name: kept.get(name) or secrets.token_urlsafe(24) for name in wanted}
        for name in ("bank_notify", "bank_link"):
            made[name] = kept.get(name) or "whsec_" + b64encode(secrets.token_bytes(32)).decode()
        if made != kept:
            self.write("secrets.json", made)
            scratch = self.path / SECRETS
            scratch.touch(mode=0o600)
            scratch.write_text(f"debezium={made[CONNECTOR]}\n")
        return {str(name): str(value) for name, value in made.items()}

    def settings(self, **overrides: Any) -> Settings:
        """Return the settings of this stack's parts: its own addresses, and the environment's for all else."""
        from outbox.settings import CONNECTOR, READER, SEARCHER, SERVICES, Settings

        ports = self.read("ports.json")
        if not ports:
            raise FileNotFoundError(f"there is no stack {self.name!r} here. To start the local one: payrelay up")
        addressed = (*INFRASTRUCTURE, *(f"service:{name}" for name in HTTP_SERVICES))
        if missing := [name for name in addressed if not isinstance(ports.get(name), int)]:
            raise NotReady(
                f"{self.path / 'ports.json'} has no port for {', '.join(missing)}: payrelay down, payrelay up"
            )
        keys = self.secrets()

        def dsn(role: str, password: str) -> str:
            return f"postgresql://{role}:{password}@127.0.0.1:{ports['postgres']}/payrelay"

        local: dict[str, Any] = {
            "database_url": dsn("postgres", keys["owner"]),
            "dsn": {role: dsn(role, keys[role]) for role in (*SERVICES, READER, SEARCHER)},
            "connector_dsn": dsn(CONNECTOR, keys[CONNECTOR]),
            "connector_password_ref": f"${{file:{self.as_connect_reads_it(SECRETS)}:debezium}}",
            "kafka_bootstrap": f"127.0.0.1:{ports['kafka']}",
            "connect_url": f"http://127.0.0.1:{ports['connect']}",
            **{f"{name}_port": ports[f"service:{name}"] for name in HTTP_SERVICES},
            **{
                f"{name}_url": f"http://127.0.0.1:{ports[f'service:{name}']}"
                for name, service in HTTP_SERVICES.items()
                if service.has_url
            },
            "bank_notify_secret": keys["bank_notify"],
            "bank_link_secret": keys["bank_link"],
            "allow_private_receivers": True,
            "heartbeat_interval_ms": 1_000,
        }
        return Settings(**{**local, **overrides})

    def states(self) -> list[PartState]:
        """Return what the supervisor last wrote of its parts, as far as their processes are there; all stopped where it is gone."""
        content = self.read(STATE)
        try:
            states = [PartState(**row) for row in content.get("parts", [])]
            supervisor = content["supervisor"] if states else None
        except (TypeError, KeyError) as error:
            raise NotReady(f"{self.path / STATE} was written by another version: payrelay down, payrelay up") from error
        is_up = self.is_up()
        for state in states:
            if not is_up:
                state.state, state.pid, state.condition = "stopped", None, ""
            elif state.pid is not None and not _is_child(state.pid, supervisor):
                state.state, state.pid, state.condition = (
                    "ended",
                    None,
                    "seen by this command: payrelay logs supervisor",
                )
        return states

    def write_states(
        self, states: list[PartState], *, started_at: float, progress: Mapping[str, int], waits: str
    ) -> None:
        """The state file says what each part is doing, how often each has made progress while it was starting, what all wait for, and
        since when (Unix seconds) the calling process supervises them.
        """
        parts = [asdict(state) for state in states]
        content = {
            "supervisor": os.getpid(),
            "started_at": started_at,
            "parts": parts,
            "progress": dict(progress),
            "waits": waits,
        }
        self.write(STATE, content)


def _is_child(pid: int, parent: object) -> bool:
    """Return whether that process runs and is the parent's: a number may have been given to another since."""
    import psutil  # of the local stack alone

    try:
        process = psutil.Process(pid)
        return bool(process.ppid() == parent and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # the system hides whose it is, and not that it is there
        return True


def _lock(descriptor: int) -> bool:
    """Return whether the file is locked by this descriptor now, twice over: `flock` keeps every second supervisor away, those of older
    versions too, and the lock of the open file description can be asked for without being taken.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if CAN_ASK:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except BlockingIOError:
        return False
    return True


def _is_locked(descriptor: int) -> bool:
    if not CAN_ASK:
        return not _is_shareable(descriptor)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return bool(FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _is_shareable(descriptor: int) -> bool:
    """Return whether nobody holds the file by `flock`; those who ask do not stand in each other's way."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
