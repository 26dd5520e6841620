"""Processors as a process: one or several Faust apps on one worker, watched by a watchdog."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

import faust
import uvloop

from consumers.delivery.processor import Processor
from consumers.runtime.app import PipelineApp, wait_for_broker
from consumers.runtime.transport import FAILED
from outbox.metrics import expose_condition, serve_metrics
from outbox.settings import Environment, Settings
from outbox.status import Condition

SWITCH_S = 0.0005
"""Python's 5 ms would make the database's thread wait for the loop's at each of its round trips."""

HUNG_TICKS = 90
"""Seconds that one turn to the database may take; its own time-outs end it long before."""

log = logging.getLogger(__name__)


class _Worker(faust.Worker):  # type: ignore[misc]
    def _setup_logging(self) -> None:
        """Logging is set up by the process, not by Faust."""
        self.loghandlers: list[logging.Handler] = []

    def _on_sigusr2(self) -> None:
        """Faust would open a debugger."""


def run(processors: Sequence[Processor], settings: Settings) -> None:
    """Run processors until SIGTERM: the batch in hand is committed and mirrored, the groups are left at once, the process ends."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("consumers").setLevel(logging.INFO)
    sys.setswitchinterval(SWITCH_S)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    condition = Condition(Environment().payrelay_condition_file, processors[0].name)
    serve_metrics(settings)
    expose_condition(condition)
    wait_for_broker(settings, condition)
    apps = [PipelineApp(processor, settings, condition) for processor in processors]
    threading.Thread(target=_watch, args=(apps,), name="watchdog", daemon=True).start()
    worker: Any = _Worker(apps[0], *apps[1:], redirect_stdouts=False, loglevel=logging.WARNING)
    worker.spinner = None
    code: Any = 0
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - printed, and the process ends
        traceback.print_exc()
        code = 1
    # Everything has ended in order. What is left are threads of libraries, which an interpreter that is taken down around
    # them can crash on.
    os._exit(code if isinstance(code, int) else 1)


def _watch(apps: Sequence[PipelineApp]) -> None:
    """End the process when a turn to the database hangs. Counts its own ticks, so that being frozen does not count."""
    while True:
        time.sleep(1)
        for app in apps:
            if app.busy_since.is_busy:
                app.busy_since.ticks_busy += 1
            if app.busy_since.ticks_busy > HUNG_TICKS:
                log.critical("hung consumer=%s: no state change in %d s", app.consumer_name, HUNG_TICKS)
                os._exit(FAILED)
