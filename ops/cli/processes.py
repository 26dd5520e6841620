"""The processes of a stack, local or not: worker, serve, exporter."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Annotated

import typer

from ops.cli.context import current_settings
from ops.stack.processes import HTTP_SERVICES
from outbox.errors import Misused


def worker(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="processors, or `notifier` (every queue), or `notifier:QUEUE`; default: all processors and notifiers"
        ),
    ] = None,
) -> None:
    """Run the named processors or notifiers in one process until SIGTERM or Ctrl-C.

    Without a name, runs all processors in one process, and each queue's notifier in a process beside it. If one of them
    ends, all end, so that whatever supervises this command notices. If PAYRELAY_METRICS_PORT is set, the processors serve
    metrics on that port, and the notifiers on the ports after it.
    """
    from ops.cli.worker import run

    try:
        code = run(names or [])
    except Misused as error:
        raise typer.BadParameter(error.message) from error
    raise typer.Exit(code)


def serve(
    names: Annotated[list[str] | None, typer.Argument(help="names of services; default: all")] = None,
) -> None:
    """Run HTTP services in one process until SIGTERM or Ctrl-C."""
    wanted = names or list(HTTP_SERVICES)
    if unknown := [name for name in wanted if name not in HTTP_SERVICES]:
        raise typer.BadParameter(f"there is no service {', '.join(unknown)}; there are: {', '.join(HTTP_SERVICES)}")
    from outbox.http.app import serve as serve_apps

    settings = current_settings()
    services = [HTTP_SERVICES[name] for name in wanted]
    serve_apps(
        [(resolve_name(service.app)(settings), settings.host, service.port(settings)) for service in services], settings
    )


def exporter() -> None:
    """Serve pipeline-wide metrics (lag, outbox, slot, heartbeat, parked events, ledger) until SIGTERM or Ctrl-C."""
    from ops.monitoring.exporter import run

    run(current_settings())
