"""Run every benchmark and write docs/performance.md: make bench."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("startup", "latency", "throughput", "repair", "delivery", "ledger", "poison")
TARGET = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def run(name: str) -> dict[str, Any]:
    """Return the result of one benchmark."""
    outcome: dict[str, Any] = importlib.import_module(f"benchmarks.{name}").run()
    return outcome


def page(results: Sequence[dict[str, Any]]) -> str:
    """Return the page of results."""
    lines = [
        "# Performance",
        "",
        "Written by `make bench`; each part by `payrelay bench NAME -o json`. Figures are of the machine named beside them.",
    ]
    for one in results:
        machine, versions = one["machine"], ", ".join(f"{name} {number}" for name, number in one["versions"].items())
        lines += [
            "",
            f"## {one['benchmark']}",
            "",
            f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; {versions}; load {one['load']}",
            "",
            "| figure | value | target | met |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row['name']} | {row['value']} | {row['target']} | {('yes' if row['ok'] else 'no') if row['target'] else ''} |"
            for row in one["targets"]
        ]
        if not one.get("valid", True):
            lines += ["", "This run is not valid: it did not reach 98 % of its rate."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    outcomes = [run(name) for name in sys.argv[1:] or NAMES]
    print(json.dumps(outcomes, indent=1))
    TARGET.write_text(page(outcomes))
