"""payrelay notify: list, show, resend, pause, resume, lateness; rule list, explain, set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import typer

from consumers.notification.notifier.filter import STATUSES, NotificationFilter
from ops.cli.context import current_settings
from ops.cli.intent import is_meant
from ops.cli.options import Execute, Output, OutputOfOne, Yes, whole
from ops.cli.output import Format, print_object, print_rows, say
from ops.cli.times import Zone, instant, span, time_option
from outbox.errors import UnknownName

app = typer.Typer(help="Show notifications, send them again, pause receivers, set rules.", no_args_is_help=True)
rule = typer.Typer(help="Show, explain and set rules: when a notification is sent again.", no_args_is_help=True)
app.add_typer(rule, name="rule")

Identity = Annotated[
    UUID | None,
    typer.Argument(metavar="[ID]", help="notification id (the webhook-id), as `payrelay notify list` shows it"),
]
Queue = Annotated[str, typer.Option("--queue", help="merchant or bank")]
Status = Annotated[str, typer.Option("--status", help=f"one of {', '.join(STATUSES)}")]
Merchant = Annotated[str, typer.Option("--merchant", help="merchant number")]
Order = Annotated[str, typer.Option("--order", help="order number")]
Payment = Annotated[str, typer.Option("--payment", help="payment number")]
HttpStatus = Annotated[str, typer.Option("--http-status", help="HTTP status of the last attempt: 503, 5xx or none")]
Begin = Annotated[datetime | None, time_option("--from", "made from this time on")]
End = Annotated[datetime | None, time_option("--to", "made before this time")]
LESS = (
    "service", "queue", "created_at", "finished_at", "payment_no", "planned_at", "last_error", "attempts", "merchant_no"
)  # fmt: skip
"""Columns that a narrow terminal does without, in this order."""

Reason = Annotated[str, typer.Option("--reason", help="why; kept in the audit table")]


@app.command("list")
def list_(
    queue: Queue = "",
    status: Status = "",
    merchant: Merchant = "",
    order: Order = "",
    payment: Payment = "",
    http_status: HttpStatus = "",
    begin: Begin = None,
    end: End = None,
    tz: Zone = "",
    blocked: Annotated[bool, typer.Option("--blocked", help="show paused or blocked receivers instead")] = False,
    limit: Annotated[int, typer.Option("--limit", parser=whole(1, 100_000), help="notifications shown at most")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """Show notifications, newest first, and how many are in each state."""
    from ops.notifications.operations import LaneRow, RecordRow, counts, lanes, records
    from ops.pipeline.health import reader_engine

    settings = current_settings()
    wanted = _filter(queue, status, merchant, order, payment, http_status, *span(begin, end, tz))
    with reader_engine(settings).connect() as connection:
        if blocked:
            listed = lanes(connection)
            print_rows([asdict(row) for row in listed], output, columns=tuple(LaneRow.__dataclass_fields__))
            say(f"{len(listed)} receivers are paused or blocked")
            return
        rows, states = records(connection, wanted, limit=limit), counts(connection, wanted)
    print_rows([asdict(row) for row in rows], output, columns=tuple(RecordRow.__dataclass_fields__), less=LESS)
    total = sum(state.records for state in states)
    summary = ", ".join(f"{state.records} {state.queue} {state.status}" for state in states) or "none"
    say(summary + (f"; the {limit} newest shown" if total > limit else ""))


@app.command()
def show(
    identity: Annotated[UUID, typer.Argument(metavar="ID", help="notification id (the webhook-id)")],
    output: OutputOfOne = Format.JSON,
) -> None:
    """Show one notification: body, planned and actual attempts, answers, postponements, and who sent it again."""
    from ops.notifications.operations import record
    from ops.pipeline.health import reader_engine

    with reader_engine(current_settings()).connect() as connection:
        print_object(record(connection, identity), output)


@app.command()
def resend(
    reason: Reason,
    identity: Identity = None,
    queue: Queue = "",
    status: Status = "",
    merchant: Merchant = "",
    order: Order = "",
    payment: Payment = "",
    http_status: HttpStatus = "",
    begin: Begin = None,
    end: End = None,
    tz: Zone = "",
    limit: Annotated[int, typer.Option("--limit", parser=whole(1, 100_000), help="notifications at most")] = 1_000,
    execute: Execute = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Send one notification, or all that match, again now, under the same ids. Their rules start again.

    Exit code 1 if some were being sent at that moment, and so were not made due.
    """
    from ops.delivery.parked import operator
    from ops.notifications.operations import RecordRow, counts, held_up, records
    from ops.notifications.operations import resend as resend_chosen
    from ops.pipeline.health import reader_engine

    settings = current_settings()
    wanted = _filter(queue, status, merchant, order, payment, http_status, *span(begin, end, tz), identity=identity)
    if wanted == NotificationFilter():
        raise typer.BadParameter("choose some: name an ID, or give --status, --merchant, --order, --from and so on")
    _require(reason)
    with reader_engine(settings).connect() as connection:
        chosen = records(connection, wanted, limit=limit)
        total = sum(state.records for state in counts(connection, wanted))
    if identity and not chosen:
        raise UnknownName(f"no notification {identity} matches. Notifications are shown by: payrelay notify list")
    if not execute:
        print_rows([asdict(row) for row in chosen], output, columns=tuple(RecordRow.__dataclass_fields__), less=LESS)
    count = f"{len(chosen)} of {total} notifications"
    question = f"send {count} again?" if chosen else ""
    if not is_meant(f"{count} would be sent again", execute=execute, yes=yes, does="sends them", question=question):
        return
    done = list(resend_chosen(settings, chosen, reason=reason, actor=operator()))
    with reader_engine(settings).connect() as connection:
        held = held_up(connection, [row.id for row, due in done if due])
    rows = [
        {"id": row.id, "merchant_no": row.merchant_no, "was": row.status, "due": due, "held_up_by": held.get(row.id)}
        for row, due in done
    ]
    print_rows(rows, output, columns=("id", "merchant_no", "was", "due", "held_up_by"))
    busy = sum(not due for _, due in done)
    waits = f"; {len(held)} of them wait: their receivers are paused or held up (payrelay notify list --blocked)"
    say(
        f"{len(done) - busy} are due now" + (waits if held else "") + (f"; {busy} were just being sent" if busy else "")
    )
    if busy:
        raise typer.Exit(1)


