"""A worker whose app has Faust's monitor and a sensor with methods of its own; what they count is in the file MONITORED."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Thread
from typing import Any

import faust
from faust.types import TP

from consumers.accounting.agent import PROCESSOR
from consumers.runtime import worker
from consumers.runtime.app import PipelineApp
from outbox.settings import Settings


class Sensor(faust.Sensor):  # type: ignore[misc]
    """Counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.places: set[tuple[TP, int]] = set()

    def on_message_in(self, tp: TP, offset: int, *_: Any) -> None:
        self.calls["in"] += 1
        self.places.add((tp, offset))

    def on_stream_event_in(self, *_: Any) -> None:
        self.calls["event in"] += 1

    def on_stream_event_out(self, *_: Any) -> None:
        self.calls["event out"] += 1

    def on_message_out(self, *_: Any) -> None:
        self.calls["out"] += 1


class MonitoredApp(PipelineApp):
    """The worker's app, with a monitor of the test's and one sensor more."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.monitor = faust.Monitor()
        self.sensor = Sensor()
        self.sensors.add(self.sensor)
        Thread(target=self._tell, daemon=True).start()

    def _tell(self) -> None:
        target = Path(os.environ["MONITORED"])
        scratch = target.with_suffix(".tmp")
        while True:
            monitor: Any = self.monitor
            figures = {
                "received": monitor.messages_received_total,
                "by_topic": dict(monitor.messages_received_by_topic),
                "messages_active": monitor.messages_active,
                "events": monitor.events_total,
                "by_stream": sum(monitor.events_by_stream.values()),
                "events_active": monitor.events_active,
                "committed": {
                    f"{tp.topic}/{tp.partition}": at for tp, at in monitor.tp_committed_offsets.items() if at
                },
                "commits": len(monitor.commit_latency),
                "sensor": dict(self.sensor.calls),
                "places": len(self.sensor.places),
            }
            scratch.write_text(json.dumps(figures))
            scratch.replace(target)
            time.sleep(0.1)


if __name__ == "__main__":
    assert sys.argv[1] == PROCESSOR.name
    worker.PipelineApp = MonitoredApp
    worker.run([PROCESSOR], Settings())
