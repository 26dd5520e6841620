"""The notifier beside a bare aiohttp loop to the same receiver; a dead receiver with nine tenths of a million; lateness live, alone
and beside receivers that accept connections and never answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, create_engine, text

from benchmarks.machine import result, target
from benchmarks.notifying import BODY, SILENT
from ops.demo.latency import percentile
from ops.stack.control import down, up
from ops.stack.parts import tied
from ops.stack.state import StackFolder
from outbox.clock import utc_now
from outbox.database import driver_url

ROUNDS = 3
IN_FLIGHT = 100
RATE_RECORDS = 8_000
RECEIVERS = 50
DEAD_RECORDS = 900_000
OTHER_RECORDS = 100_000
WATCHED = 20_000
"""Of the others' records, those due the longest, whose times are compared: one receiver that is held up shows."""
LIVE_RATE = 200
LIVE_S = 20
SILENT_RECEIVERS = (1, 12, 100)
SILENT_DUE = 10
"""Records due to each silent receiver when a run begins."""
SILENT_ROUNDS = 3
BESIDE_S = 10
SAMPLE_S = 0.25
PATIENCE_S = 300.0
SECRET = "whsec_" + "YmVuY2ht" * 5


def run() -> dict[str, Any]:
    """Measure all three on a stack of the benchmark's own."""
    folder = StackFolder(name=f"bench-{os.getpid()}")
    try:
        up(folder, infrastructure=True, with_parent=True)
        bench = Bench(folder)
        with bench.sink() as url:
            rates = bench.rates(url)
            live = bench.live(url, LIVE_S)
            silent = bench.beside_silent(url)
            alone = bench.others(url, dead=0)
            beside = bench.others(url, dead=DEAD_RECORDS)
    finally:
        down(folder, wipe=True)
    ours, bare = median(rates["notifier"]), median(rates["bare"])
    return result(
        "notifier",
        [
            target("ratio_to_bare_aiohttp", ours / bare, at_least=0.4),
            target("notifier_per_second", ours),
            target("bare_aiohttp_per_second", bare),
            target("live_rate_per_second", live["rate"], at_least=LIVE_RATE * 0.98),
            target("lateness_p50_ms", live["p50_ms"]),
            target("lateness_p99_ms", live["p99_ms"], at_most=250),
            target("lateness_p99_ms_without_postponed", live["p99_ms_without_postponed"], at_most=250),
            *silent_targets(silent),
            target("overdue_records", DEAD_RECORDS + OTHER_RECORDS),
            target("first_send_s_beside_dead", beside["first_s"], at_most=2.0),
            target("others_p99_s_alone", alone["p99_s"]),
            target("others_p99_s_beside_dead", beside["p99_s"]),
            target("others_p99_ratio", beside["p99_s"] / alone["p99_s"], at_most=1.2),
            target("resident_mb_once_warm", beside["first_mb"]),
            target("resident_mb_most", beside["most_mb"]),
            target("resident_growth", beside["most_mb"] / beside["first_mb"], at_most=1.2),
        ],
        valid=live["rate"] >= LIVE_RATE * 0.98,
        runs={name: [round(value) for value in values] for name, values in rates.items()}
        | {
            f"p99_ms_{where}_{count}_silent": [round(value, 1) for value in values]
            for (count, where), values in silent.items()
        },
    )


