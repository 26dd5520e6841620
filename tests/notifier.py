"""A queue of a test's own in the notifier's tables: records, a clock that the test turns, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, text

from consumers.notification.control import resend_notifications
from consumers.notification.notifier.claims import Claimed, Ended, release_expired, take_wakes, turn
from consumers.notification.notifier.lanes import Queue, Result
from consumers.notification.receivers import register_receiver
from consumers.notification.write import _WRITE, write
from outbox.database import engine_for
from outbox.rows import as_json
from outbox.settings import Settings
from tests.pipeline import engine_of, fresh_id

SECRET = "whsec_a2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
PATIENT = 10**6
"""Failures in a row that no test comes to: the breaker stays closed."""


class Desk:
    """One queue; its merchants bear its name, so that nothing of it meets another test's."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        name: str,
        *,
        rule: str = '{"1":0,"2":1}',
        lives_in: str = "",
        are_prompt: bool = True,
        **limits: Any,
    ) -> None:
        """`lives_in` names a queue that is there already: then only the merchants are the desk's own. They are known to be prompt,
        unless they are not to be known at all.
        """
        self.settings, self.engine, self.name, self._are_prompt = settings, engine, name, are_prompt
        if lives_in:
            self.queue = Queue(queue=lives_in)
            return
        self.queue = Queue(queue=name, **limits)
        columns = {"queue": name, "rule": rule, **limits}
        names = ", ".join(columns)
        with self.engine.begin() as connection:
            values = ", ".join(f":{key}" for key in columns)
            connection.execute(text(f"INSERT INTO notify_queue ({names}) VALUES ({values})"), columns)

    def merchant(self, number: int = 0) -> str:
        return f"{self.name}M{number}"

    def register(self, url: str, number: int = 0, secret: str = SECRET) -> None:
        with self.engine.begin() as connection:
            register_receiver(connection, self.merchant(number), url=url, secret=secret)

    def write(self, count: int = 1, number: int = 0, body: str = '{"a": 1}', rule: str = "") -> list[UUID]:
        """Return the event ids of new records, by another rule than the queue's if one is given."""
        rows = [
            {"event_id": fresh_id(), "merchant_no": self.merchant(number), "payment_no": f"{self.name}P{index}",
             "order_no": f"{self.name}O{index}", "body": body}
            for index in range(count)
        ]  # fmt: skip
        with self.engine.begin() as connection:
            if self._are_prompt:
                connection.execute(_PROMPT, {"queue": self.queue.queue, "merchant_no": self.merchant(number)})
            if rule:
                parameters = {"queue": self.queue.queue, "rule": rule, "first_s": 0.0, "rows": as_json(rows)}
                connection.execute(_WRITE, parameters)
            else:
                write(connection, self.queue.queue, rows)
        return [row["event_id"] for row in rows]  # type: ignore[misc]

    def claim(self, now: datetime, limit: int = 100) -> list[Claimed]:
        with self.engine.begin() as connection:
            take_wakes(connection, self.queue.queue)
        with self.engine.begin() as connection:
            return turn(connection, self.queue, limit=limit, now=now)

    def finish(self, ended: Sequence[Ended], now: datetime) -> None:
        with self.engine.begin() as connection:
            turn(connection, self.queue, ended, limit=0, now=now)

    def release(self, now: datetime) -> int:
        with self.engine.begin() as connection:
            return release_expired(connection, self.queue.queue, now=now)

    def resend(self, event_ids: Sequence[UUID]) -> list[UUID]:
        with self.engine.begin() as connection:
            statement = text("SELECT id FROM notify_record WHERE event_id = ANY (CAST(:events AS uuid[]))")
            ids = connection.execute(statement, {"events": list(event_ids)}).scalars().all()
            return resend_notifications(connection, ids, reason="test", actor="test")

    def rows(self, statement: str, **given: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return list(
                connection.execute(text(statement), {"queue": self.queue.queue, "merchants": f"{self.name}%", **given})
            )

    def records(self) -> list[Any]:
        return self.rows("SELECT * FROM notify_record WHERE queue = :queue AND merchant_no LIKE :merchants ORDER BY id")

    def record(self) -> Any:
        [row] = self.records()
        return row

    def log(self) -> list[Any]:
        return self.rows("SELECT * FROM notify_record_log WHERE queue = :queue ORDER BY id")

    def postponements(self) -> list[Any]:
        return self.rows("""SELECT notify_postponement.* FROM notify_postponement JOIN notify_record ON record_id = notify_record.id
                            WHERE queue = :queue ORDER BY notify_postponement.id""")

    def audit(self) -> list[Any]:
        with engine_of(self.settings, "ops").connect() as connection:
            statement = text("SELECT * FROM notification.notify_audit WHERE queue = :queue ORDER BY id")
            return list(connection.execute(statement, {"queue": self.queue.queue}))

    def forgotten(self, now: datetime) -> list[Any]:
        """Return lanes that would be looked at too late: something in them may be sent before anybody looks."""
        return self.rows(
            """SELECT lane.merchant_no, lane.ready_at, record.next FROM notify_lane AS lane
               JOIN LATERAL (SELECT min(planned_at) FILTER (WHERE leased_until IS NULL) AS next,
                                    count(*) FILTER (WHERE leased_until IS NOT NULL) AS in_flight
                             FROM notify_record WHERE queue = lane.queue AND merchant_no = lane.merchant_no
                               AND finished_at IS NULL) AS record ON true
               WHERE lane.queue = :queue AND lane.paused_at IS NULL AND next IS NOT NULL
                 AND in_flight < CASE WHEN failures >= :breaker OR pace IS NULL THEN 1 WHEN pace = 'SLOW' THEN greatest(1, CAST(:bound AS integer) / 2) ELSE CAST(:bound AS integer) END
                 AND NOT coalesce(ready_at <= greatest(next, blocked_until, :now), false)
                 AND NOT EXISTS (SELECT FROM notify_wake WHERE queue = lane.queue AND merchant_no = lane.merchant_no)""",
            now=now, breaker=self.queue.breaker_failures, bound=self.queue.receiver_in_flight_max,
        )  # fmt: skip


_PROMPT = text("""
    INSERT INTO notify_lane (queue, merchant_no, pace) VALUES (:queue, :merchant_no, 'PROMPT') ON CONFLICT DO NOTHING""")


@contextmanager
def desks(settings: Settings, prefix: str) -> Iterator[Callable[..., Desk]]:
    """Give a function that opens a desk; its connections are closed afterwards."""
    engine = engine_for(settings.dsn_of("notification"), name=f"desk {prefix}")

    def opened(name: str = prefix, **given: Any) -> Desk:
        return Desk(settings, engine, name, **given)

    yield opened
    engine.dispose()


def ended(claimed: Claimed, at: datetime, result: Result = Result.HTTP_REQUEST_FAILED, **more: Any) -> Ended:
    """Return an attempt that began then and took 10 ms."""
    took = more.pop("took", timedelta(milliseconds=10))
    return Ended(claimed=claimed, started_at=at, ended_at=at + took, result=result, **more)
