"""payrelay reconcile: what should have happened beside what did."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.cli.context import current_settings
from ops.cli.intent import is_meant
from ops.cli.options import Output, Yes, whole
from ops.cli.output import Format, print_json, print_rows, say
from schemas.numeric import parse_whole

if TYPE_CHECKING:  # commands import what they run: --help is quick
    from ops.reconcile.findings import Finding
    from ops.reconcile.run import Report
    from outbox.settings import Settings

COLUMNS = ("kind", "consumer", "event_id", "type", "key", "order_no", "place", "found", "fix")
SPAN_MAX_S = 3_650 * 86_400
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def reconcile(
    full: Annotated[
        bool, typer.Option("--full", help="look at everything that is kept, not only at what is new")
    ] = False,
    grace: Annotated[
        str,
        typer.Option(
            "--grace",
            metavar="SPAN",
            help="ignore events younger than this, which may be on their way: 30s, 10m, 2h, 1d",
        ),
    ] = "10m",
    fix: Annotated[
        bool, typer.Option("--fix", help="show what would fix the findings; with --execute, fix them")
    ] = False,
    execute: Annotated[bool, typer.Option("--execute", help="with --fix: carry out the fixes")] = False,
    yes: Yes = False,
    limit: Annotated[
        int, typer.Option("--limit", parser=whole(1, 100_000), help="findings of each kind that the table names")
    ] = 20,
    output: Output = Format.TABLE,
) -> None:
    """Compare orders, outbox, topics, inboxes, vouchers, funds, points and notifications, and name every difference.

    Looks at what is new since the last run, and at findings that are still open. Exit code 1 if something is wrong, or has waited longer than the grace.
    """
    from ops.reconcile.run import reconcile as run

    if execute and not fix:
        raise typer.BadParameter("--execute needs --fix: without it, reconcile changes nothing")
    settings = current_settings()
    span = span_of(grace)
    report = run(settings, full=full, grace=span)
    if fix and report.findings:
        report = _fixed(settings, report, grace=span, execute=execute, yes=yes)
    show(report, _rows(settings, report.findings), output, limit=limit)
    if not report.is_clean:
        raise typer.Exit(1)


FIX_S = 120.0
"""Seconds that a step may take, and seconds to wait until what was fixed is no finding any more."""


def _fixed(settings: Settings, report: Report, *, grace: timedelta, execute: bool, yes: bool) -> Report:
    """The plan is shown, and done if it is wanted; returns how things are then."""
    from ops.delivery.parked import operator
    from ops.reconcile.fix import carry_out, settle
    from ops.reconcile.plan import plan

    steps = plan(settings, report.findings)
    for step in steps:
        say(f"{len(step.findings)} {step.kind} at {step.at}: {step.what}")
    if all(step.by_hand for step in steps):
        say("no command fixes any of these findings: each row says what to look at")
        return report
    if not is_meant(execute=execute, yes=yes, does="fixes it", question="fix these findings?"):
        return report
    tried = []
    for outcome in carry_out(settings, steps, actor=operator(), within_s=FIX_S):
        if not outcome.step.by_hand:
            say(f"{outcome.step.kind} at {outcome.step.at}: {outcome.done} done, {len(outcome.failed)} failed")
        for subject, why in list(outcome.failed.items())[:20]:
            say(f"  {subject}: {why}")
        tried += [outcome.step] if outcome.done or not outcome.failed else []
    return settle(settings, tried, grace=grace, within_s=FIX_S)


def span_of(given: str) -> timedelta:
    """Return a span of time as it was typed.

    >>> span_of("10m")
    datetime.timedelta(seconds=600)
    """
    number, unit = given[:-1], given[-1:]
    try:
        seconds = parse_whole(number) * SECONDS[unit]
    except (ValueError, KeyError) as error:
        raise typer.BadParameter(f"{given[:40]!r} is no span of time: write e.g. 30s, 10m, 2h or 1d") from error
    if seconds > SPAN_MAX_S:
        raise typer.BadParameter(f"{given!r} is longer than events are kept: give a shorter span")
    return timedelta(seconds=seconds)


def show(report: Report, rows: list[dict[str, Any]], output: Format, *, limit: int) -> None:
    """The findings are on standard output: counted and, of each kind, the first ones named; all of them unless for a table."""
    if output is Format.JSON:
        print_json(
            {
                "findings": rows,
                "waiting": report.waiting,
                "skipped": report.skipped,
                "fixed": len(report.closed),
                "events": report.events,
                "before": report.before,
                "upto": report.upto,
                "seconds": round(report.seconds, 3),
            }
        )
    elif output is Format.CSV:
        print_rows(rows, output, columns=COLUMNS)
    else:
        counts = Counter((row["kind"], row["consumer"] or row["service"]) for row in rows)
        if counts:
            print_rows([{"kind": kind, "at": at, "count": count} for (kind, at), count in counts.items()], output)
            print_rows(_first(rows, limit), output, columns=COLUMNS)
    for what, count in sorted(report.waiting.items()):
        say(f"{count} events older than the grace still wait for {what}. What holds them up: payrelay doctor")
    if report.skipped:
        say(f"{report.skipped} events were skipped by an operator: parked_audit keeps them")
    if report.closed:
        say(f"{len(report.closed)} earlier findings are fixed")
    say(
        f"{report.events} events looked at in {report.seconds:.1f} s, up to {report.upto or 'nowhere: a prepared transaction is open'}; "
        f"{len(report.findings)} findings"
    )


def _first(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    seen: Counter[tuple[str, str]] = Counter()
    first = []
    for row in rows:
        seen[row["kind"], row["consumer"]] += 1
        if seen[row["kind"], row["consumer"]] <= limit:
            first.append(row)
    if len(first) < len(rows):
        say(f"{len(first)} of {len(rows)} named: --limit, or -o json for all")
    return first


def _rows(settings: Settings, findings: list[Finding]) -> list[dict[str, Any]]:
    from ops.delivery.registry import known_consumers
    from ops.reconcile.findings import fix_of

    effects = {name: consumer.effects for name, consumer in known_consumers(settings).items()}
    return [
        {
            "kind": str(finding.kind),
            "service": finding.service,
            "consumer": finding.consumer,
            "event_id": str(finding.event_id or ""),
            "type": finding.type,
            "key": finding.key,
            "order_no": finding.order_no,
            "business_no": finding.business_no,
            "effect": finding.effect,
            "place": finding.place,
            "found": finding.found,
            "fix": fix_of(finding, effects.get(finding.consumer)),
        }
        for finding in findings
    ]
