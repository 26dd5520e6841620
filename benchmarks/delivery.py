"""Our batch transport beside a bare aiokafka loop and stock Faust: on the same records, with nothing to do and with the same SQL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID, uuid4

from confluent_kafka import Producer

from benchmarks.machine import result, target
from ops.kafka.topics import apply_topics
from ops.stack.control import down, up
from ops.stack.parts import tied
from ops.stack.state import StackFolder
from outbox.clock import first_id_at, utc_now
from outbox.settings import Settings
from schemas.codec import encode
from schemas.events import PaymentSettled
from schemas.topics import PAYMENT_ORDER

ROUNDS = 5
NO_OP_RECORDS = 400_000
ACCOUNTING_ROUNDS = 9
"""Nearly all of this time is the database's, and it varies by a tenth from run to run: pairs tell more than medians."""
ACCOUNTING_RECORDS = 60_000
BACKLOG_RECORDS = 5_000_000
WARM_RECORDS = 250_000
"""A process has grown to its full size after this many messages; its memory must stay flat from then on."""
RUN_S = 600.0
SAMPLE_S = 0.25


def run() -> dict[str, Any]:
    """Run the loops in turn on a stack of the benchmark's own; then watch the memory of ours over a backlog."""
    folder = StackFolder(name=f"bench-{os.getpid()}")
    try:
        up(folder, infrastructure=True, with_parent=True)
        rates = _rates(folder)
        memory = _memory(folder)
    finally:
        down(folder, wipe=True)
    medians = {name: median(values) for name, values in rates.items()}
    no_op = medians["batch nothing"] / medians["bare nothing"]
    accounting = median(
        ours / bare for ours, bare in zip(rates["batch accounting"], rates["bare accounting"], strict=True)
    )
    return result(
        "delivery",
        [
            target("no_op_ratio_to_bare_aiokafka", no_op, at_least=0.35),
            target("accounting_ratio_to_bare_aiokafka", accounting, at_least=0.95),
            *(target(f"{name.replace(' ', '_')}_per_second", value) for name, value in medians.items()),
            target("memory_growth_over_backlog", memory["most_mb"] / memory["warm_mb"], at_most=1.1),
            target("memory_warm_mb", memory["warm_mb"]),
            target("memory_most_mb", memory["most_mb"]),
            target("backlog_records", BACKLOG_RECORDS),
        ],
        runs={name: [round(value) for value in values] for name, values in rates.items()},
    )


def _rates(folder: StackFolder) -> dict[str, list[float]]:
    """Return records a second of each loop and work, round by round."""
    shared = filled(folder.settings(), NO_OP_RECORDS)
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for loop in ("bare", "batch"):
            rates.setdefault(f"{loop} nothing", []).append(loop_rate(folder, loop, "nothing", shared, NO_OP_RECORDS))
    for number in range(ACCOUNTING_ROUNDS):
        # The tables grow with each run, so that each loop goes first as often as the other.
        pair = ("bare", "batch") if number % 2 == 0 else ("batch", "bare")
        for loop in (*pair, *(("take",) if number < ROUNDS else ())):
            own = filled(
                folder.settings(), ACCOUNTING_RECORDS
            )  # a payment is posted once: each run has payments of its own
            rates.setdefault(f"{loop} accounting", []).append(
                loop_rate(folder, loop, "accounting", own, ACCOUNTING_RECORDS)
            )
    return rates


def loop_rate(folder: StackFolder, loop: str, work: str, prefix: str, count: int) -> float:
    process = _started(folder, loop, work, prefix, count)
    printed, _ = process.communicate(timeout=RUN_S)
    if process.returncode:
        raise RuntimeError(f"{loop} {work}: exit code {process.returncode}")
    return float(count / json.loads(printed)["seconds"])


def _started(folder: StackFolder, loop: str, work: str, prefix: str, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        tied([sys.executable, "-m", "benchmarks.loops", loop, work, prefix, str(count)]),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PAYRELAY_HOME": str(folder.home), "PAYRELAY_STACK": folder.name},
    )


def _memory(folder: StackFolder) -> dict[str, float]:
    """Return the resident megabytes of our loop once warm, and the most it had until the backlog was gone."""
    prefix = filled(folder.settings(), BACKLOG_RECORDS)
    warm = _started(folder, "batch", "nothing", prefix, WARM_RECORDS)
    warm_mb = _most_mb(warm)
    return {"warm_mb": warm_mb, "most_mb": _most_mb(_started(folder, "batch", "nothing", prefix, BACKLOG_RECORDS))}


def _most_mb(process: subprocess.Popen[bytes]) -> float:
    """Return the most resident memory that the process is seen with, in megabytes, until it ends."""
    status, most = Path(f"/proc/{process.pid}/status"), 0.0
    while process.poll() is None:
        resident = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmRSS")]
        most = max(most, *(int(kilobytes) / 1024 for kilobytes in resident), 0.0)
        time.sleep(SAMPLE_S)
    if process.returncode:
        raise RuntimeError(f"the loop ended with exit code {process.returncode}")
    return most


def filled(settings: Settings, count: int) -> str:
    """Return the prefix of a new topic that holds so many settled payments, as the connector would publish them."""
    prefix = f"bench{uuid4().hex[:8]}-"
    own = settings.model_copy(update={"topic_prefix": prefix})
    apply_topics(own, execute=True)
    producer = Producer(
        {
            "bootstrap.servers": own.kafka_bootstrap,
            "compression.type": "lz4",
            "linger.ms": 20,
            "queue.buffering.max.messages": 500_000,
            "log_level": 0,
        }
    )
    topic = prefix + PAYMENT_ORDER.name
    for key, value, headers in _records(prefix, count):
        while True:
            try:
                producer.produce(topic, key=key, value=value, headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(120):
        raise RuntimeError("the records did not reach the broker")
    return prefix


def _records(prefix: str, count: int) -> Iterator[tuple[bytes, bytes, list[tuple[str, bytes]]]]:
    at = utc_now()
    body = encode(
        PaymentSettled(
            payment_no="NUMBER",
            order_no="NUMBER",
            merchant_no=f"{prefix}M",
            payer_no=f"{prefix}U",
            amount_fen=10_000,
            currency="CNY",
            fee_fen=60,
            fee_rule="rate 60 bp",
            points=100,
            bank_transaction_no="NUMBER",
            settled_at=at,
        )
    ).encode()
    first = first_id_at(at).int | 7 << 76 | 2 << 62
    for number in range(count):
        key = f"{prefix}{number}".encode()
        identity = str(UUID(int=first + number)).encode()
        headers = [
            ("ce_id", identity),
            ("ce_type", PaymentSettled.type.encode()),
            ("aggregate_version", b"1"),
            ("correlation", key),
        ]
        yield key, body.replace(b"NUMBER", key), headers