Receiver = Annotated[str, typer.Argument(metavar="MERCHANT")]


@app.command()
def pause(merchant: Receiver, reason: Reason, queue: Queue = "merchant") -> None:
    """Stop sending to a receiver until it is resumed. Its notifications wait; none is lost."""
    from ops.notifications.operations import pause_receiver

    _turn(pause_receiver, "paused", queue, merchant, reason)


@app.command()
def resume(merchant: Receiver, reason: Reason, queue: Queue = "merchant") -> None:
    """Send to a receiver again, oldest notification first, and close its breaker."""
    from ops.notifications.operations import resume_receiver

    _turn(resume_receiver, "resumed", queue, merchant, reason)


def _turn(act: Callable[..., bool], word: str, queue: str, merchant: str, reason: str) -> None:
    """The act is done at once: it concerns one receiver, and its opposite undoes it."""
    from ops.delivery.parked import operator
    from ops.notifications.operations import service_of, waiting
    from ops.pipeline.health import reader_engine

    settings = current_settings()
    _require(reason)
    service_of(queue)  # an unknown queue is refused before the database is asked
    with reader_engine(settings).connect() as connection:  # before: what is resumed is sent within milliseconds
        held = waiting(connection, queue, merchant)
    changed = act(settings, queue, merchant, reason=reason, actor=operator())
    said = f"{merchant} is {word} in {queue}" + ("" if changed else ", as it was")
    say(said + (f"; {held} notifications wait" if held else ""))


