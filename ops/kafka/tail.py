"""A topic's messages as an operator reads them: keys, headers and bodies."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

from confluent_kafka import Message

from ops.kafka.reader import Place, appended_at, bounds, follow, read
from outbox.errors import UnknownName
from outbox.settings import Settings


def spans_of(settings: Settings, topic: str) -> dict[Place, range]:
    """Return the offsets of each of a topic's partitions as they are now. Raises UnknownName where there is no such topic."""
    spans = {place: range(low, high) for place, (low, high) in bounds(settings, [topic]).items()}
    if not spans:
        raise UnknownName(f"there is no topic {topic!r}. The topics are shown by: payrelay topics list")
    return spans


def tail(settings: Settings, topic: str, *, from_beginning: bool, live: bool) -> Generator[Message | None]:
    """Give a topic's messages, from its beginning or from now on; None whenever nothing has come for a moment.

    Without `live` it ends with what is there now. Each partition's are in order.
    """
    spans = spans_of(settings, topic)
    if not live:
        yield from read(settings, spans)
    else:
        yield from follow(
            settings, {place: span.start if from_beginning else span.stop for place, span in spans.items()}
        )


def row_of(message: Message) -> dict[str, Any]:
    """Return a message as it is: its body decoded where it is JSON, else as text in which stray bytes are written out."""
    at = appended_at(message)
    return {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "at": at.isoformat() if at else None,
        "key": text_of(message.key()),
        "headers": {name: text_of(value) for name, value in message.headers() or []},
        "body": body_of(message.value()),
    }


def text_of(content: bytes | None) -> str | None:
    """Return bytes as text.

    >>> text_of(b"P1"), text_of(b"\\xff"), text_of(None)
    ('P1', '\\\\xff', None)
    """
    return None if content is None else content.decode(errors="backslashreplace")


def body_of(content: bytes | None) -> Any:
    """Return a body: what its JSON says, or its text; None where there is none, as in a tombstone.

    >>> body_of(b'{"fen": 1}'), body_of(b"{"), body_of(None)
    ({'fen': 1}, '{', None)
    """
    try:
        return None if content is None else json.loads(content)
    except ValueError:
        return text_of(content)


def lines_of(row: dict[str, Any]) -> list[str]:
    """Return a message for a reader's eye: where it lies, its headers, its body.

    >>> row = {"topic": "t", "partition": 0, "offset": 7, "at": None, "key": "P1", "headers": {"ce_type": "x"}, "body": {"fen": 1}}
    >>> lines_of(row)
    ['t/0@7  key P1', '  ce_type: x', '  {"fen": 1}']
    """
    head = [
        f"{row['topic']}/{row['partition']}@{row['offset']}",
        row["at"],
        None if row["key"] is None else f"key {row['key']}",
    ]
    body = row["body"] if isinstance(row["body"], str) else json.dumps(row["body"], ensure_ascii=False)
    return [
        "  ".join(part for part in head if part is not None),
        *(f"  {name}: {value}" for name, value in row["headers"].items()),
        "  (no body)" if row["body"] is None else f"  {body}",
    ]
