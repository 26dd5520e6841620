"""Making Kafka forget a group, or its offsets of one topic. What is forgotten is in an undo file first."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ops.kafka.groups import commit, committed, delete
from ops.offsets.files import write_undo
from ops.stack.programs import JVM_ENVIRONMENT, Programs, java
from outbox.errors import NotReady, PayrelayError, Refused
from outbox.quoting import positional, quoted
from outbox.settings import Settings

TOOL = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
TOOL_S = 60.0


def delete_group(settings: Settings, name: str, *, undo: Path) -> None:
    """The group is no more. Raises Refused where it has members or has never been."""
    write_undo(undo, name, committed(settings, name))
    try:
        delete(settings, name)
    except Refused:
        undo.unlink()  # there is nothing to undo
        raise


def delete_topic(settings: Settings, name: str, topic: str, *, programs: Programs, undo: Path) -> str:
    """The group has no offset of the topic any more, and keeps its others; returns what was done.

    No Python client has a call for that. Kafka's own tool does it in one, where the local stack's programs are at hand; else
    the group is deleted and its other offsets committed again, for which the undo file, that holds all of them, stands in
    case this is cut off between the two. Raises Refused where the group has members.
    """
    offsets = committed(settings, name)
    write_undo(undo, name, offsets)
    if programs.are_there():
        _by_tool(settings, name, topic, programs)
        how = "by Kafka's own tool"
    else:
        delete(settings, name)
        try:
            commit(settings, name, {place: offset for place, offset in offsets.items() if place[0] != topic})
        except PayrelayError as error:
            raise type(error)(
                f"{name} is deleted, and its other offsets are not back. To bring them back: payrelay offsets undo --execute {positional(name)} {quoted(undo)}: {error}"
            ) from error
        how = "the group was deleted, and its other offsets were committed again"
    if left := sorted(place for place in committed(settings, name) if place[0] == topic):
        raise Refused(
            f"{name} still has offsets of {topic}, so somebody commits them: stop the group's members and repeat ({left})"
        )
    return f"{name} has no offset of {topic} any more: {how}"


def _by_tool(settings: Settings, name: str, topic: str, programs: Programs) -> None:
    command = [java(), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", programs.class_path(programs.folder), TOOL,
               "--bootstrap-server", settings.kafka_bootstrap, "--delete-offsets", "--group", name, "--topic", topic]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=programs.folder, env={**os.environ, **JVM_ENVIRONMENT},
            capture_output=True, text=True, timeout=TOOL_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise NotReady(
            f"Kafka's tool did not end within {TOOL_S:.0f} s. The group's offsets are now: {committed(settings, name)}"
        ) from error
    if done.returncode:
        raise Refused(f"Kafka's tool refuses: {(done.stderr or done.stdout).strip()[-500:]}")