class Bench:
    """The stack's notification service, with queues and receivers of each run's own."""

    def __init__(self, folder: StackFolder) -> None:
        self._folder = folder
        self._engine: Engine = create_engine(driver_url(folder.settings().dsn_of("notification")), pool_size=1)

    @contextmanager
    def sink(self) -> Iterator[str]:
        """Give the address of a receiver that answers after 20 ms."""
        process = self._start("sink", stdout=subprocess.PIPE)
        assert process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()
        process.wait()

    def rates(self, url: str) -> dict[str, list[float]]:
        """Return deliveries a second, round by round: bare, and with records, logs and lanes written."""
        rates: dict[str, list[float]] = {"bare": [], "notifier": []}
        for _ in range(ROUNDS):
            bare = self._start("bare", url, str(RATE_RECORDS), str(IN_FLIGHT), stdout=subprocess.PIPE)
            printed, _ = bare.communicate(timeout=PATIENCE_S)
            rates["bare"].append(RATE_RECORDS / seconds_of(printed))
            queue = self._queue(url)
            self._fill(queue, RATE_RECORDS)
            with self._notifier(queue):
                self._wait(queue, RATE_RECORDS)
            first, last = self._row(
                "SELECT min(started_at), max(finished_at) FROM notify_record_log JOIN notify_record ON record_id = notify_record.id "
                "WHERE notify_record.queue = :queue",
                queue,
            )
            rates["notifier"].append(RATE_RECORDS / (last - first).total_seconds())
            logged, written = self._row(
                "SELECT (SELECT count(*) FROM notify_record_log WHERE queue = :queue AND counted AND result = 'SUCCESS'),"
                "       (SELECT count(*) FROM notify_record WHERE queue = :queue AND status = 'SUCCESS' AND attempts = 1)",
                queue,
            )
            assert (logged, written) == (RATE_RECORDS, RATE_RECORDS)
        return rates

    def beside_silent(self, url: str) -> dict[tuple[int, str], list[float]]:
        """Return the others' p99 lateness in ms, without and beside so many silent receivers, in alternating runs."""
        p99s: dict[tuple[int, str], list[float]] = {}
        for _ in range(SILENT_ROUNDS):
            for count in SILENT_RECEIVERS:
                for where, silent in (("without", 0), ("beside", count)):
                    p99_ms = self.live(url, BESIDE_S, silent=silent)["p99_ms"]
                    p99s.setdefault((count, where), []).append(p99_ms)
        return p99s

    def live(self, url: str, seconds: float, *, silent: int = 0) -> dict[str, float]:
        """Return how late attempts begin at 200 a second, each record made at its time whatever the others do.

        `silent` receivers of the same queue have ten records due each when it begins, and never answer.
        """
        queue = self._queue(url)
        for number in range(silent):
            self._register(f"{queue}-silent-{number}", f"{url}{SILENT}/{number}")
            self._fill(queue, SILENT_DUE, merchant=f"{queue}-silent-{number}")
        with self._notifier(queue):
            self._fill(queue, 1)
            self._wait(queue, 1)
            begun = time.monotonic()
            ticks = int(seconds * LIVE_RATE) // 10
            for tick in range(ticks):
                time.sleep(max(0.0, begun + tick * 10 / LIVE_RATE - time.monotonic()))
                self._fill(queue, 10)
            took_s = time.monotonic() - begun
            self._wait(queue, ticks * 10 + 1)
        late = [
            (row.ms, row.postponed)
            for row in self._rows(
                "SELECT 1000 * extract(epoch FROM started_at - planned_at)::float AS ms, postponed "
                "FROM notify_record_log WHERE queue = :queue AND merchant_no NOT LIKE '%-silent-%'",
                queue,
            )
        ]
        every, punctual = [ms for ms, _ in late], [ms for ms, postponed in late if not postponed]
        return {
            "rate": ticks * 10 / took_s,
            "p50_ms": percentile(every, 0.5),
            "p99_ms": percentile(every, 0.99),
            "p99_ms_without_postponed": percentile(punctual, 0.99),
        }

    def others(self, url: str, *, dead: int) -> dict[str, float]:
        """Return how the others fare beside a dead receiver's overdue records: first send, p99 of their first deliveries, memory."""
        queue = self._queue(url)
        if dead:
            self._register(f"{queue}-dead", "http://127.0.0.1:9/")
            self._fill(queue, dead, merchant=f"{queue}-dead")
        self._fill(queue, OTHER_RECORDS)
        self._settle()
        [lowest, highest] = self._row(_WATCHED, queue, dead=f"{queue}-dead", most=WATCHED)
        watched = {"low": lowest, "high": highest}
        begun, sizes, delivered = utc_now(), [0.0], 0
        with self._notifier(queue) as process:
            while delivered < WATCHED:
                time.sleep(SAMPLE_S)
                [delivered] = self._row(f"SELECT count(*) {_WATCHED_NOTIFIED}", queue, **watched)
                if delivered >= WATCHED // 20:  # by then a process has grown to its size
                    sizes.append(resident_mb(process.pid))
        times = sorted(
            (row.finished_at - begun).total_seconds()
            for row in self._rows(f"SELECT finished_at {_WATCHED_NOTIFIED}", queue, **watched)
        )
        [first] = self._row(
            "SELECT min(started_at) FROM notify_record_log WHERE queue = :queue AND result = 'SUCCESS'", queue
        )
        return {
            "first_s": (first - begun).total_seconds(),
            "p99_s": percentile(times, 0.99),
            "first_mb": sizes[1],
            "most_mb": max(sizes),
        }

    def _queue(self, url: str) -> str:
        queue = f"bench-{uuid4().hex[:8]}"
        with self._engine.begin() as connection:
            statement = """INSERT INTO notify_queue (queue, rule, in_flight_max, receiver_in_flight_max)
                           VALUES (:queue, :rule, :most, 10)"""
            connection.execute(
                text(statement), {"queue": queue, "rule": '{"1":0,"2":1,"3":2,"4":5,"5":15}', "most": IN_FLIGHT}
            )
        for number in range(RECEIVERS):
            self._register(f"{queue}-{number}", f"{url}/{number}")
        return queue

    def _register(self, merchant_no: str, url: str) -> None:
        with self._engine.begin() as connection:
            statement = "INSERT INTO receiver (merchant_no, url, secret) VALUES (:merchant_no, :url, :secret)"
            connection.execute(text(statement), {"merchant_no": merchant_no, "url": url, "secret": SECRET})

    def _fill(self, queue: str, count: int, *, merchant: str = "") -> None:
        """So many records are due, of one merchant or of all in turn."""
        with self._engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(_FILL, {"queue": queue, "count": count, "merchant": merchant, "receivers": RECEIVERS, "body": BODY.decode(),
                                       "rule": '{"1":0,"2":1,"3":2,"4":5,"5":15}'})  # fmt: skip

    def _settle(self) -> None:
        """What filling leaves to do is done: it would be written to the disk while others are watched."""
        owner = create_engine(driver_url(self._folder.settings().database_url.get_secret_value()))
        with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE notification.notify_record"))
            connection.execute(text("CHECKPOINT"))
        owner.dispose()

    @contextmanager
    def _notifier(self, queue: str) -> Iterator[subprocess.Popen[bytes]]:
        process = self._start("notifier", queue)
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(30)

    def _start(self, *arguments: str, **given: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            tied([sys.executable, "-m", "benchmarks.notifying", *arguments]),
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PAYRELAY_HOME": str(self._folder.home), "PAYRELAY_STACK": self._folder.name},
            **given,
        )

    def _wait(self, queue: str, count: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self._delivered(queue) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._delivered(queue)} of {count} notified in {PATIENCE_S:.0f} s")
            time.sleep(SAMPLE_S)

    def _delivered(self, queue: str) -> int:
        [count] = self._row("SELECT count(*) FROM notify_record_log WHERE queue = :queue AND result = 'SUCCESS'", queue)
        return int(count)

    def _row(self, statement: str, queue: str, **given: Any) -> Any:
        [row] = self._rows(statement, queue, **given)
        return row

    def _rows(self, statement: str, queue: str, **given: Any) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(text(statement), {"queue": queue, **given}))


