"""Whether what was recorded arrives on its topics: the newest rows of each outbox beside the messages of each topic.

Each topic is judged by itself: a busy one says nothing about a dead one beside it. Bounded, however much is kept: so many rows,
and so many messages from the ends of the logs. What lies further back `payrelay reconcile` knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from connect.client import ConnectClient, NoConnector
from connect.connector import MESSAGES_LEFT_OUT
from ops.kafka.reader import Place, appended_at, bounds, id_of, offsets_at, read
from ops.pipeline.health import reader_engine
from ops.pipeline.source import passed_lsn, standing
from ops.pipeline.verdict import Verdict
from outbox.clock import EPOCH, first_id_at, time_of
from outbox.errors import PayrelayError
from outbox.messages import public_emitters
from outbox.publication import PUBLISHED_TABLES, published_tables
from outbox.settings import Settings
from schemas.topics import TOPICS, Topic

GRACE = timedelta(seconds=60)
"""So long after its commit an event is on its topic."""
CLOCKS = timedelta(minutes=5)
"""How far the broker's clock may be behind the database's."""
ROWS_MAX = 1_000
"""The newest rows of a topic that are looked for."""
RECORDS_MAX = 10_000
"""Messages read of a partition, the newest: what may have been appended before them is not judged."""
REPAIRING = "payrelay repair"
"""The advisory lock that a repair holds."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A row that should be on its topic by now."""

    id: UUID
    lsn: int


@dataclass(frozen=True, kw_only=True)
class TopicArrival:
    """How the newest rows of a topic fare."""

    topic: str
    judged: int
    missing: tuple[Recorded, ...]
    """On no topic, oldest first."""
    unjudged: int
    """Not among the messages that were read, and so old that they may lie before them."""


def newest_rows(connection: Connection, topic: Topic, *, grace: timedelta = GRACE) -> list[Recorded]:
    """Return the newest rows of a topic that were committed longer ago than the grace by the database's clock, at most ROWS_MAX."""
    rows = connection.execute(
        text(f"""SELECT id, lsn FROM (
                   SELECT id, lsn, xmin AS written FROM {topic.service}.outbox
                   WHERE topic = :topic AND id < :before ORDER BY id DESC LIMIT :most) AS newest
                 WHERE coalesce(pg_xact_commit_timestamp(written), '-infinity') < clock_timestamp() - CAST(:grace AS interval)
                 ORDER BY id"""),  # noqa: S608 - a schema of ours
        {"topic": topic.name, "before": first_id_at(_clock(connection) - grace), "grace": grace, "most": ROWS_MAX},
    )
    return [Recorded(id=row.id, lsn=row.lsn) for row in rows]


def _clock(connection: Connection) -> datetime:
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now


def arrivals(settings: Settings, *, grace: timedelta = GRACE) -> list[TopicArrival]:
    """Return of each topic which of its newest rows are on it. Reads only. Raises Unreachable.

    A row without a message is missing if every message that was appended since its recording was read, and left open else.
    """
    with reader_engine(settings).connect() as connection:
        rows = {topic.name: newest_rows(connection, topic, grace=grace) for topic in TOPICS}
    return [_arrival(settings, topic, rows[topic.name]) for topic in TOPICS]


def _arrival(settings: Settings, topic: Topic, rows: Collection[Recorded]) -> TopicArrival:
    if not rows:
        return TopicArrival(topic=topic.name, judged=0, missing=(), unjudged=0)
    name = settings.topic_prefix + topic.name
    begin = _time(min(row.id for row in rows)) - CLOCKS
    starts = offsets_at(settings, [name], begin)
    logs = bounds(settings, [name])  # after the rows: what had come by then is below
    spans = {place: range(max(starts.get(place, low), high - RECORDS_MAX), high) for place, (low, high) in logs.items()}
    cut = {
        place for place, span in spans.items() if span.start > starts.get(place, 0) or 0 < span.start == logs[place][0]
    }
    seen, first = _read(settings, spans)
    whole_since = max((first.get(place, datetime.max.replace(tzinfo=UTC)) for place in cut), default=begin)
    return judge(topic.name, rows, seen, whole_since=whole_since)


def _read(settings: Settings, spans: Mapping[Place, range]) -> tuple[set[UUID], dict[Place, datetime]]:
    """Return the events in the spans, and when the first message of each was appended."""
    seen: set[UUID] = set()
    first: dict[Place, datetime] = {}
    for message in read(settings, spans):
        if (at := appended_at(message)) is not None:
            first.setdefault((message.topic(), message.partition()), at)
        if (identity := id_of(message)) is not None:
            seen.add(identity)
    return seen, first


def judge(topic: str, rows: Collection[Recorded], seen: Collection[UUID], *, whole_since: datetime) -> TopicArrival:
    """Return how the rows fare, with every message that was appended since then read.

    >>> at = datetime(2026, 1, 1, tzinfo=UTC)
    >>> old, new = (Recorded(id=UUID(int=first_id_at(moment).int | 7 << 76 | 2 << 62), lsn=1) for moment in (at, at + timedelta(hours=1)))
    >>> found = judge("t", [old, new], set(), whole_since=at + timedelta(minutes=1))
    >>> (found.judged, found.missing == (new,), found.unjudged)
    (1, True, 1)
    """
    absent = [row for row in rows if row.id not in seen]
    missing = [row for row in absent if _time(row.id) - CLOCKS >= whole_since]
    return TopicArrival(
        topic=topic,
        judged=len(rows) - len(absent) + len(missing),
        missing=tuple(sorted(missing, key=lambda row: row.id)),
        unjudged=len(absent) - len(missing),
    )


