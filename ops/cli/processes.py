"""The processes of a stack, local or not: worker, serve, exporter."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli.context import current_settings
from ops.stack.processes import SERVICES
from outbox.errors import Misused


def worker(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="processors, or `notifier` (every queue) or `notifier:QUEUE`; all processors and notifiers without it"
        ),
    ] = None,
) -> None:
    """Run the named processors, or notifiers, in one process, until SIGTERM or Ctrl-C.

    Without a name: all processors in one process, and each queue's notifier in a process beside it. They end together, so that
    whoever supervises this command sees it when one has failed. If PAYRELAY_METRICS_PORT is set, the processors serve metrics there
    and the notifiers at the next ports.
    """
    from ops.cli.worker import run

    try:
        code = run(names or [])
    except Misused as error:
        raise typer.BadParameter(error.message) from error
    raise typer.Exit(code)


def serve(
    names: Annotated[list[str] | None, typer.Argument(help="services; all without it")] = None,
) -> None:
    """Run HTTP services in one process, until SIGTERM or Ctrl-C."""
    wanted = names or SERVICES
    if unknown := [name for name in wanted if name not in SERVICES]:
        raise typer.BadParameter(f"{', '.join(unknown)}; there are: {', '.join(SERVICES)}")
    from consumers.notification.api import create_app as create_notification
    from outbox.http.app import serve as serve_apps
    from producers.bank.api import create_app as create_bank
    from producers.payments.api import create_app as create_payments

    settings = current_settings()
    services = {
        "payments": (create_payments, settings.payments_port),
        "bank": (create_bank, settings.bank_port),
        "notification": (create_notification, settings.notification_port),
    }
    serve_apps([(services[name][0](settings), settings.host, services[name][1]) for name in wanted], settings)


def exporter() -> None:
    """Serve metrics of what belongs to no process: lag, outbox, slot, heartbeat, parked, ledger. Until SIGTERM or Ctrl-C."""
    from ops.monitoring.exporter import run

    run(current_settings())
