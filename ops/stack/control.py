"""Start, watch and stop a stack from outside; the supervisor does the work."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from ops.stack import class_archive
from ops.stack.parts import PostgresPlace, tied
from ops.stack.programs import installed_programs, postgres_bin
from ops.stack.state import STATE, PartState, StackFolder, file_stem
from outbox.errors import NotReady, Refused, UnknownName
from outbox.quoting import quoted

UP_S = 120.0
"""For so long nothing may come up and no part make progress; then `up` and `start` give up."""
RESTARTS_MAX = 5
"""A part that has ended so often while it was waited for makes no progress, whatever it does in between."""
DOWN_S = 60.0
STOP_S = 60.0
POLL_S = 0.05

_started: dict[Path, subprocess.Popen[bytes]] = {}
"""Supervisors that this process has started, to be waited for when they end."""


def up(
    folder: StackFolder,
    *,
    infrastructure: bool = False,
    with_parent: bool = False,
    watch: Callable[[list[PartState]], None] = lambda _: None,
) -> bool:
    """Every part of the stack runs and the connector has passed its first heartbeat; returns whether it was down before.

    May be repeated: parts that failed or were stopped are started, running ones left alone. With `with_parent` the stack ends when the
    calling thread does. A part that makes progress, as in a long recovery, is waited for. Raises NotReady with the parts that do not
    come up; they are left for `status` and `logs`.
    """
    _require_usable_paths(folder)
    folder.make()
    for name in folder.stopped_parts():
        _stop_file(folder, name).unlink(missing_ok=True)
    started = not folder.is_up()
    if started:
        _start_supervisor(folder, infrastructure=infrastructure, with_parent=with_parent)
    else:
        _signal_supervisor(folder, signal.SIGHUP)
    patience = _Patience(UP_S)
    trying: set[str] = set()
    while not patience.is_over(folder):
        content = folder.read(STATE)
        if "error" in content or not folder.is_up():
            break
        states = folder.states()
        watch(states)
        if states and all(state.state == "running" for state in states) and _heart_beats(folder, content["started_at"]):
            return started
        trying |= {state.name for state in states if state.state != "failed"}
        if any(state.state == "failed" and state.name in trying for state in states):
            break  # and not only still, from before
        time.sleep(POLL_S)
    message, *details = _why(folder)
    raise NotReady(message, details=details)


def _require_usable_paths(folder: StackFolder) -> None:
    """Raises Refused where a program of others cannot live with where we are."""
    if re.search("[,:}]", folder.as_connect_reads_it(STATE)):
        raise Refused(f"Kafka Connect cannot name a file in {folder.path}: set PAYRELAY_HOME to a path without , : }}")
    if re.search(r'[$"`]', str(postgres_bin())):
        raise Refused(f'initdb cannot run in {postgres_bin()}: move the checkout to a path without $ " `')


def down(folder: StackFolder, *, wipe: bool = False) -> bool:
    """Nothing of the stack runs; returns whether it did. Data stays unless wiped. May be repeated.

    Raises Refused, before it stops anything, where the folder to be wiped is none that a stack was made in.
    """
    if wipe:
        _require_stack(folder)
    was_up = folder.is_up()
    if was_up:
        _signal_supervisor(folder, signal.SIGTERM)
        deadline = time.monotonic() + DOWN_S
        while folder.is_up():
            if time.monotonic() > deadline:
                _signal_supervisor(folder, signal.SIGKILL)  # the parts die with it
                deadline = time.monotonic() + DOWN_S
            time.sleep(POLL_S)
    if (supervisor := _started.pop(folder.path, None)) is not None:
        supervisor.wait()
    class_archive.keep(installed_programs(folder.home), folder.path)
    if wipe:
        place = PostgresPlace.of(folder)
        if place.mode == "nobody":
            _remove(place.data.parent)
        _remove_stack(folder.path)
    return was_up


def _require_stack(folder: StackFolder) -> None:
    if folder.path.is_symlink() or (folder.path.exists() and not (folder.path / STATE).is_file()):
        raise Refused(f"{folder.path} holds no {STATE}, so no stack was made there, and nothing was removed")


def _remove_stack(path: Path) -> None:
    """The folder is gone; the file that shows whose it is goes last, so that what was cut off can be repeated. Raises as `_remove`."""
    with contextlib.suppress(FileNotFoundError):
        for item in list(path.iterdir()):
            if item.name != STATE:
                _remove(item)
    _remove(path)


def _remove(path: Path) -> None:
    """The folder or file is gone. Raises NotReady where it, or something in it, cannot be removed."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        if path.exists():  # something else removed a file at the same time
            shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        raise NotReady(f"{path} is not wholly removed: {error}. Repeat the command once the cause is fixed") from error


