"""100,000 payments with twenty holes of every kind among them: how long it takes to name all and only these, and what is left once they are fixed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks.holes import FIRST, MERCHANTS, PROCESSORS, Field, named
from benchmarks.machine import result, target
from consumers.notification.receivers import register_receiver
from ops.delivery.parked import operator
from ops.reconcile.findings import Kind
from ops.reconcile.fix import carry_out, settle
from ops.reconcile.plan import plan
from ops.reconcile.run import Report, reconcile
from ops.stack.control import down, up
from ops.stack.state import StackFolder

PAYMENTS = 100_000
HOLES = 20
GRACE = timedelta(seconds=1)
WITHIN_S = 60.0
SECRET = "whsec_" + "YmVuY2htYXJr" * 4
POLL_S = 0.5


def run(payments: int = PAYMENTS, holes: int = HOLES) -> dict[str, Any]:
    """Plant, reconcile everything, reconcile again, fix, reconcile everything, and reconcile when nothing is new."""
    folder = StackFolder(name=f"bench-{os.getpid()}")
    try:
        up(folder, infrastructure=True, with_parent=True)
        begun = time.monotonic()
        field = planted(folder, payments, holes)
        made_s = time.monotonic() - begun
        first = _settled(field, full=True)
        again = reconcile(field.settings, grace=GRACE)
        fixing = _fix(field, first)
        _settled(field, full=False)  # what the fixes wrote last was younger than the grace, and so is new
        nothing_new = reconcile(field.settings, grace=GRACE)
        field.close()
    finally:
        down(folder, wipe=True)
    wanted, seen = field.planted, named(first.findings)
    return result(
        "reconcile",
        [
            target("payments", field.events, at_least=payments),
            target("planted", len(wanted)),
            target("named", len(seen), at_least=len(wanted)),
            target("named_and_not_planted", len(set(seen) - wanted) + len(seen) - len(set(seen)), at_most=0),
            target("planted_and_not_named", len(wanted - set(seen)), at_most=0),
            target("full_run_s", first.seconds, at_most=30),
            target("named_again_by_the_next_run", len(wanted & set(named(again.findings))), at_least=len(wanted)),
            target("next_run_s", again.seconds),
            target("fixed_s", fixing.seconds),
            target("fixes_that_failed", fixing.failed, at_most=0),
            target("left_to_an_operator", len(fixing.left.findings), at_most=fixing.by_hand),
            target("left_at_the_end", len(fixing.end.findings), at_most=0),
            target("full_run_at_the_end_s", fixing.end.seconds, at_most=30),
            target("nothing_new_s", nothing_new.seconds, at_most=2),
            target("set_up_s", made_s),
        ],
        kinds=len({(kind, consumer) for kind, consumer, _ in wanted}),
        holds=fixing.end.is_clean and nothing_new.is_clean,
    )


@dataclass(frozen=True, kw_only=True)
class Fixing:
    """What came of fixing all that a run had named."""

    seconds: float
    failed: int
    by_hand: int
    """What was planned to be left to an operator."""
    left: Report
    end: Report
    """After the operator has fixed the rest."""


def _fix(field: Field, first: Report) -> Fixing:
    """Everything that the run has named is fixed, by the command's own steps and then by hand, while the processors run."""
    with _receiver() as url:
        _tell(field, url)
        with field.workers([*PROCESSORS, "notifier"]):
            begun = time.monotonic()
            steps = plan(field.settings, first.findings)
            done = carry_out(field.settings, steps, actor=operator(), within_s=WITHIN_S)
            failed = sum(len(outcome.failed) for outcome in done)
            after = settle(field.settings, steps, grace=GRACE, within_s=WITHIN_S)
            seconds = time.monotonic() - begun
            left = _all_answered(field, after)
            field.fix_by_hand()
            end = _settled(field, full=True)
    by_hand = sum(len(step.findings) for step in steps if step.by_hand and step.kind is not Kind.UNTOLD)
    return Fixing(seconds=seconds, failed=failed, by_hand=by_hand, left=left, end=end)


def planted(folder: StackFolder, payments: int, holes: int) -> Field:
    """Return payments that have gone their way but for the holes planted among them. No worker runs any more."""
    field = Field(folder)
    field.pay(payments // 2)
    field.plant(holes)
    field.pay(payments - payments // 2)
    with field.workers(FIRST):
        field.drained(FIRST)
        field.plant_answers(holes)
        with field.workers(["settlement"]):
            field.drained()
    field.finish()
    time.sleep(2 * GRACE.total_seconds())  # so that all of it is older than the grace
    return field


def _settled(field: Field, *, full: bool) -> Report:
    """Return the first report in which nothing is on its way."""
    while (report := reconcile(field.settings, grace=GRACE, full=full)).waiting:
        time.sleep(POLL_S)
    return report


def _all_answered(field: Field, report: Report) -> Report:
    """Return the first report in which every notification was answered, or the last one before the time is over."""
    deadline = time.monotonic() + WITHIN_S
    while any(finding.kind is Kind.UNTOLD for finding in report.findings) and time.monotonic() < deadline:
        time.sleep(POLL_S)
        report = reconcile(field.settings, grace=GRACE)
    return report


def _tell(field: Field, url: str) -> None:
    """The merchants' notifications go to this address."""
    with field.engine("notification").begin() as connection:
        for number in range(MERCHANTS):
            register_receiver(connection, f"{field.run}-M{number}", url=url, secret=SECRET)


class _Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"success")

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@contextmanager
def _receiver() -> Iterator[str]:
    """Give the address of a merchant who answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
