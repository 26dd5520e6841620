"""The one process that is the parent of all parts: starts them, restarts what dies, takes all of them along.

    python -m ops.stack.supervisor NAME [--infrastructure]

SIGTERM stops the parts and ends; SIGHUP lets failed parts try again. Killed with -9, every part dies with it.
A part stands still while there is a file of its name in the stack's `stops/`: see StackFolder.stopped_parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import time
import traceback
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

from connect.apply import apply_connector
from connect.client import ConnectClient
from ops.kafka.topics import apply_topics
from ops.pipeline.upkeep import upkeep
from ops.pipeline.upkeep_report import REPORT, Upkeep
from ops.stack.code import CODE, fingerprint, loaded
from ops.stack.parts import Part, parts_of, tied
from ops.stack.processes import GATES, INFRASTRUCTURE, require_gates
from ops.stack.programs import installed_programs
from ops.stack.progress import Patience, Work, describe, work_of
from ops.stack.state import STATE, PartState, StackFolder, file_stem
from outbox.clock import utc_now
from outbox.migrate import migrate
from outbox.retry import backoff_s

FAILURES_MAX = 5
FAILURES_WINDOW_S = 60.0
"""A part that ends this often within this time has failed; `payrelay up` tries it again."""

POLL_S = 0.05
STOPS_S = 0.1
READY_S = 90.0
"""A part that is not ready may make no progress for so long; then it is ended and started again."""
ASK_S_MAX = 0.5
SHOW_S = 2.0
"""How often it is asked whether a part is ready, at the least, and how often its progress is looked at."""
LOG_BYTES_MAX = 20_000_000
UPKEEP_S = 3600.0


class Supervisor:
    """Keeps a stack's parts alive until it is asked to end."""

    def __init__(self, folder: StackFolder, *, infrastructure: bool) -> None:
        self.folder = folder
        self.started_at = time.time()
        ports = folder.ports()
        folder.secrets()
        self.settings = folder.settings()
        programs = installed_programs(folder.home)
        self.parts = parts_of(folder, programs, ports, infrastructure=infrastructure)
        for part in self.parts:
            require_gates(part.name, part.needs)
        self.states = {
            part.name: PartState(name=part.name, version=part.version, port=part.port, metrics_port=part.metrics_port)
            for part in self.parts
        }
        self.gates = {name: asyncio.Event() for name in GATES}
        self.progress = dict.fromkeys(self.states, 0)
        """How often each part has made progress while it was starting."""
        self.code: dict[str, str] = {}
        """The fingerprint of the code that each part of ours was started from."""
        self.loaded: dict[str, str] = {}
        """The files of ours that this process has loaded, with their hashes at that time."""
        self.waits = ""
        """Why the step that was last tried was not done."""
        self.unwritten = False
        self.stops = {part.name: asyncio.Event() for part in self.parts}
        self.starts = {part.name: asyncio.Event() for part in self.parts}
        self.retry = asyncio.Event()
        self.ending = asyncio.Event()

    async def run(self) -> None:
        """Every part runs until SIGTERM or SIGINT; then every part has ended."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._try_failed_again)
        self._heed_stops()
        self._note_code()
        keepers = [self._lasting(part.name, partial(self._keep, part)) for part in self.parts]
        steps = [
            self._lasting("schema", partial(self._step, "schema", ("postgres",), self._schema)),
            self._lasting("topics", partial(self._step, "topics", ("kafka",), self._topics)),
            self._lasting(
                "connector", partial(self._step, "connector", ("schema", "topics", "connect"), self._connector)
            ),
            self._lasting("upkeep", self._upkeep),
            self._lasting("stops", self._watch_stops),
        ]
        self._tell()
        await self.ending.wait()
        for step in steps:
            step.cancel()
        # Workers and services first, so that they leave their groups and finish their transactions.
        for names in ({part.name for part in self.parts} - set(INFRASTRUCTURE), {"connect"}, {"kafka", "postgres"}):
            doomed = [keeper for part, keeper in zip(self.parts, keepers, strict=True) if part.name in names]
            for keeper in doomed:
                keeper.cancel()
            await asyncio.gather(*doomed, return_exceptions=True)
        self._tell()

    def _lasting(self, name: str, task: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Return the running task: where an error ends it that it did not expect, it is said, and the task begins again."""

        async def again_and_again() -> None:
            for attempt in itertools.count(1):
                try:
                    await task()
                    return
                except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the task unseen
                    _say(f"{name}: {type(error).__name__}: {error}; it begins again")
                    await asyncio.sleep(backoff_s(attempt))

        return asyncio.create_task(again_and_again(), name=name)

    async def _keep(self, part: Part) -> None:
        """The part runs whenever it is not to stand still."""
        await self._wait_for_gates(part)
        while True:
            await self.starts[part.name].wait()
            running = asyncio.create_task(self._run(part))
            stopped = asyncio.create_task(self.stops[part.name].wait())
            try:
                await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopped.cancel()
                running.cancel()
                await asyncio.wait({running})
                self._set(part, "stopped", pid=None)
            if not running.cancelled() and (error := running.exception()) is not None:
                raise error

    async def _wait_for_gates(self, part: Part) -> None:
        for gate in part.needs:
            self.states[part.name].condition = f"waits for {gate}"
            await self.gates[gate].wait()
        self.states[part.name].condition = ""

    async def _run(self, part: Part) -> None:
        """The part runs, and is started again when it ends, until this is cancelled."""
        failures: deque[float] = deque(maxlen=FAILURES_MAX)
        while True:
            try:
                await self._live(part)
            except Exception as error:  # noqa: BLE001 - a part that cannot even be prepared is a part that ended
                self.states[part.name].last_exit = f"{type(error).__name__}: {error}"
            failures.append(time.monotonic())
            self.states[part.name].restarts += 1
            if len(failures) == FAILURES_MAX and failures[-1] - failures[0] < FAILURES_WINDOW_S:
                self._set(part, "failed", pid=None)
                self.retry.clear()
                await self.retry.wait()
                failures.clear()
                continue
            self._set(part, "restarting", pid=None)
            await asyncio.sleep(backoff_s(len(failures), first_s=0.2))

    async def _live(self, part: Part) -> None:
        """The part's process was started, found ready, and has ended."""
        await asyncio.to_thread(part.prepare)
        if not part.version:  # a process of ours
            self.code[part.name] = await asyncio.to_thread(fingerprint, part.name)
            self._note_code()
        with self._log(part) as log:
            begins_at = log.tell()
            process = await asyncio.create_subprocess_exec(
                *tied(part.command, mode=part.mode, death_signal=part.death_signal),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **part.environment},
                cwd=part.cwd,
                start_new_session=True,
            )
        ready = asyncio.create_task(self._ready(part, process.pid, begins_at))
        try:
            self._set(part, "starting", pid=process.pid)
            ended = asyncio.create_task(process.wait())
            await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                if not ready.result():
                    self.states[part.name].last_exit = f"not ready, and no progress for {READY_S:.0f} s"
                    return
                self._set(part, "running", pid=process.pid)
                if part.name in self.gates:
                    self.gates[part.name].set()
            code = await ended
            self.states[part.name].last_exit = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        finally:
            ready.cancel()
            await _end(process, part)

    async def _ready(self, part: Part, pid: int, begins_at: int) -> bool:
        """Return whether the part became ready; it may take as long as it makes progress, which its row shows."""
        began = shown_at = time.monotonic()
        patience = Patience(READY_S, Work(), now=began)
        while not await asyncio.to_thread(part.ready):
            now = time.monotonic()
            if now - shown_at >= min(SHOW_S, READY_S / 10):
                work = await asyncio.to_thread(
                    work_of, pid, self._log_path(part), begins_at=begins_at, progress=part.progress
                )
                marks, shown_at = patience.marks, now
                idle_s = patience.look(work, now=now)
                self.progress[part.name] += patience.marks - marks
                self.states[part.name].condition = describe(now - began, work, idle_s, READY_S)
                self._tell()
            if patience.is_over:
                return False
            await asyncio.sleep(min(ASK_S_MAX, POLL_S + (now - began) / 50))  # each question is work, too
        return True

    async def _step(self, name: str, needs: tuple[str, ...], act: Callable[[], None]) -> None:
        """The gate is open: what the step does was done. Tried until it succeeds."""
        for gate in needs:
            await self.gates[gate].wait()
        for attempt in range(1, 1_000_000):
            try:
                await self._acted(name, needs[-1], act)
            except Exception as error:  # noqa: BLE001 - the parts it needs may be away: try again
                _say(f"{name}: {error}")
                self._waiting(name, f"waits for {name}: {error}".splitlines()[0])
                await asyncio.sleep(backoff_s(attempt))
                continue
            self._waiting(name, "")
            self.gates[name].set()
            return

    async def _acted(self, name: str, server: str, act: Callable[[], None]) -> None:
        """The act is done. However long it takes, as to migrate large tables does, the work of the server it asks counts as progress."""
        acting = asyncio.create_task(asyncio.to_thread(act))
        began = time.monotonic()
        patience: Patience | None = None
        part = next(part for part in self.parts if part.name == server)
        try:
            while not (await asyncio.wait({acting}, timeout=min(SHOW_S, READY_S / 10)))[0]:
                now = time.monotonic()
                if (pid := self.states[server].pid) is not None:
                    work = await asyncio.to_thread(work_of, pid, self._log_path(part), begins_at=0, progress=None)
                    patience = patience or Patience(READY_S, work, now=now)
                    marks = patience.marks
                    patience.look(work, now=now)
                    self.progress[server] += patience.marks - marks
                self._waiting(name, f"waits for {name}, under way for {now - began:.0f} s")
            await acting
        finally:
            acting.cancel()

    def _waiting(self, gate: str, condition: str) -> None:
        """It is known why a gate is not open yet: the parts that wait for it say so."""
        self.waits = condition
        for part in self.parts:
            row = self.states[part.name]
            if gate in part.needs and row.state == "stopped" and row.pid is None:
                row.condition = condition
        self._tell()

    def _schema(self) -> None:
        migrate(self.settings, today=datetime.now(UTC).date())

    def _topics(self) -> None:
        apply_topics(self.settings, execute=True)

    def _connector(self) -> None:
        apply_connector(ConnectClient(self.settings.connect_url), self.settings)

    async def _upkeep(self) -> None:
        """A round at start and every hour, for as long as the stack is up; `payrelay status` shows the last one's report."""
        for gate in ("schema", "topics"):
            await self.gates[gate].wait()
        while True:
            try:
                report = await asyncio.to_thread(upkeep, self.settings, now=utc_now())
            except Exception as error:  # noqa: BLE001 - shown, and the next round tries again
                message = f"{type(error).__name__}: {error}"
                report = Upkeep(at=utc_now().isoformat(timespec="seconds"), errors={"upkeep": message})
            await self._write_report(report)
            self._note_code()  # a round may have imported more
            await asyncio.sleep(UPKEEP_S)

    async def _write_report(self, report: Upkeep) -> None:
        for attempt in itertools.count(1):
            try:
                self.folder.write(REPORT, asdict(report))
            except OSError as error:
                _say(f"the report of upkeep is not written: {error}")
                await asyncio.sleep(backoff_s(attempt))
            else:
                return

    def _note_code(self) -> None:
        """It is kept which code runs: `payrelay up` compares it with what is here then."""
        self.loaded = loaded() | self.loaded  # a file that has changed since is still the one that was loaded
        try:
            self.folder.write(CODE, {"supervisor": self.loaded, "parts": self.code})
        except OSError as error:
            _say(f"which code runs is not written: {error}")

    async def _watch_stops(self) -> None:
        while True:
            await asyncio.sleep(STOPS_S)
            if self.unwritten:
                self._tell()
            self._heed_stops()

    def _heed_stops(self) -> None:
        """It is known which parts are to stand still, and which are not."""
        stopped = self.folder.stopped_parts()
        for name in self.states:
            wanted, other = (self.stops, self.starts) if name in stopped else (self.starts, self.stops)
            other[name].clear()
            wanted[name].set()

    def _try_failed_again(self) -> None:
        self.retry.set()

    def _log_path(self, part: Part) -> Path:
        return self.folder.logs / f"{file_stem(part.name)}.log"

    def _log(self, part: Part) -> IO[bytes]:
        path = self._log_path(part)
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")

    def _set(self, part: Part, state: str, *, pid: int | None) -> None:
        row = self.states[part.name]
        row.state, row.pid, row.since = state, pid, utc_now().isoformat(timespec="milliseconds")
        row.condition = ""
        self._tell()

    def _tell(self) -> None:
        """The state file holds the states; where it cannot be written, `_watch_stops` tries again, and nothing else waits for it."""
        try:
            self.folder.write_states(
                list(self.states.values()), started_at=self.started_at, progress=self.progress, waits=self.waits
            )
        except OSError as error:
            if not self.unwritten:
                _say(f"the state file is not written: {error}")
            self.unwritten = True
        else:
            self.unwritten = False


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the log is on the same disk
        print(f"{utc_now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


async def _end(process: Process, part: Part) -> None:
    """The process has ended: asked first, killed when it takes too long."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(part.stop_signal)
        process.send_signal(signal.SIGCONT)
    try:
        await asyncio.wait_for(process.wait(), part.stop_s)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def main() -> None:
    name, *options = sys.argv[1:]
    folder = StackFolder(name=name)
    lock = folder.lock()
    if lock is None:
        raise SystemExit(f"the stack {name!r} has a supervisor already")
    try:
        supervisor = Supervisor(folder, infrastructure="--infrastructure" in options)
        asyncio.run(supervisor.run())
    except Exception as error:  # noqa: BLE001 - whoever waits for the stack must see the error
        with contextlib.suppress(OSError):
            folder.write(STATE, {"error": f"{type(error).__name__}: {error}"})
            traceback.print_exc()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