def stop(folder: StackFolder, parts: Sequence[str]) -> None:
    """The parts have ended, and stay so until `start` or `up`. May be repeated.

    Raises Refused where the stack is not up or has no such part, NotReady where one does not end.
    """
    _require(folder, parts)
    for part in parts:
        _stop_file(folder, part).write_text("payrelay stop")
    _wait_for(folder, parts, "stopped", limit_s=STOP_S)


def start(folder: StackFolder, parts: Sequence[str]) -> None:
    """The parts run. May be repeated. Raises Refused where the stack is not up or has no such part, NotReady where one does not come up."""
    _require(folder, parts)
    for part in parts:
        _stop_file(folder, part).unlink(missing_ok=True)
    if held := [part for part in parts if part in folder.stopped_parts()]:
        raise Refused(f"a running command has stopped {', '.join(held)}, and starts it again when it ends")
    _signal_supervisor(folder, signal.SIGHUP)
    _wait_for(folder, parts, "running", limit_s=UP_S)


def restart(folder: StackFolder, parts: Sequence[str]) -> None:
    """The parts have ended and run again, also those that an operator had stopped. Raises what `stop` and `start` raise.

    A restart that is killed leaves no part stopped.
    """
    with stopped(folder, parts, reason="payrelay restart"):
        pass
    start(folder, parts)


@contextlib.contextmanager
def stopped(folder: StackFolder, parts: Sequence[str], *, reason: str) -> Generator[None]:
    """The parts stand still meanwhile, and run again afterwards, also after an error; a command that is killed leaves none stopped.

    Where an operator has stopped one, it stays so. Raises what `stop` raises.
    """
    _require(folder, parts)
    with contextlib.ExitStack() as locks:
        try:
            for part in parts:
                locks.enter_context(_held(folder, part, reason))
            _wait_for(folder, parts, "stopped", limit_s=STOP_S)
            yield
        finally:
            locks.close()
    _wait_for(folder, [part for part in parts if part not in folder.stopped_parts()], "running", limit_s=UP_S)


@contextlib.contextmanager
def _held(folder: StackFolder, part: str, reason: str) -> Generator[None]:
    target = _stop_file(folder, f"{part}@{os.getpid()}-{secrets.token_hex(4)}")
    scratch = target.with_name(f".{target.name}")
    with scratch.open("w") as file:
        file.write(reason)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        scratch.replace(target)  # locked before it has its name: the supervisor never finds it free
        try:
            yield
        finally:
            target.unlink(missing_ok=True)


def _stop_file(folder: StackFolder, part: str) -> Path:
    return folder.stops / file_stem(part)


def _require(folder: StackFolder, parts: Sequence[str]) -> None:
    if not folder.is_up():
        raise Refused("the stack is down. To start it: payrelay up")
    known = [state.name for state in folder.states()]
    if unknown := [part for part in parts if part not in known]:
        raise UnknownName(f"there is no part {', '.join(unknown)}; there are: {', '.join(known)}")


