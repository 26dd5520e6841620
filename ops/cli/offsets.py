"""payrelay offsets: list, describe, reset, export, undo, delete, peek."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.cli.context import current_settings, local_folder
from ops.cli.intent import is_meant
from ops.cli.move_options import (
    ByDuration,
    CountLimit,
    FromFile,
    FromGroup,
    FromKafka,
    GroupName,
    OffsetMap,
    Partitions,
    ShiftBy,
    StopWorkers,
    ToCurrent,
    ToDatetime,
    ToEarliest,
    ToEvent,
    ToLatest,
    ToOffset,
    ToOrder,
    Topics,
    UndoFile,
    Wait,
)
from ops.cli.options import Execute, Output, Yes, whole
from ops.cli.output import Format, json_line, legible, print_json, print_line, print_rows, reader_has_gone, say
from ops.cli.times import Zone
from outbox.clock import utc_now, zone_of
from outbox.quoting import positional, quoted

if TYPE_CHECKING:
    from ops.offsets.plan import MovePlan, Scope, View
    from ops.offsets.wishes import MoveOptions
    from outbox.settings import Settings

app = typer.Typer(
    help="Show and move the positions of consumer groups, on any Kafka.\n\n"
    "For payrelay's own consumers, `progress` and Kafka's offset move together. Moving a group back redelivers events, and "
    "its consumer drops those already applied: to fill holes use `payrelay replay redeliver`, to rebuild tables use "
    "`payrelay replay rebuild`. (`faust reset` is something else: it deletes Faust's local tables, and payrelay has none.)",
    no_args_is_help=True,
)

COUNT_LIMIT = 200_000
LESS = ("host", "client", "begin", "lag_s", "committed", "progress", "end")
"""Columns of `describe` that a narrow terminal does without, in this order."""
WATCH_S = 2.0


@app.command("list")
def list_(output: Output = Format.TABLE) -> None:
    """Show every group: state, type and members. Kafka Connect's own group and share groups are listed too; they are no consumer groups."""
    from ops.delivery.registry import known_processors
    from ops.kafka.groups import UNKNOWN, groups

    settings = current_settings()
    ours = known_processors(settings)
    rows = [
        {
            "group": listed.name,
            "state": listed.state,
            "type": listed.type,
            "members": None if listed.state == UNKNOWN else len(listed.members),
            "ours": ours[listed.name].service if listed.name in ours else "",
        }
        for listed in groups(settings)
    ]
    print_rows(rows, output, columns=("group", "state", "type", "members", "ours"))


