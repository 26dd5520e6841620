"""The way in: how far a consumer has come, and which events it has applied. Both in the transaction of the effects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from outbox.clock import first_id_of
from outbox.partitions import days_of
from outbox.rows import as_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One partition of one topic as it was created. A topic made again under its old name is another log."""

    cluster_id: str
    topic: str
    topic_id: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An event as it came in: its id and where it lay."""

    event_id: UUID
    log: Log
    offset: int


NO_HORIZON = UUID(int=0)

_LOG = "cluster_id = :cluster_id AND topic = :topic AND topic_id = :topic_id AND partition = :partition"

_CLAIM = text("""
    UPDATE progress SET next_offset = span.stop, updated_at = clock_timestamp()
    FROM unnest(CAST(:topics AS text[]), CAST(:topic_ids AS text[]), CAST(:partitions AS integer[]),
                CAST(:starts AS bigint[]), CAST(:stops AS bigint[])) AS span (topic, topic_id, partition, start, stop)
    WHERE progress.consumer = :consumer AND progress.cluster_id = :cluster_id AND progress.topic = span.topic
      AND progress.topic_id = span.topic_id AND progress.partition = span.partition
      AND progress.next_offset = span.start
    RETURNING progress.topic_id, progress.partition, progress.has_parked""")

_LOCK = text(f"""
    SELECT next_offset, has_parked FROM progress WHERE consumer = :consumer AND {_LOG} FOR UPDATE""")  # noqa: S608

_ADVANCE = text(f"""
    UPDATE progress SET next_offset = :stop, updated_at = clock_timestamp()
    WHERE consumer = :consumer AND {_LOG}""")  # noqa: S608

_BEGIN = text("""
    INSERT INTO progress (consumer, cluster_id, topic, topic_id, partition, next_offset, has_parked)
    SELECT :consumer, :cluster_id, :topic, :topic_id, :partition, :next_offset,
           EXISTS (SELECT FROM parked WHERE consumer = :consumer)
    ON CONFLICT (consumer, cluster_id, topic, topic_id, partition) DO NOTHING""")

_MIRRORED = text(f"UPDATE progress SET mirrored_offset = :offset WHERE consumer = :consumer AND {_LOG}")  # noqa: S608

_PLACE = "consumer = :consumer AND topic = :topic AND partition = :partition"
"""A log and its namesakes: a topic made again carries the same keys."""

_HAS_PARKED = text(f"UPDATE progress SET has_parked = true WHERE {_PLACE} AND NOT has_parked")  # noqa: S608

_LOCK_NAMESAKES = text(f"SELECT FROM progress WHERE {_PLACE} AND NOT ({_LOG}) FOR UPDATE")

_LOCK_ALL = text("""
    SELECT FROM progress WHERE consumer = :consumer ORDER BY cluster_id, topic, topic_id, partition FOR UPDATE""")

_NONE_PARKED = text("""
    UPDATE progress SET has_parked = false
    WHERE consumer = :consumer AND has_parked AND NOT EXISTS (SELECT FROM parked WHERE consumer = :consumer)""")

_ARRIVE = text("""
    WITH arrival AS (
      SELECT * FROM json_to_recordset(CAST(:rows AS json))
          AS arrival (event_id uuid, topic text, partition integer, "offset" bigint)),
    arrived AS (
      INSERT INTO inbox (consumer, event_id, topic, partition, "offset")
      SELECT :consumer, arrival.* FROM arrival ORDER BY event_id
      ON CONFLICT (event_id, consumer) DO NOTHING
      RETURNING event_id)
    SELECT event_id FROM arrival EXCEPT SELECT event_id FROM arrived""")

_ARRIVE_BEHIND = text(_ARRIVE.text.replace("INSERT INTO inbox", "INSERT INTO inbox_behind"))

_BEGIN_TOPIC = text("""
    INSERT INTO topic_begun (consumer, topic, horizon, passed_at)
    SELECT :consumer, :topic, :horizon,
           CASE WHEN EXISTS (SELECT FROM progress WHERE consumer = :consumer AND topic = :topic) THEN clock_timestamp() END
    ON CONFLICT (consumer, topic) DO NOTHING""")


def _keys(consumer: str, log: Log) -> dict[str, str | int]:
    return {
        "consumer": consumer,
        "cluster_id": log.cluster_id,
        "topic": log.topic,
        "topic_id": log.topic_id,
        "partition": log.partition,
    }


def positions(connection: Connection, consumer: str, logs: Sequence[Log]) -> dict[Log, tuple[int, int | None]]:
    """Return the next offset, and the one last mirrored to Kafka, of each log that the consumer has begun."""
    offsets = {}
    for log in logs:
        row = connection.execute(
            text(f"SELECT next_offset, mirrored_offset FROM progress WHERE consumer = :consumer AND {_LOG}"),  # noqa: S608
            _keys(consumer, log),
        ).first()
        if row is not None:
            offsets[log] = (row.next_offset, row.mirrored_offset)
    return offsets


def all_positions(connection: Connection, consumer: str) -> dict[Log, int]:
    """Return the next offset of every log that the consumer has begun. Reads only; one statement."""
    statement = text(
        "SELECT cluster_id, topic, topic_id, partition, next_offset FROM progress WHERE consumer = :consumer"
    )
    return {
        Log(cluster_id=row.cluster_id, topic=row.topic, topic_id=row.topic_id, partition=row.partition): row.next_offset
        for row in connection.execute(statement, {"consumer": consumer})
    }


def lock_position(connection: Connection, consumer: str, log: Log) -> int:
    """Return the next offset of a log that the consumer has begun; nobody moves it until the caller's transaction ends."""
    return int(connection.execute(_LOCK, _keys(consumer, log)).one().next_offset)