@app.command()
def lateness(
    begin: Begin = None,
    tz: Zone = "",
    queue: Queue = "",
    output: Output = Format.TABLE,
) -> None:
    """Show how late attempts began, as a histogram: actual time less the last planned time. Covers the last hour, or --from on."""
    from ops.notifications.operations import LatenessRow, service_of
    from ops.notifications.operations import lateness as lateness_of
    from ops.pipeline.health import reader_engine

    settings = current_settings()
    if queue:
        service_of(queue)
    since = instant(begin, tz)
    with reader_engine(settings).connect() as connection:
        rows = lateness_of(connection, begin=since, queue=queue)
    print_rows([asdict(row) for row in rows], output, columns=tuple(LatenessRow.__dataclass_fields__))


@rule.command("list")
def rule_list(output: Output = Format.TABLE) -> None:
    """Show each queue with its rule, success word and limits."""
    from ops.notifications.operations import queues
    from ops.pipeline.health import reader_engine

    with reader_engine(current_settings()).connect() as connection:
        print_rows(queues(connection), output)


@rule.command("explain")
def rule_explain(
    text: Annotated[
        str, typer.Argument(metavar="RULE", help='JSON such as {"1": 0, "2": 1, "3": "30m"}, or a queue\'s name')
    ],
    at: Annotated[datetime | None, time_option("--at", "when it is made: adds each attempt's time")] = None,
    tz: Zone = "",
    output: Output = Format.TABLE,
) -> None:
    """Print a rule's timetable: each attempt, the wait before it, and the time since the start. Plain numbers are minutes."""
    from consumers.notification.queues import QUEUES
    from consumers.notification.rules import parse_rule, timetable

    made_at = instant(at, tz)
    if text in QUEUES:
        from ops.notifications.operations import queues
        from ops.pipeline.health import reader_engine

        with reader_engine(current_settings()).connect() as connection:
            [text] = [row["rule"] for row in queues(connection) if row["queue"] == text]
    rows: list[dict[str, Any]] = []
    for turn in timetable(parse_rule(text)):
        rows.append({"attempt": turn.attempt, "after": str(turn.after), "since_made": str(turn.since_made)})
        if made_at is not None:
            rows[-1]["at"] = made_at + turn.since_made
    print_rows(rows, output)


@rule.command("set")
def rule_set(
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="merchant or bank")],
    text: Annotated[str, typer.Argument(metavar="RULE", help="JSON, as `rule explain` takes it")],
    reason: Reason,
    execute: Execute = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Set a queue's rule. Notifications made before keep their rule."""
    from ops.delivery.parked import operator
    from ops.notifications.operations import change_rule, service_of

    service_of(queue)
    _require(reason)
    rule_explain(text, output=output)
    ahead, question = f"{queue} would have this rule", f"set {queue}'s rule?"
    if not is_meant(ahead, execute=execute, yes=yes, does="sets it", question=question):
        return
    change_rule(current_settings(), queue, text, reason=reason, actor=operator())
    say(f"{queue} has this rule from now on")


def _require(reason: str) -> None:
    if not reason.strip():
        raise typer.BadParameter("--reason is empty: give it, because the audit table keeps it")


def _filter(
    queue: str,
    status: str,
    merchant: str,
    order: str,
    payment: str,
    http_status: str,
    begin: datetime | None,
    end: datetime | None,
    identity: UUID | None = None,
) -> NotificationFilter:
    from ops.notifications.operations import service_of

    if queue:
        service_of(queue)
    return NotificationFilter(
        id=identity,
        queue=queue,
        status=status.upper(),
        merchant_no=merchant,
        order_no=order,
        payment_no=payment,
        http_status=http_status.lower(),
        begin=begin,
        end=end,
    )
