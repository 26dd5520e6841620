"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ops.stack.programs import DEBEZIUM_VERSION, KAFKA_VERSION, java, postgres_version


def target(name: str, value: float, *, at_most: float | None = None, at_least: float | None = None) -> dict[str, Any]:
    """Return one figure beside what it should be."""
    limit = at_most if at_most is not None else at_least
    ok = limit is None or (value <= limit if at_most is not None else value >= limit)
    sign = "<=" if at_most is not None else ">="
    return {"name": name, "value": round(value, 2), "target": f"{sign} {limit}" if limit is not None else "", "ok": ok}


def result(name: str, targets: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Return a benchmark's result: machine, versions, load and targets."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "benchmark": name,
        "machine": {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {
            "postgresql": postgres_version(),
            "kafka": KAFKA_VERSION,
            "debezium": DEBEZIUM_VERSION,
            "java": "system" if java() == "/usr/bin/java" else "wheel",
            "faust-streaming": version("faust-streaming"),
        },
        "load": [round(average, 2) for average in os.getloadavg()],
        "targets": targets,
        **more,
    }
