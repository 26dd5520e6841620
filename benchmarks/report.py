"""Run every benchmark and write docs/performance.md: make bench. With names, only those parts are measured again."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

NAMES = (
    "startup",
    "latency",
    "throughput",
    "repair",
    "delivery",
    "ledger",
    "poison",
    "rebuild",
    "reconcile",
    "notifier",
)
TARGET = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
HEAD = """# Performance

Written by `make bench`; single parts by `python -m benchmarks.report NAME…`. Figures are of the machine named beside them.
"""


def run(name: str) -> dict[str, Any]:
    """Return the result of one benchmark."""
    outcome: dict[str, Any] = importlib.import_module(f"benchmarks.{name}").run()
    return outcome


def part(outcome: dict[str, Any]) -> str:
    """Return what the page says of one result."""
    machine, versions = (
        outcome["machine"],
        ", ".join(f"{name} {number}" for name, number in outcome["versions"].items()),
    )
    lines = [
        f"## {outcome['benchmark']}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; {versions}; load {outcome['load']}",
        "",
        "| figure | value | target | met |",
        "|---|---|---|---|",
        *(
            f"| {row['name']} | {row['value']} | {row['target']} | {('yes' if row['ok'] else 'no') if row['target'] else ''} |"
            for row in outcome["targets"]
        ),
    ]
    if not outcome.get("valid", True):
        lines += ["", "This run is not valid: it did not reach 98 % of its rate."]
    if not outcome.get("holds", True):
        lines += ["", "This run is not valid: what it did is not as it should be, whatever its speed."]
    return "\n".join(lines) + "\n"


def parts(page: str) -> dict[str, str]:
    """Return a page's parts by their names.

    >>> parts("# Performance\\n\\n## startup\\na\\n\\n## latency\\nb\\n")
    {'startup': '## startup\\na\\n', 'latency': '## latency\\nb\\n'}
    """
    sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return {text.split("\n", 1)[0].removeprefix("## "): text.strip("\n") + "\n" for text in sections}


if __name__ == "__main__":
    outcomes = {name: run(name) for name in sys.argv[1:] or NAMES}
    print(json.dumps(list(outcomes.values()), indent=1))
    measured = parts(TARGET.read_text()) | {name: part(outcome) for name, outcome in outcomes.items()}
    TARGET.write_text("\n".join([HEAD, *(measured[name] for name in NAMES if name in measured)]))