_WATCHED = """
    SELECT min(id::text)::uuid, max(id::text)::uuid FROM (
      SELECT id FROM notify_record WHERE queue = :queue AND merchant_no <> :dead ORDER BY id LIMIT :most) AS record"""
_WATCHED_NOTIFIED = "FROM notify_record WHERE queue = :queue AND id BETWEEN :low AND :high AND status = 'SUCCESS'"

_FILL = text("""
    WITH made AS (
      INSERT INTO notify_record (queue, rule, planned_at, event_id, merchant_no, payment_no, order_no, body)
      SELECT :queue, :rule, clock_timestamp(), uuidv7(),
             CASE WHEN :merchant = '' THEN :queue || '-' || number % :receivers ELSE :merchant END, 'P' || number, 'O' || number, :body
      FROM generate_series(1, :count) AS number
      RETURNING merchant_no, planned_at)
    INSERT INTO notify_wake (queue, merchant_no, planned_at) SELECT :queue, merchant_no, min(planned_at) FROM made GROUP BY merchant_no""")


def silent_targets(p99s: dict[tuple[int, str], list[float]]) -> list[dict[str, Any]]:
    """Return the README's promise: the others' p99 is at most 1.2 times what it is without them, or 20 ms more, if that is larger."""
    targets = []
    for count in SILENT_RECEIVERS:
        without, beside = median(p99s[count, "without"]), median(p99s[count, "beside"])
        bound_ms = max(1.2 * without, without + 20)
        targets.append(target(f"others_p99_ms_without_{count}_silent", without))
        targets.append(target(f"others_p99_ms_beside_{count}_silent", beside, at_most=bound_ms))
    return targets


def seconds_of(printed: bytes) -> float:
    """Return the seconds that a bare loop has printed."""
    return float(json.loads(printed)["seconds"])


def resident_mb(pid: int) -> float:
    """Return a process's resident megabytes; 0 once it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