def _time(identity: UUID) -> datetime:
    return time_of(identity) or EPOCH


def is_repairing(connection: Connection) -> bool:
    """Whether a repair of the slot is under way."""
    return bool(
        connection.execute(
            text("""SELECT EXISTS (
                      SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
                        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                        AND (CAST(classid AS bigint) << 32 | CAST(objid AS bigint)) = hashtextextended(:name, 0))"""),
            {"name": REPAIRING},
        ).scalar_one()
    )


# ---- for doctor ---------------------------------------------------------------------------------------------------


REPAIR = "payrelay doctor --repair-slot --execute"
NO_CONNECTOR = "there is no connector of this name"


def check_positions(settings: Settings) -> Verdict:
    """Judge whether the connector's positions are positions of this database's log."""
    try:
        now = standing(settings, patience_s=3.0)
    except NoConnector:
        return Verdict(False, NO_CONNECTOR, "payrelay connect apply --execute")
    if beyond := now.beyond():
        return Verdict(False, f"{beyond}: the database went back, so the connector passes over new events", REPAIR)
    return Verdict(True, "within the log")


def check_arrivals(settings: Settings, *, grace: timedelta = GRACE) -> Verdict:
    """Judge whether what was recorded longer ago than the grace is on its topic, topic by topic."""
    checked = arrivals(settings, grace=grace)
    message = _message(checked, grace)
    missing = [row for arrival in checked for row in arrival.missing]
    if not missing:
        return Verdict(True, message)
    with reader_engine(settings).connect() as connection:
        repairing = is_repairing(connection)
    if repairing:
        return Verdict(False, f"{message}; a repair is under way", "wait until the repair ends, then: payrelay doctor")
    return Verdict(False, message, _fix(settings, checked))


def _message(checked: Collection[TopicArrival], grace: timedelta) -> str:
    """
    >>> well = TopicArrival(topic="a", judged=7, missing=(), unjudged=0)
    >>> _message([well, TopicArrival(topic="b", judged=0, missing=(), unjudged=0)], GRACE)
    'arrived: a 7, b 0'
    >>> _message([TopicArrival(topic="b", judged=1, missing=(Recorded(id=UUID(int=7 << 76), lsn=1),), unjudged=0), well], GRACE)
    'on no topic after 60 s: b 1, since 1970-01-01 00:00:00+0000; arrived: a 7'
    """
    missing = [f"{arrival.topic} {len(arrival.missing)}, since {_time(arrival.missing[0].id):%Y-%m-%d %H:%M:%S%z}"
               for arrival in checked if arrival.missing]  # fmt: skip
    arrived = [f"{arrival.topic} {_arrived(arrival)}" for arrival in checked if not arrival.missing]
    lines = [f"on no topic after {grace.total_seconds():.0f} s: {'; '.join(missing)}"] * bool(missing)
    return "; ".join([*lines, *([f"arrived: {', '.join(arrived)}"] * bool(arrived))])


def _arrived(arrival: TopicArrival) -> str:
    """Return how many rows have arrived, and how many lie further back than the messages that were read, as on a busy topic.

    >>> for judged, unjudged in ((7, 0), (0, 7), (500, 500), (0, 0)):
    ...     print(_arrived(TopicArrival(topic="a", judged=judged, missing=(), unjudged=unjudged)))
    7
    unknown
    500 (500 more unknown: payrelay reconcile)
    0
    """
    if not arrival.unjudged:
        return str(arrival.judged)
    return f"{arrival.judged} ({arrival.unjudged} more unknown: payrelay reconcile)" if arrival.judged else "unknown"


def _fix(settings: Settings, checked: Collection[TopicArrival]) -> str:
    """Return what brings the missing events to their topics: the connector where it still will, the repair where it will not."""
    names = {settings.topic_prefix + arrival.topic for arrival in checked if arrival.missing}
    if names - {topic for topic, _ in bounds(settings, names)}:
        return "payrelay topics apply --execute"
    passed = passed_lsn(settings)
    with reader_engine(settings).connect() as connection:
        whole = published_tables(connection) == PUBLISHED_TABLES
    if passed is None or not whole or any(row.lsn <= passed for arrival in checked for row in arrival.missing):
        return REPAIR
    try:
        state = ConnectClient(settings.connect_url, patience_s=3.0).status(settings.connector).state
    except NoConnector:
        return "payrelay connect apply --execute"
    except PayrelayError:
        return "payrelay status"
    return "payrelay connect resume" if state in ("STOPPED", "PAUSED") else "payrelay connect restart"


def check_messages(settings: Settings) -> Verdict:
    """Judge whether messages that anybody writes into PostgreSQL's log can stop the connector; say whether anybody may."""
    config = ConnectClient(settings.connect_url, patience_s=3.0).config(settings.connector) or {}
    with reader_engine(settings).connect() as connection:
        emitters = public_emitters(connection)
    state = "only the owner's and superusers' to write" if not emitters else "every role may write them"
    if config.get("message.prefix.exclude.list") != MESSAGES_LEFT_OUT:
        return Verdict(False, f"{state}, and the connector stops at the first", "payrelay connect apply --execute")
    if not emitters:
        return Verdict(True, state)
    revoke = "; ".join(f"REVOKE EXECUTE ON FUNCTION {emitter} FROM PUBLIC" for emitter in emitters)
    return Verdict(True, f"{state}; the connector passes over them", f"payrelay migrate, or as a superuser: {revoke}")
