"""A processor's logs from a position up to a position, through its own delivery, at full speed; no group, no commit to Kafka.

The shadow's own `progress` says how far it is, in the transaction of the effects: cut off anywhere, it goes on from there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from consumers.delivery.brake import Brake
from consumers.delivery.loop import Delivered, Delivery
from consumers.delivery.messages import Slice
from consumers.delivery.processor import Processor, is_transient
from ops.delivery.registry import topics_of
from ops.kafka.groups import cluster_id, topic_ids
from ops.kafka.reader import bounds, read
from outbox.database import engine_for
from outbox.errors import Refused
from outbox.inbox import Log, begin_log
from outbox.retry import backoff_s
from outbox.settings import Settings

BATCH = 1_000
"""Messages in a transaction, over all partitions."""

TRIES_MAX = 8
"""Attempts at a batch whose failure may pass: about half a minute."""

PARKED_MAX = 10_000
"""Events that a rebuild parks; with more, the handler is what is broken."""

LATEST = datetime(9000, 1, 1, tzinfo=UTC)
"""A shadow knows no clock: what was recorded ahead of one is applied, as upkeep has applied it."""

NEVER = UUID(int=0), UUID(int=(1 << 128) - 1)
"""A shadow's inbox has no days, and forgets nothing: no event is behind its horizon."""

ReportProgress = Callable[[int, int], None]
"""Is called now and then with how many messages are done, of how many."""


@dataclass(slots=True)
class FedMessage:
    """A message for delivery."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """What operators have skipped at a consumer: a rebuild skips it too."""

    count: int
    places: Collection[tuple[str, int, int]]
    """Topic id, partition and offset of messages that did not read as events; the others are known to the shadow's inbox."""


def logs_of(settings: Settings, processor: Processor) -> dict[Log, range]:
    """Return a processor's logs as they are on the broker, each with the offsets that it holds. Raises Unreachable."""
    cluster, ids = cluster_id(settings), topic_ids(settings, topics_of(settings, processor))
    return {
        Log(cluster_id=cluster, topic=topic, topic_id=ids[topic], partition=partition): range(low, high)
        for (topic, partition), (low, high) in sorted(bounds(settings, list(ids)).items())
    }


def skipped_of(connection: Connection, service: str, consumer: str) -> Skipped:
    """Return what operators have skipped at a consumer."""
    rows = connection.execute(
        text(f"""SELECT event ->> 'event_id' AS event_id, event ->> 'topic_id' AS topic_id,
                        CAST(event ->> 'partition' AS integer) AS partition, CAST(event ->> 'offset' AS bigint) AS "offset"
                 FROM {service}.parked_audit WHERE action = 'SKIP' AND event ->> 'consumer' = :consumer"""),  # noqa: S608
        {"consumer": consumer},
    ).all()
    return Skipped(
        count=len(rows),
        places={(row.topic_id, row.partition, row.offset) for row in rows if row.event_id is None},
    )


class Feeder:
    """Hands a schema's processor what its logs hold. One thread at a time."""

    def __init__(
        self,
        settings: Settings,
        processor: Processor,
        consumer: str,
        schema: str,
        *,
        skipped: Skipped,
        progress: ReportProgress,
    ) -> None:
        self.consumer = consumer
        self.records = 0
        """Handed over so far."""
        self.parked = 0
        self._settings = settings
        self._skipped = skipped
        self._progress = progress
        self.engine: Engine = engine_for(
            settings.dsn_of(processor.service),
            name=f"rebuild {processor.name}",
            session_timeout_s=60.0,
            pool_size=1,
            # A crash may take back the last commits, rows and progress together: they are made again.
            parameters={"search_path": f"{schema},public", "synchronous_commit": "off"},
        )
        self.delivery = Delivery(
            processor,
            self.engine,
            consumer=consumer,
            clock=lambda: LATEST,
            brake=Brake(holds=False),
            horizon=lambda _connection, _service: NEVER,
        )

    def begin(self, positions: Mapping[Log, int]) -> None:
        """Each log has a position; one that it had is kept. Own transaction; may be repeated."""
        with self.engine.begin() as connection:
            for log, position in positions.items():
                begin_log(connection, self.consumer, log, next_offset=position)

    def feed(self, begin: Mapping[Log, int], end: Mapping[Log, int]) -> None:
        """What lies between is applied or parked, and progress is at the end of each log that is named there.

        Own transactions; may be repeated and cut off anywhere. Raises Refused where the handler rejects nearly everything, or
        somebody else feeds the same schema.
        """
        spans = {log: range(begin[log], end[log]) for log in end if begin[log] < end[log]}
        total = sum(map(len, spans.values()))
        logs = {(log.topic, log.partition): log for log in spans}
        at = {log: span.start for log, span in spans.items()}
        waiting: dict[Log, list[FedMessage]] = {log: [] for log in spans}
        count = 0
        for message in read(self._settings, {place: spans[log] for place, log in logs.items()}):
            log = logs[message.topic(), message.partition()]
            waiting[log].append(_record(message))
            count += 1
            if count == BATCH:
                stops = {log: records[-1].offset + 1 for log, records in waiting.items() if records}
                self._deliver(at, stops, waiting)
                count = 0
                self._progress(total - sum(spans[log].stop - at[log] for log in spans), total)
        self._deliver(at, {log: span.stop for log, span in spans.items()}, waiting)
        self._progress(total, total)

    def _deliver(self, at: dict[Log, int], stops: Mapping[Log, int], waiting: dict[Log, list[FedMessage]]) -> None:
        """What waits of the logs that stop somewhere is delivered; nothing waits then."""
        slices = [
            Slice(log=log, start=at[log], end=stop, messages=self._wanted(log, waiting[log]))
            for log, stop in stops.items()
            if at[log] < stop
        ]
        if slices:
            for outcome in self._delivered(slices).values():
                if not isinstance(outcome, Delivered):
                    raise Refused(
                        f"the shadow is not where it was left, so another rebuild feeds it: wait for it, then repeat ({outcome})"
                    )
                self.parked += outcome.parked
        for log, stop in stops.items():
            self.records += len(waiting[log])
            at[log], waiting[log] = stop, []
        if self.parked > PARKED_MAX:
            raise Refused(
                f"the handler rejects {self.parked} of {self.records} events, too many for a rebuild to say anything: fix the handler first"
            )

    def _delivered(self, slices: Sequence[Slice]) -> Mapping[Log, Any]:
        for attempt in range(1, TRIES_MAX):
            try:
                return self.delivery.deliver(slices)
            except Exception as error:
                if not is_transient(error):
                    raise
                time.sleep(backoff_s(attempt, jitter=random.random()))  # noqa: S311 - no secret
        return self.delivery.deliver(slices)

    def _wanted(self, log: Log, records: list[FedMessage]) -> list[FedMessage]:
        if not self._skipped.places:
            return records
        return [
            message for message in records if (log.topic_id, log.partition, message.offset) not in self._skipped.places
        ]


def _record(message: Any) -> FedMessage:
    return FedMessage(message.offset(), message.key(), message.value(), message.headers() or [])
