"""Every command by name: where it is, and its help's first paragraph, so that `payrelay --help` imports none of them.

A contract test holds the table in step with the commands.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A command that is imported when it is called."""

    module: str
    """Empty: found as an entry point, in a package above this one."""
    attribute: str
    """A function, or a typer.Typer with commands of its own."""
    summary: str


COMMANDS = {
    "setup": Command(
        "ops.cli.local",
        "setup",
        "Fetch the stack's programs and check them by sha256. Repeated, it only checks, and needs no network.",
    ),
    "up": Command(
        "ops.cli.local",
        "up",
        "Start the local stack; parts that have failed or were stopped are started. Leaves one supervisor process, the parent of all parts.",
    ),
    "down": Command("ops.cli.local", "down", "Stop the local stack. Data stays, unless --wipe is given."),
    "stop": Command(
        "ops.cli.local",
        "stop",
        "Stop parts of the local stack. They stay stopped until `payrelay start` or `payrelay up`.",
    ),
    "start": Command("ops.cli.local", "start", "Start parts of the local stack that were stopped or have failed."),
    "restart": Command("ops.cli.local", "restart", "Restart parts of the local stack, also ones that were stopped."),
    "status": Command(
        "ops.cli.status",
        "status",
        "Show each part: state, pid, ports, version, since when, restarts, last exit, condition; and the last round of upkeep.",
    ),
    "logs": Command("ops.cli.status", "logs", "Print the end of a part's log, or of every part's."),
    "migrate": Command(
        "ops.cli.database",
        "migrate",
        "Bring the database to this version: schemas, roles, days ahead, publication, slot. May be repeated.",
    ),
    "worker": Command(
        "ops.cli.processes",
        "worker",
        "Run the named processors, or notifiers, in one process, until SIGTERM or Ctrl-C.",
    ),
    "serve": Command("ops.cli.processes", "serve", "Run HTTP services in one process, until SIGTERM or Ctrl-C."),
    "exporter": Command(
        "ops.cli.processes",
        "exporter",
        "Serve metrics of what belongs to no process: lag, outbox, slot, heartbeat, parked, ledger. Until SIGTERM or Ctrl-C.",
    ),
    "demo": Command(
        "ops.cli.demo",
        "demo",
        "Drive payments through the real services and prove that nothing was lost and nothing doubled.",
    ),
    "doctor": Command(
        "ops.cli.doctor",
        "doctor",
        "Judge whether everything recorded arrives, and whether everything runs that should run. Exit code 1 if something is wrong.",
    ),
    "upkeep": Command(
        "ops.cli.doctor",
        "upkeep",
        "Make days ahead, drop days past their retention that nothing can need any more, purge old answers to the bank.",
    ),
    "timeline": Command(
        "ops.cli.timeline",
        "timeline",
        "Show an order's whole story over every table and topic, in time order with latencies.",
    ),
    "reconcile": Command(
        "ops.cli.reconcile",
        "reconcile",
        "Hold orders, outbox, topics, inboxes, vouchers, funds, points and notifications against each other; name every hole.",
    ),
    "bench": Command(
        "", "", "Run a benchmark on a stack of its own. Exit code 1 if a target is not met or the run is not valid."
    ),
    "sql": Command(
        "ops.cli.database",
        "sql",
        "Open psql on the stack's database as the role `ops`: it reads every service's rows, and its transactions are read only.",
    ),
    "tool": Command(
        "ops.cli.database",
        "tool",
        "Run a program of PostgreSQL's on the stack's database, as its owner, or of Kafka's on its broker, of the server's own version.",
    ),
    "topics": Command("ops.cli.topics", "app", "Topics, as schemas/topics.py declares them."),
    "connect": Command("ops.cli.connect", "app", "The outbox connector on Kafka Connect."),
    "console": Command(
        "ops.cli.console",
        "app",
        "Serve the web console, what waits, failed and was sent, and acting on it, until SIGTERM or Ctrl-C.",
    ),
    "ledger": Command("ops.cli.ledger", "app", "The ledger, as an auditor reads it. Amounts are fen."),
    "notify": Command("ops.cli.notify", "app", "Notifications to merchants, and to the platform on the bank's behalf."),
    "offsets": Command(
        "ops.cli.offsets",
        "app",
        "Where consumer groups stand, and moving them: any group, on any Kafka; of ours, `progress` and Kafka together. Moving a group back redelivers, and what its handler knows is skipped: to fill holes use `payrelay replay redeliver`, to build its tables again `payrelay replay rebuild`. (`faust reset` is something else: it deletes Faust's local tables, which payrelay has none of.)",
    ),
    "parked": Command("ops.cli.parked", "app", "Events that a consumer could not apply, and what waits behind them."),
    "replay": Command(
        "ops.cli.replay", "app", "Events handed to a consumer once more, and its rows made again from them."
    ),
}
"""In the order of `payrelay --help`."""

PASSED_ON = {"tool": {"ignore_unknown_options": True, "allow_interspersed_args": False}}
"""Commands that hand arguments to a program: what stands behind its name is the program's."""

GROUP = "payrelay.commands"
"""Entry points that are commands: pyproject.toml names them."""
