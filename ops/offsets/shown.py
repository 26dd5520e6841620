"""Groups, positions and plans as rows and sentences. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ops.kafka.groups import Group
from ops.offsets.plan import Counted, MovePlan, View
from ops.offsets.targets import PartitionPosition

STANDING = ("topic", "partition", "progress", "committed", "begin", "end", "lag", "lag_s", "client", "host", "note")
MOVE = ("topic", "partition", "old", "new", "delta", "lands_at", "lag")
COUNTED = ("records", "applied", "not_applied", "parked", "outside", "forgotten", "unreadable")


def at(instant: datetime | None) -> str | None:
    """Return an instant to the millisecond, in UTC."""
    return None if instant is None else f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def both_ways(instant: datetime, local: datetime) -> str:
    """Return an instant in UTC, and as it is where the operator is."""
    return f"{at(instant)} = {local:%Y-%m-%d %H:%M:%S%z} {local.tzname()}"


def standing_row(view: View, standing: PartitionPosition, age_s: float | None) -> dict[str, Any]:
    """Return a partition's row of `offsets describe`."""
    member = next((member for member in view.group.members if standing.place in member.places), None)
    return {
        "topic": standing.place[0],
        "partition": standing.place[1],
        "progress": standing.progress,
        "committed": standing.committed,
        "begin": standing.low,
        "end": standing.high,
        "lag": standing.behind,
        "lag_s": 0.0 if standing.behind == 0 else age_s,
        "client": member.client if member else "",
        "host": member.host if member else "",
        "note": standing.note,
    }


def standing_columns(view: View) -> tuple[str, ...]:
    """Return the columns that a group's table has: progress is ours only, and a note is shown where there is one."""
    left_out = {"progress"} if view.ours is None else set()
    if view.ours is None and not any(standing.note for standing in view.standings):
        left_out.add("note")
    return tuple(name for name in STANDING if name not in left_out)


def described(view: View, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a group with its members and the rows of its partitions, as one thing."""
    return {
        "group": view.group.name,
        "state": view.group.state,
        "type": view.group.type,
        "members": [asdict(member) | {"places": sorted(member.places)} for member in view.group.members],
        "ours": view.ours.processor.service if view.ours else "",
        "partitions": list(rows),
    }


def headline(view: View) -> str:
    """Return one line that describes a group."""
    kind = (
        f", a consumer of payrelay: progress in {view.ours.processor.service}, Kafka's offset is its mirror"
        if view.ours
        else ""
    )
    return f"{view.group.name}: {view.group.state} {view.group.type}, members {len(view.group.members)}{kind}"


def lag_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a group's whole lag, and where it is largest."""
    behind = [row for row in rows if row["lag"]]
    notes = sum(bool(row["note"]) for row in rows)
    noted = f"; notes on {notes} partitions" if notes else ""
    if not behind:
        return f"lag 0{noted}"
    most = max(behind, key=lambda row: row["lag"])
    ages = [row["lag_s"] for row in behind if row["lag_s"] is not None]
    oldest = f", the oldest waits {max(ages):.1f} s" if ages else ""
    return f"lag {sum(row['lag'] for row in behind)}, most {most['lag']} in {most['topic']}/{most['partition']}{oldest}{noted}"


def plan_rows(plan: MovePlan) -> list[dict[str, Any]]:
    """Return a plan's rows: each partition's old and new offset, and what lies between."""
    return [
        {
            "topic": move.place[0],
            "partition": move.place[1],
            "old": move.old,
            "new": move.new,
            "delta": move.delta,
            "lands_at": at(move.lands_at),
            "lag": move.lag,
            **(_counts(move.counted) if move.counted is not None else {}),
            "note": move.note,
        }
        for move in plan.moves
    ]


def plan_columns(plan: MovePlan) -> tuple[str, ...]:
    """Return the columns of a plan's table: what is always there, and of the rest what says something."""
    rows = plan_rows(plan)
    counted = [name for name in COUNTED if any(name in row for row in rows)]
    needed = [name for name in counted if name not in COUNTED[4:] or any(row.get(name) for row in rows)]
    return (*MOVE, *needed, *(["note"] if any(row["note"] for row in rows) else []))


def _counts(counted: Counted) -> dict[str, int]:
    return {
        "records": counted.effects.records + counted.forgotten,
        "applied": counted.effects.applied,
        "not_applied": counted.effects.would_apply,
        "parked": counted.effects.parked,
        "outside": counted.effects.outside,
        "forgotten": counted.forgotten,
        "unreadable": counted.effects.unreadable,
    }


def plan_lines(plan: MovePlan) -> list[str]:
    """Return sentences on what a plan does to events; the dangerous part is in capitals."""
    if plan.uncounted:
        skips = any(not move.is_back and move.span for move in plan.moves)
        danger = "; those that it SKIPS may never have been applied" if skips else ""
        return [
            f"{plan.uncounted} messages lie between old and new, more than --count-limit: which of them are applied is not counted{danger}"
        ]
    lines = []
    back = _sum([move.counted for move in plan.moves if move.is_back and move.counted])
    ahead = _sum([move.counted for move in plan.moves if not move.is_back and move.counted])
    if back["records"]:
        lines.append(
            f"redelivers {back['records']} messages: {back['applied']} are already applied and will be dropped, "
            f"{back['not_applied']} will be applied ({back['outside']} of them notify a receiver), {back['parked']} are parked"
            + _rest(back, "; {forgotten} are older than the inbox remembers and will be parked")
        )
    if ahead["records"]:
        lines.append(
            f"SKIPS {ahead['records']} messages: {ahead['applied']} are applied, {ahead['parked']} are parked"
            + _rest(ahead, ", {forgotten} are older than the inbox remembers")
        )
        if never := ahead["not_applied"] + ahead["unreadable"]:
            lines.append(
                f"{never} OF THEM WERE NEVER APPLIED, and will not be until they are redelivered: payrelay replay redeliver"
            )
    return lines


def _sum(counted: Sequence[Counted]) -> dict[str, int]:
    rows = [_counts(counts) for counts in counted]
    return {name: sum(row[name] for row in rows) for name in COUNTED}


def _rest(counts: Mapping[str, int], text: str) -> str:
    return (text.format(**counts) if counts["forgotten"] else "") + (
        f"; {counts['unreadable']} cannot be read" if counts["unreadable"] else ""
    )


def members(described: Group) -> list[str]:
    """Return a line for each member: what it is, where it runs, and how many partitions it has."""
    lines = [
        f"{member.client}  on {member.host}  {len(member.places)} partitions  {member.id}"
        for member in described.members
    ]
    return lines or [f"none yet: {described.state}"]
