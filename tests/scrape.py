"""What an endpoint exports, as Prometheus would read it."""

from __future__ import annotations

import socket
import urllib.request

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """One reading of a process's metrics."""

    def __init__(self, port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            content = answer.read().decode()
        self.families = {family.name: family for family in text_string_to_metric_families(content)}

    def names(self) -> set[str]:
        """Return the names by which an expression can ask, also of what has no samples yet."""
        names: set[str] = set()
        for family in self.families.values():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            names |= {family.name + suffix for suffix in suffixes}
        return names

    def value(self, sample: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels."""
        return sum(
            point.value
            for family in self.families.values()
            for point in family.samples
            if point.name == sample and labels.items() <= point.labels.items()
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