def begin_log(connection: Connection, consumer: str, log: Log, *, next_offset: int) -> None:
    """The consumer has a position in the log; one that it had is kept. Transaction: the caller's.

    Of a topic made again, a sibling may be parking the old one's last messages right now. It holds the old log's row from its
    claim to its commit: waited for, its rows are seen here; and if it claims later, it sees the new log and notes there too.
    """
    connection.execute(_LOCK_NAMESAKES, _keys(consumer, log))
    connection.execute(_BEGIN, {**_keys(consumer, log), "next_offset": next_offset})


def begin_topic(connection: Connection, consumer: str, service: str, topic: str) -> None:
    """It is recorded that the consumer has begun the topic of this name. Transaction: the caller's; before `begin_log`.

    The first time, with the horizon of that moment: until it is passed, what is older is applied too (see `behind_horizons`).
    A consumer that had a position in the topic before, whichever log had that name, keeps to the horizon from the start.
    May be repeated, and run beside itself: only the first call of all counts.
    """
    low, _ = horizon(connection, service)
    connection.execute(_BEGIN_TOPIC, {"consumer": consumer, "topic": topic, "horizon": low})


def behind_horizons(connection: Connection, consumer: str, *, schema: str = "") -> dict[str, UUID]:
    """Return the topics that the consumer has begun and whose past it has not read yet, each with its horizon then.

    Events older than that are known by a table of their own, `inbox_behind`, instead of the days of `inbox`. Reads only; in
    the role's own schema, unless another one is named.
    """
    table = f"{schema}.topic_begun" if schema else "topic_begun"
    statement = text(f"SELECT topic, horizon FROM {table} WHERE consumer = :consumer AND passed_at IS NULL")  # noqa: S608
    return {row.topic: row.horizon for row in connection.execute(statement, {"consumer": consumer})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A span of a log whose messages from `begin` on are the caller's to apply, until its transaction ends."""

    begin: int
    """Below it everything was done before."""
    has_parked: bool
    """Whether keys of this log may be in the parking lot."""


def claim_spans(connection: Connection, consumer: str, spans: Mapping[Log, range]) -> dict[Log, Claim]:
    """Progress of each log is at the end of its span of offsets, locked, if the caller commits.

    A log whose span lies ahead of its progress is left out, and unchanged. Progress beyond a span's end stays where it is:
    nothing of the span is left to do. Logs are of one cluster.
    """
    ordered = sorted(spans, key=lambda log: (log.topic, log.partition))
    parameters = {
        "consumer": consumer,
        "cluster_id": ordered[0].cluster_id,
        "topics": [log.topic for log in ordered],
        "topic_ids": [log.topic_id for log in ordered],
        "partitions": [log.partition for log in ordered],
        "starts": [spans[log].start for log in ordered],
        "stops": [spans[log].stop for log in ordered],
    }
    # The usual case: one statement locks, fences and advances.
    follow = {(row.topic_id, row.partition): row.has_parked for row in connection.execute(_CLAIM, parameters)}
    claims = {}
    for log in ordered:
        if (log.topic_id, log.partition) in follow:
            claims[log] = Claim(begin=spans[log].start, has_parked=follow[log.topic_id, log.partition])
        elif (claim := _claim_rest(connection, consumer, log, spans[log])) is not None:
            claims[log] = claim
    return claims


def _claim_rest(connection: Connection, consumer: str, log: Log, span: range) -> Claim | None:
    keys = _keys(consumer, log)
    row = connection.execute(_LOCK, keys).first()
    if row is None or row.next_offset < span.start:
        return None
    if row.next_offset < span.stop:
        connection.execute(_ADVANCE, {**keys, "stop": span.stop})
    return Claim(begin=row.next_offset, has_parked=row.has_parked)


def move_to(connection: Connection, consumer: str, log: Log, next_offset: int) -> None:
    """The consumer's progress is at this offset in the log, wherever it was. Transaction: the caller's. May be repeated.

    A worker that claims a slice meanwhile waits for the caller's commit, and drops it if it does not begin there.
    """
    begin_log(connection, consumer, log, next_offset=next_offset)
    connection.execute(_ADVANCE, {**_keys(consumer, log), "stop": next_offset})


def note_mirrored(connection: Connection, consumer: str, offsets: Mapping[Log, int]) -> None:
    """The offsets that we have written to Kafka are noted, so that somebody else's commit is recognised. May be repeated."""
    for log, offset in offsets.items():
        connection.execute(_MIRRORED, {**_keys(consumer, log), "offset": offset})


def note_parked(connection: Connection, consumer: str, logs: Sequence[Log]) -> None:
    """Whoever claims a slice of one of these logs next looks into the parking lot. Transaction: the caller's."""
    connection.execute(_HAS_PARKED, [_keys(consumer, log) for log in logs])


def note_lot(connection: Connection, consumer: str) -> bool:
    """Claims look into the parking lot only if it holds something of the consumer's; returns whether they no longer need to.

    Transaction: the caller's, and a short one: claims wait for it. May be repeated. The rows are locked by a statement of
    their own: whoever parks holds its log's row from its claim to its commit, and one statement that waited for it would
    test the row as it is then, but the parking lot as it was before.
    """
    connection.execute(_LOCK_ALL, {"consumer": consumer})
    return connection.execute(_NONE_PARKED, {"consumer": consumer}).rowcount > 0


def arrive(
    connection: Connection, consumer: str, arrivals: Sequence[Arrival], *, behind: Mapping[str, UUID] | None = None
) -> set[UUID]:
    """Return the ids that this consumer has already applied; the others count as applied if the caller commits.

    `behind` is what `behind_horizons` returns. One statement for each table, in id order, so that two workers that meet the
    same events wait for, and never on, each other.
    """
    if not behind:
        return _arrive(connection, _ARRIVE, consumer, arrivals)
    horizons = [behind.get(arrival.log.topic, NO_HORIZON) for arrival in arrivals]
    pairs = list(zip(arrivals, horizons, strict=True))
    older = [arrival for arrival, low in pairs if arrival.event_id < low]
    known = _arrive(connection, _ARRIVE_BEHIND, consumer, older)
    return known | _arrive(
        connection, _ARRIVE, consumer, [arrival for arrival, low in pairs if arrival.event_id >= low]
    )


def _arrive(connection: Connection, statement: TextClause, consumer: str, arrivals: Sequence[Arrival]) -> set[UUID]:
    if not arrivals:
        return set()
    rows = [
        {
            "event_id": arrival.event_id,
            "topic": arrival.log.topic,
            "partition": arrival.log.partition,
            "offset": arrival.offset,
        }
        for arrival in arrivals
    ]
    return set(connection.execute(statement, {"consumer": consumer, "rows": as_json(rows)}).scalars())


def applied_before(connection: Connection, consumer: str, ids: Collection[UUID]) -> set[UUID]:
    """Return which of the events this consumer has applied, or an operator has skipped. Reads only."""
    statement = text("""
        SELECT event_id FROM inbox WHERE consumer = :consumer AND event_id = ANY(:ids)
        UNION ALL SELECT event_id FROM inbox_behind WHERE consumer = :consumer AND event_id = ANY(:ids)""")
    return set(connection.execute(statement, {"consumer": consumer, "ids": list(ids)}).scalars())


def horizon(connection: Connection, service: str) -> tuple[UUID, UUID]:
    """Return the smallest id whose repeats the inbox would still recognise, and the smallest id too far ahead for it."""
    days = days_of(connection, service, "inbox", leaving=False)
    if not days:
        return first_id_of(date.max), first_id_of(date.max)
    return first_id_of(days[0]), first_id_of(date.fromordinal(days[-1].toordinal() + 1))
