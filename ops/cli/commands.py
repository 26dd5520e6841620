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
        "Download the programs that the local stack needs, and check each by sha256.",
    ),
    "up": Command(
        "ops.cli.local",
        "up",
        "Start the local stack, including parts that have failed or were stopped.",
    ),
    "down": Command("ops.cli.local", "down", "Stop the local stack. Its data stays unless --wipe is given."),
    "stop": Command(
        "ops.cli.local",
        "stop",
        "Stop parts of the local stack. They stay stopped until `payrelay start` or `payrelay up`.",
    ),
    "start": Command("ops.cli.local", "start", "Start parts of the local stack that were stopped or have failed."),
    "restart": Command("ops.cli.local", "restart", "Restart parts of the local stack, including stopped ones."),
    "status": Command(
        "ops.cli.status",
        "status",
        "Show each part of the stack (state, pid, ports, version, start, restarts, last exit, condition), and the last round of upkeep.",
    ),
    "logs": Command("ops.cli.status", "logs", "Print the end of a part's log, or of every part's."),
    "migrate": Command(
        "ops.cli.database",
        "migrate",
        "Bring the database to this version: schemas, roles, partitions for the days ahead, publication, slot. Safe to repeat.",
    ),
    "worker": Command(
        "ops.cli.processes",
        "worker",
        "Run the named processors or notifiers in one process until SIGTERM or Ctrl-C.",
    ),
    "serve": Command("ops.cli.processes", "serve", "Run HTTP services in one process until SIGTERM or Ctrl-C."),
    "exporter": Command(
        "ops.cli.processes",
        "exporter",
        "Serve pipeline-wide metrics (lag, outbox, slot, heartbeat, parked events, ledger) until SIGTERM or Ctrl-C.",
    ),
    "demo": Command(
        "ops.cli.demo",
        "demo",
        "Drive payments through the real services and prove that none was lost and none was doubled.",
    ),
    "doctor": Command(
        "ops.cli.doctor",
        "doctor",
        "Check that every recorded event arrives, and that everything that should run does. Exit code 1 if something is wrong.",
    ),
    "upkeep": Command(
        "ops.cli.doctor",
        "upkeep",
        "Create partitions for the days ahead, drop days past their retention, and purge old answers to the bank.",
    ),
    "timeline": Command(
        "ops.cli.timeline",
        "timeline",
        "Show an order's whole story across every table and topic, in time order, with latencies.",
    ),
    "reconcile": Command(
        "ops.cli.reconcile",
        "reconcile",
        "Compare orders, outbox, topics, inboxes, vouchers, funds, points and notifications, and name every difference.",
    ),
    "bench": Command(
        "", "", "Run a benchmark on a stack of its own. Exit code 1 if a target is missed or the run is not valid."
    ),
    "sql": Command(
        "ops.cli.database",
        "sql",
        "Open psql on the stack's database with the role `ops`: it can read every service's rows, in read-only transactions.",
    ),
    "tool": Command(
        "ops.cli.database",
        "tool",
        "Run a program of PostgreSQL or Kafka, of the server's own version, against the stack.",
    ),
    "topics": Command("ops.cli.topics", "app", "List, apply and read the topics that schemas/topics.py declares."),
    "connect": Command("ops.cli.connect", "app", "Operate the outbox connector on Kafka Connect."),
    "console": Command(
        "ops.cli.console",
        "app",
        "Serve the web console until SIGTERM or Ctrl-C.",
    ),
    "ledger": Command("ops.cli.ledger", "app", "Read, check and correct the ledger. Amounts are in fen."),
    "notify": Command("ops.cli.notify", "app", "Show notifications, send them again, pause receivers, set rules."),
    "offsets": Command(
        "ops.cli.offsets",
        "app",
        "Show and move the positions of consumer groups, on any Kafka.",
    ),
    "parked": Command("ops.cli.parked", "app", "Show, retry and skip parked events, which a consumer could not apply."),
    "replay": Command("ops.cli.replay", "app", "Hand events to a consumer again, or rebuild its rows from its topics."),
}
"""In the order of `payrelay --help`."""

PASSED_ON = {"tool": {"ignore_unknown_options": True, "allow_interspersed_args": False}}
"""Commands that hand arguments to a program: what stands behind its name is the program's."""

GROUP = "payrelay.commands"
"""Entry points that are commands: pyproject.toml names them."""