@app.command()
def describe(
    group: GroupName,
    topic: Topics = None,
    partitions: Partitions = "",
    only_lagging: Annotated[bool, typer.Option("--only-lagging", help="only partitions with lag")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="repeat every 2 s until Ctrl-C")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show a group's position in each partition, the log's end, the lag in messages and seconds, and who reads it.

    With --watch and -o json each round is an object on a line of its own.
    """
    from ops.offsets.plan import look

    settings = current_settings()
    scope = _scope(settings, group, topic, partitions)
    while True:
        view = look(settings, group, scope)
        _require_known(view)
        if watch and sys.stdout.isatty():
            _clear_screen()
        _print_view(settings, view, output, only_lagging=only_lagging, again=watch)
        if not watch or reader_has_gone():
            return
        time.sleep(WATCH_S)


def _clear_screen() -> None:
    from ops.cli.output import console

    console.clear()


def _require_known(view: View) -> None:
    """The group exists, or has a position. Raises UnknownName otherwise: a mistyped name must not pass for an empty group."""
    from outbox.errors import UnknownName

    if not view.group.exists and not any(standing.position is not None for standing in view.standings):
        raise UnknownName(f"there is no group {view.group.name!r}. Groups are shown by: payrelay offsets list")


def _print_view(settings: Settings, view: View, output: Format, *, only_lagging: bool, again: bool) -> None:
    from ops.kafka.reader import append_times
    from ops.offsets.shown import described, headline, lag_line, standing_columns, standing_row

    behind = {(standing.place, standing.begin) for standing in view.standings if standing.behind}
    times = append_times(settings, behind)
    now = utc_now()
    ages = {place: (now - at).total_seconds() for (place, _), at in times.items()}
    rows = [
        standing_row(view, standing, ages.get(standing.place))
        for standing in view.standings
        if standing.behind or not only_lagging
    ]
    if output is Format.JSON:
        shown = described(view, rows)
        if again:
            print_line(json_line(shown))
        else:
            print_json(shown)
        return
    say(headline(view))
    print_rows(rows, output, columns=standing_columns(view), less=LESS)
    say(lag_line(rows))


@app.command()
def reset(
    group: GroupName,
    to_earliest: ToEarliest = False,
    to_latest: ToLatest = False,
    to_current: ToCurrent = False,
    to_offset: ToOffset = None,
    to_datetime: ToDatetime = "",
    by_duration: ByDuration = "",
    shift_by: ShiftBy = None,
    from_file: FromFile = None,
    from_group: FromGroup = None,
    map_: OffsetMap = "",
    to_order: ToOrder = None,
    to_event: ToEvent = None,
    from_kafka: FromKafka = False,
    topic: Topics = None,
    partitions: Partitions = "",
    tz: Zone = "",
    execute: Execute = False,
    yes: Yes = False,
    stop_workers: StopWorkers = False,
    wait: Wait = "0s",
    undo_file: UndoFile = None,
    count_limit: CountLimit = COUNT_LIMIT,
    output: Output = Format.TABLE,
) -> None:
    """Move a group to other offsets. Without --execute, only show the old and new offsets and what lies between.

    With --execute it writes an undo file, commits, and reads the offsets back; exit code 1 if they differ. Without --topic, it moves every partition in which the group has a position. An active group is refused.
    """
    from ops.offsets.wishes import MoveOptions

    options = MoveOptions(
        to_earliest=to_earliest, to_latest=to_latest, to_current=to_current, from_kafka=from_kafka, to_offset=to_offset,
        shift_by=shift_by, at=_instant(to_datetime, by_duration, tz), from_file=from_file, from_group=from_group,
        map=_map(map_, topic), to_order=to_order, to_event=to_event,
    )  # fmt: skip
    if options.given != 1 or (to_datetime and by_duration):
        raise typer.BadParameter("say once where to move the group: --to-…, --by-duration, --shift-by, --from-…, --map")
    how = Carrying(execute, yes, stop_workers, _duration(wait), undo_file, count_limit, output)
    _move(group, options, topic, partitions, how)


@app.command()
def undo(
    group: GroupName,
    file: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="undo file; default: the latest")
    ] = None,
    execute: Execute = False,
    yes: Yes = False,
    stop_workers: StopWorkers = False,
    wait: Wait = "0s",
    undo_file: UndoFile = None,
    count_limit: CountLimit = COUNT_LIMIT,
    output: Output = Format.TABLE,
) -> None:
    """Move a group back to where it was before its last reset, undo or delete, as its undo file says. A second undo makes the move again."""
    from ops.kafka.groups import cluster_id
    from ops.offsets.files import last_undo_file, undo_folder
    from ops.offsets.wishes import MoveOptions

    settings = current_settings()
    file = file or last_undo_file(undo_folder(_undo_home(), cluster_id(settings), group))
    say(f"undo file {file}")
    how = Carrying(execute, yes, stop_workers, _duration(wait), undo_file, count_limit, output)
    _move(group, MoveOptions(from_file=file), None, "", how)


@app.command()
def export(
    groups: Annotated[list[str], typer.Argument(metavar="GROUP...", help="names of consumer groups")],
    file: Annotated[Path | None, typer.Option("--file", help="file to write; default: standard output")] = None,
) -> None:
    """Write the positions of groups as CSV (topic,partition,offset; of several groups, with the group first). kafka-consumer-groups can read it."""
    from ops.offsets.files import as_csv
    from ops.offsets.plan import look
    from outbox.errors import Refused

    settings = current_settings()
    views = [look(settings, name) for name in groups]
    for view in views:
        _require_known(view)
    offsets = {
        view.group.name: {at.place: at.position for at in view.standings if at.position is not None} for view in views
    }
    content = as_csv(offsets)
    if file is None:
        sys.stdout.write("".join(map(_shown_line, content.splitlines())))
    else:
        try:
            file.write_text(content)
        except OSError as error:
            raise Refused(f"{file} cannot be written, so nothing was exported: {error.strerror}") from error
    say(f"{content.count(chr(10))} offsets exported")


def _shown_line(line: str) -> str:
    """Return a line of a file of offsets, exact for whatever reads it; what a group's name does to a terminal is written out."""
    return f"{legible(line) if sys.stdout.isatty() else line}\n"


@app.command()
def delete(
    group: GroupName,
    topic: Annotated[str, typer.Option("--topic", help="delete only the group's offsets of this topic")] = "",
    execute: Execute = False,
    yes: Yes = False,
    wait: Wait = "0s",
    undo_file: UndoFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Delete a group from Kafka, or only its offsets of one topic. `undo` restores them. For payrelay's consumers, `progress` stays."""
    from ops.kafka.groups import committed
    from ops.kafka.groups import group as find_group
    from ops.offsets.delete import delete_group, delete_topic
    from ops.offsets.move import require_inactive
    from ops.offsets.ours import ours
    from ops.stack.programs import installed_programs
    from outbox.errors import UnknownName

    settings = current_settings()
    if ours(settings, group) is not None:
        say(
            f"{group} is a consumer of payrelay: its progress stays, and the next start of its worker commits it to Kafka again"
        )
    offsets = committed(settings, group)
    if not offsets and not find_group(settings, group).exists:
        raise UnknownName(f"there is no group {group!r}. Groups are shown by: payrelay offsets list")
    doomed = {place: offset for place, offset in offsets.items() if not topic or place[0] == topic}
    if topic and not doomed:
        raise UnknownName(f"{group} has no offset of {topic!r}: payrelay offsets describe {positional(group)}")
    rows = [{"topic": place[0], "partition": place[1], "offset": offset} for place, offset in sorted(doomed.items())]
    print_rows(rows, output, columns=("topic", "partition", "offset"))
    if execute:
        require_inactive(settings, group, how=_how_to_stop(settings, group), within=_duration(wait))
    question = f"delete {len(doomed)} offsets{'' if topic else ' and the group'}?"
    if not is_meant(execute=execute, yes=yes, does="deletes them", question=question):
        return
    path = _undo_path(settings, group, undo_file)
    if topic:
        say(delete_topic(settings, group, topic, programs=installed_programs(_home()), undo=path))
    else:
        delete_group(settings, group, undo=path)
        say(f"{group} is deleted")
    say(f"to bring the offsets back: payrelay offsets undo {positional(group)} ({path})")


@app.command()
def peek(
    group: GroupName,
    before: Annotated[int, typer.Option("--before", parser=whole(0, 1_000), help="messages before its position")] = 2,
    after: Annotated[int, typer.Option("--after", parser=whole(0, 1_000), help="messages from its position on")] = 3,
    topic: Topics = None,
    partitions: Partitions = "",
    output: Output = Format.TABLE,
) -> None:
    """Show the messages around a group's position in each partition, with bodies; for payrelay's consumers, also each event's fate."""
    from ops.offsets.peek import COLUMNS, peek_rows
    from ops.offsets.plan import look

    settings = current_settings()
    view = look(settings, group, _scope(settings, group, topic, partitions))
    _require_known(view)
    rows = peek_rows(settings, view, before=before, after=after, whole=output is not Format.TABLE)
    print_rows(rows, output, columns=COLUMNS if view.ours else tuple(name for name in COLUMNS if name != "fate"))


# ---- a move, carried out --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Carrying:
    """How a move is carried out."""

    execute: bool
    yes: bool
    stop_workers: bool
    wait: timedelta
    undo_file: Path | None
    count_limit: int
    output: Format


def _move(group: str, options: MoveOptions, topics: list[str] | None, partitions: str, how: Carrying) -> None:
    """The group is where the options say, or the plan was only shown. Workers are stopped first, so that what is confirmed is what is done."""
    settings = current_settings()
    stopped: AbstractContextManager[None] = nullcontext()
    if how.execute and how.stop_workers:
        stopped = _workers_stopped(settings, group)
    with stopped:
        _plan_and_move(settings, group, options, _scope(settings, group, topics, partitions), how)


def _plan_and_move(settings: Settings, group: str, options: MoveOptions, scope: Scope | None, how: Carrying) -> None:
    from ops.offsets.move import execute, require_inactive
    from ops.offsets.plan import plan
    from ops.offsets.shown import both_ways, headline, plan_columns, plan_lines, plan_rows
    from ops.offsets.wishes import look_for

    if how.execute:
        require_inactive(settings, group, how=_how_to_stop(settings, group), within=how.wait)
    view, wish = look_for(settings, group, options, scope)
    if options.at is not None:
        say(f"to {both_ways(options.at, options.at if options.at.tzname() != 'UTC' else options.at.astimezone())}")
    made = plan(settings, view, wish, count_limit=how.count_limit)
    say(headline(view))
    print_rows(plan_rows(made), how.output, columns=plan_columns(made))
    for line in plan_lines(made):
        say(line)
    if not how.execute and view.group.is_active:
        say(f"the group is active, and would be refused. {_how_to_stop(settings, group)}")
    if not is_meant(execute=how.execute, yes=how.yes, does="moves the group", question=f"move {group}?"):
        return
    if not how.yes:  # the answer took its time
        require_inactive(settings, group, how=_how_to_stop(settings, group))
    undo_path = _undo_path(settings, group, how.undo_file)
    differences = execute(settings, made, undo_path)
    _tell_outcome(group, made, undo_path, differences)


def _tell_outcome(group: str, made: MovePlan, undo_path: Path, differences: list[Any]) -> None:
    if without := len(made.moves) - len(made.seen):
        say(
            f"{without} partitions had no position before, and undo does not take theirs away. To do that: payrelay offsets delete {positional(group)}"
        )
    if made.seen:
        say(f"to move it back: payrelay offsets undo {positional(group)} ({undo_path})")
    if differences:
        for difference in differences:
            say(
                f"{difference.place[0]}/{difference.place[1]}: {difference.where} was to be {difference.wanted}, and is {difference.found}"
            )
        raise typer.Exit(1)
    say(f"{group} is at the new offsets in {len(made.moves)} partitions, as read back")


@contextmanager
def _workers_stopped(settings: Settings, group: str) -> Iterator[None]:
    """The local stack's workers of the group are stopped meanwhile, and run again afterwards, whatever happens."""
    from ops.stack.control import stopped
    from outbox.errors import Refused

    folder, parts = local_folder(), _local_parts(settings, group)
    if folder is None or not parts:
        raise Refused(f"no part of the local stack is a worker of {group}: stop what runs it yourself")
    say(f"stopping {', '.join(parts)}")
    with stopped(folder, parts, reason=f"payrelay offsets moves {group}"):
        try:
            yield
        finally:
            say(f"starting {', '.join(parts)}")


def _local_parts(settings: Settings, group: str) -> list[str]:
    """Return the parts of the local stack that are in a group."""
    folder = local_folder()
    if folder is None or not group.startswith(settings.group_prefix):
        return []
    wanted = f"worker:{group.removeprefix(settings.group_prefix)}"
    return [state.name for state in folder.states() if state.name == wanted]


def _how_to_stop(settings: Settings, group: str) -> str:
    from ops.delivery.registry import known_processors

    if parts := _local_parts(settings, group):
        return (
            f"Stop them: payrelay stop {' '.join(map(quoted, parts))}; --stop-workers does that, and starts them again."
        )
    if (processor := known_processors(settings).get(group)) is not None:
        return f"End these processes on their hosts: payrelay worker {quoted(processor.name)}."
    return "End these processes on their hosts; one that was killed is a member until its session time-out."


# ---- what an operator types -----------------------------------------------------------------------------------------


def _scope(settings: Settings, group: str, topics: list[str] | None, partitions: str) -> Scope | None:
    """Return the topics and partitions meant; None means those that the group has a position in."""
    from ops.offsets import targets
    from ops.offsets.plan import look

    try:
        scope = targets.scopes(topics or ())
        only = targets.partitions(partitions) if partitions else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if only is None:
        return scope or None
    if any(named is not None for named in scope.values()):
        raise typer.BadParameter("partitions are named both in --topic and by -p: name them once")
    names = scope or {standing.place[0] for standing in look(settings, group).standings}
    return dict.fromkeys(names, only)


def _instant(to_datetime: str, by_duration: str, tz: str) -> datetime | None:
    from ops.offsets.targets import instant

    ago = _duration(by_duration) if by_duration else None
    try:
        if ago is not None:
            return utc_now() - ago
        if not to_datetime:
            return None
        zone = zone_of(tz) if tz else None
        at = instant(to_datetime, zone)
        at.astimezone(UTC)  # as it is shown and looked up
        return at.astimezone(zone) if zone is not None else at
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except OverflowError as error:
        raise typer.BadParameter(f"{by_duration or to_datetime!r} is before the year 1 or after 9999") from error


def _duration(text: str) -> timedelta:
    from ops.offsets.targets import duration

    try:
        return duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _map(text: str, topics: list[str] | None) -> dict[tuple[str, int], int] | None:
    from ops.offsets.targets import offset_map

    if not text:
        return None
    if not topics or len(topics) != 1 or ":" in topics[0]:
        raise typer.BadParameter("--map needs exactly one --topic, without partitions")
    try:
        return {(topics[0], partition): offset for partition, offset in offset_map(text).items()}
    except ValueError as error:
        raise typer.BadParameter(f"--map: {error}") from error


def _home() -> Path:
    from ops.cli.context import this_stack

    return this_stack().home


def _undo_home() -> Path:
    """Return where undo files lie: with the local stack, since all of these call their cluster by one name."""
    folder = local_folder()
    return folder.path if folder is not None else _home()


def _undo_path(settings: Settings, group: str, given: Path | None) -> Path:
    from ops.kafka.groups import cluster_id
    from ops.offsets.files import new_undo_file, undo_folder

    return given or new_undo_file(undo_folder(_undo_home(), cluster_id(settings), group), utc_now())
