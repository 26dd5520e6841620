"""payrelay worker: what it runs is imported, and nothing that operators use."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from consumers.notification.queues import QUEUES
from consumers.processors import PROCESSORS
from ops.cli.context import current_settings
from ops.stack.processes import NOTIFIER, NOTIFIERS
from outbox.errors import Misused


def run(names: Sequence[str]) -> int:
    """The named processors or notifiers have run in this process, or all of them in processes of their own; returns the exit code.

    Raises Misused for a name that is none, and for processors and notifiers named together.
    """
    if not names:
        return _run_all()
    notifiers = {NOTIFIER: QUEUES} | NOTIFIERS
    if unknown := [name for name in names if name not in (*PROCESSORS, *notifiers)]:
        raise Misused(f"there is no worker {', '.join(unknown)}; there are: {', '.join((*PROCESSORS, *notifiers))}")
    queues = [notifiers[name] for name in names if name in notifiers]
    if not queues:
        gc.disable()  # imports leave no garbage, and looking for it takes a twentieth of their time
        from consumers.runtime.worker import run as run_processors

        gc.enable()
        run_processors([PROCESSORS[name] for name in dict.fromkeys(names)], current_settings())
    elif len(queues) == len(names):
        from consumers.notification.notifier.sender import run as run_sender

        run_sender(current_settings(), {queue: service for of_name in queues for queue, service in of_name.items()})
    else:
        raise Misused(
            "notifiers and processors run in processes of their own: name only notifiers, only processors, or none for all"
        )
    return 0


def _run_all() -> int:
    """Every processor and every notifier runs, until SIGTERM or Ctrl-C or until one of them ends; returns the exit code."""
    from ops.stack.together import run_together

    settings = current_settings()  # an error in them is reported once, not by each process
    commands = [["worker", *PROCESSORS], *(["worker", name] for name in NOTIFIERS)]
    port = settings.metrics_port
    ports = [{"PAYRELAY_METRICS_PORT": str(port + place)} if port else {} for place in range(len(commands))]
    return run_together(commands, ports)