class _Patience:
    """How long a command waits for parts: its time begins again when one comes up, or makes progress while it is starting."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._moved_at = time.monotonic()
        self._restarts: dict[str, int] = {}
        self._progress: dict[str, int] = {}
        self._came_up: set[str] = set()

    def is_over(self, folder: StackFolder) -> bool:
        """Return whether nothing has come up and no part has made progress for too long."""
        states, progress = folder.states(), folder.read(STATE).get("progress", {})
        for state in states:
            ended = state.restarts - self._restarts.setdefault(state.name, state.restarts)
            came_up = state.state == "running" and state.name not in self._came_up
            moved = progress.get(state.name, 0) != self._progress.get(state.name, 0) and ended < RESTARTS_MAX
            if came_up or moved:
                self._moved_at = time.monotonic()
                self._came_up |= {state.name} if came_up else set()
                self._progress[state.name] = progress.get(state.name, 0)
        return time.monotonic() - self._moved_at > self._limit_s


def _wait_for(folder: StackFolder, parts: Sequence[str], state: str, *, limit_s: float = UP_S) -> None:
    """The parts are in that state. Raises NotReady once no part has moved for `limit_s`, or one fails; one that had failed before is still
    to be seen trying.
    """
    patience = _Patience(limit_s)
    trying: set[str] = set()
    while True:
        states = {state.name: state.state for state in folder.states()}
        left = [part for part in parts if states.get(part) != state]
        if not left:
            return
        trying |= {part for part in left if states.get(part) != "failed"}
        if patience.is_over(folder) or any(states.get(part) == "failed" and part in trying for part in left):
            message = ", ".join(f"{part} is {states.get(part)}" for part in left)
            raise NotReady(f"{message}, not {state}: payrelay status; payrelay logs {quoted(left[0])}")
        time.sleep(POLL_S)


def supervisor_pid(folder: StackFolder) -> int | None:
    """Return the process number of the running supervisor."""
    pid = folder.read(STATE).get("supervisor")
    return pid if folder.is_up() and isinstance(pid, int) else None


def log_path(folder: StackFolder, part: str) -> Path:
    """Return a part's log file."""
    return folder.logs / f"{file_stem(part)}.log"


def _start_supervisor(folder: StackFolder, *, infrastructure: bool, with_parent: bool) -> None:
    if (earlier := _started.pop(folder.path, None)) is not None:
        earlier.wait()
    folder.write(STATE, {})
    command = [sys.executable, "-m", "ops.stack.supervisor", folder.name]
    if infrastructure:
        command.append("--infrastructure")
    if with_parent:
        command = tied(command, death_signal=signal.SIGTERM)
    with log_path(folder, "supervisor").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PAYRELAY_HOME": str(folder.home)},
            start_new_session=True,
        )
    _started[folder.path] = process
    deadline = time.monotonic() + UP_S
    while not folder.read(STATE):
        if process.poll() is not None:
            message, *details = _end_of_supervisor(folder)
            raise NotReady(message, details=details)
        if time.monotonic() > deadline:
            message, *details = _log_end(folder)
            raise NotReady(f"the supervisor has written no state within {UP_S:.0f} s: {message}", details=details)
        time.sleep(POLL_S)


def _signal_supervisor(folder: StackFolder, signum: int) -> None:
    pid = supervisor_pid(folder)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def _heart_beats(folder: StackFolder, since: float) -> bool:
    """Return whether the connector has written a heartbeat since then."""
    from ops.pipeline.health import last_heartbeat  # SQLAlchemy, only once all parts run

    beat_at = last_heartbeat(folder.settings())
    return beat_at is not None and beat_at.timestamp() > since


def _why(folder: StackFolder) -> list[str]:
    """Return why not everything is up: a line, and lines below it."""
    content = folder.read(STATE)
    if "error" in content or not folder.is_up():
        return _end_of_supervisor(folder)
    lines = [
        line
        for state in folder.states()
        if state.state != "running"
        for line in (
            f"{state.name}: {state.state} {state.condition} {state.last_exit}".rstrip(),
            *_tail(log_path(folder, state.name)),
        )
    ]
    return [
        "not everything is up; payrelay status and payrelay logs PART tell more:",
        *(lines or [f"the connector has written no heartbeat: {content.get('waits') or 'payrelay doctor'}"]),
    ]


def _end_of_supervisor(folder: StackFolder) -> list[str]:
    """Return why the supervisor is gone, as far as that can be known: a line, and lines below it."""
    error = folder.read(STATE).get("error")
    process = _started.get(folder.path)
    code = None
    if process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(5)  # the lock goes a moment before the process
    if error:
        return [f"the supervisor ended: {error}"]
    if code is not None and code < 0:
        how = f"{signal.Signals(-code).name} ended it"
    elif code is not None:
        how = f"exit code {code}"
    else:
        how = "another command had started it, and it left no reason"
    message, *details = _log_end(folder)
    return [f"the supervisor ended: {how}; {message}", *details]


def _log_end(folder: StackFolder) -> list[str]:
    path = log_path(folder, "supervisor")
    return ["its log ends with", *tail] if (tail := _tail(path)) else [f"its log is empty: {path}"]


def _tail(path: Path, lines: int = 5) -> list[str]:
    try:
        return [f"  {line[:300]}" for line in path.read_text(errors="replace").splitlines()[-lines:]]
    except FileNotFoundError:
        return []
