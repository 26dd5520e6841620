"""Offsets as files: the CSV of Kafka's own tool, both ways, and the files that undo a move."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from ops.kafka.reader import Place
from outbox.errors import Refused
from schemas.numeric import parse_whole

BYTES_MAX = 64 * 1024 * 1024
PARTITION_MAX = 2**31 - 1

NAME_MAX = 120
"""Of a folder named for a group, whose own name may be longer than a file system takes."""


def as_csv(offsets: Mapping[str, Mapping[Place, int]]) -> str:
    """Return `topic,partition,offset` lines, with the group in front where there are several: what kafka-consumer-groups reads."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for group, places in offsets.items():
        front = [group] if len(offsets) > 1 else []
        writer.writerows([*front, topic, partition, offset] for (topic, partition), offset in sorted(places.items()))
    return out.getvalue()


def from_csv(content: str, group: str, *, others: Collection[str] = ()) -> dict[Place, int]:
    """Return a group's offsets of such lines; lines of the other groups that are known are passed over.

    Raises Refused naming the line that is wrong, or that names a group which is not known: a mistyped name drops no line.
    """
    offsets: dict[Place, int] = {}
    for number, row in enumerate(csv.reader(io.StringIO(content)), start=1):
        if not row:
            continue
        *front, topic, partition, offset = ("", "", *row)[-max(3, len(row)) :]
        try:
            place, wanted = (topic, parse_whole(partition, high=PARTITION_MAX)), parse_whole(offset)
        except ValueError:
            place, wanted = ("", 0), 0
        if len(front) > 1 or not place[0]:
            raise Refused(
                f"line {number} is not of the form [group,]topic,partition,offset, so nothing was moved: {','.join(row)[:100]}"
            )
        if front not in ([], [group]):
            if front[0] not in others:
                raise Refused(
                    f"line {number} names group {front[0]!r}, which Kafka does not know and which is not {group!r}: nothing was moved"
                )
            continue
        if place in offsets:
            raise Refused(f"line {number}: {topic}/{partition} is there twice: leave one")
        offsets[place] = wanted
    return offsets


def read_file(path: Path, group: str, *, others: Collection[str] = ()) -> dict[Place, int]:
    """Return a group's offsets of a file. Raises Refused where it cannot be read, holds none, or something else."""
    try:
        if path.stat().st_size > BYTES_MAX:
            raise Refused(f"{path} is larger than {BYTES_MAX} bytes, so it is no file of offsets")
        # Spreadsheets put a byte order mark in front, which would be part of the first name.
        offsets = from_csv(path.read_text(encoding="utf-8-sig"), group, others=others)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{path} cannot be read: {error}") from error
    if not offsets:
        raise Refused(f"{path} holds no offset of group {group!r}, so nothing was moved")
    return offsets


def undo_folder(home: Path, cluster_id: str, group: str) -> Path:
    """Return where the undo files of a group of a cluster lie."""
    name = quote(group, safe="").replace(".", "%2E")
    if len(name) > NAME_MAX:
        name = f"{name[:80]}-{hashlib.sha256(group.encode()).hexdigest()[:16]}"
    return home / "undo" / quote(cluster_id, safe="") / name


def new_undo_file(folder: Path, now: datetime) -> Path:
    """Return the path of an undo file of that instant: by name, later ones come last."""
    return folder / f"{now:%Y%m%dT%H%M%S.%fZ}.csv"


def last_undo_file(folder: Path) -> Path:
    """Return the undo file written last. Raises Refused where there is none."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise Refused(f"there is no undo file in {folder}: nothing of this group was moved from here")
    return files[-1]


def write_undo(path: Path, group: str, offsets: Mapping[Place, int]) -> None:
    """The file holds the offsets, on the disk, readable by its owner only. Raises Refused where it exists already."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise Refused(f"the undo file cannot be written, so nothing was moved: {error}") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(as_csv({group: offsets}))
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
