"""The checks of `payrelay doctor`: does every recorded event arrive, and does everything run that should?

Each row checks one thing by what really arrives, and names the command that fixes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property

from confluent_kafka import KafkaException
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from connect.client import ConnectClient, NoConnector
from ops.kafka.topics import TopicState, topic_states
from ops.pipeline.arrival import check_arrivals, check_messages, check_positions
from ops.pipeline.clocks import clock_finding
from ops.pipeline.health import SlotState, beat_of, reader_engine, slot_of
from ops.pipeline.positions import Position, consumer_positions, lag_ages
from ops.pipeline.running import idle_processors, idle_queues, parts_of, silent_services, stopped_parts
from ops.pipeline.verdict import Verdict
from ops.stack.state import StackFolder
from outbox.errors import PayrelayError, message_of
from outbox.partitions import DAYS_AHEAD_MIN, days_of
from outbox.publication import PUBLISHED_TABLES, published_tables
from outbox.settings import READER, SERVICES, Settings
from outbox.tables import PARTITIONED

BEATS_MAX = 3
"""A heartbeat older than this many intervals is an alarm."""
RETAINED_BYTES_MAX = 1024**3
LAG_S_MAX = 60.0
"""A consumer whose oldest waiting message is older than this is an alarm."""
PATIENCE_S = 3.0
REPAIR = "payrelay doctor --repair-slot --execute"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of `payrelay doctor`."""

    check: str
    ok: bool
    found: str
    fix: str = ""


def examine(settings: Settings, *, now: datetime, folder: StackFolder | None = None) -> list[Check]:
    """Return every check's outcome. Reads only; a server that does not answer is a finding, not an error.

    `folder` is the local stack's, where there is one: its parts are judged too, and hints name them.
    """
    examination = Examination(settings, now=now, folder=folder)
    return list(examination.checks())


class Examination:
    """One look at the whole pipeline. What several checks need is read once; a server that is away is asked once."""

    def __init__(self, settings: Settings, *, now: datetime, folder: StackFolder | None = None) -> None:
        self.settings = settings
        self.now = now
        self.folder = folder
        self._away: dict[str, str] = {}

    def checks(self) -> Iterator[Check]:
        """Give each check's outcome, in the order of `payrelay doctor`."""
        if self.folder is not None:
            yield self._parts(self.folder)
        for name, servers, check in (
            ("heartbeat", ("postgres",), self._heartbeat),
            ("slot", ("postgres",), self._slot),
            ("publication", ("postgres",), self._publication),
            ("connector", ("connect",), self._connector),
            ("topics", ("kafka",), self._topics),
            ("days ahead", ("postgres",), self._days_ahead),
            ("clocks", ("postgres",), lambda: _check_of("clocks", clock_finding(self.settings, now=self.now))),
            ("processors", ("kafka",), self._processors),
            ("notifiers", ("postgres",), self._notifiers),
            ("services", (), self._services),
            ("positions", ("kafka", "postgres"), self._positions),
            ("lag", ("kafka", "postgres"), self._lag),
            (
                "source position",
                ("connect", "postgres"),
                lambda: _check_of("source position", check_positions(self.settings)),
            ),
            ("arrival", ("kafka", "postgres"), lambda: _check_of("arrival", check_arrivals(self.settings))),
            ("log messages", ("connect", "postgres"), lambda: _check_of("log messages", check_messages(self.settings))),
            ("parked", ("postgres",), self._parked),
        ):
            yield self._outcome(name, servers, check)

    def _outcome(self, name: str, servers: Sequence[str], check: Callable[[], Check]) -> Check:
        for server in servers:
            if server in self._away:
                return Check(check=name, ok=False, found=f"{server} does not answer", fix=self._start(server))
        try:
            return check()
        except (PayrelayError, KafkaException, SQLAlchemyError, OSError, ValueError) as error:
            server = "postgres" if isinstance(error, SQLAlchemyError) else servers[0] if servers else ""
            self._away[server] = f"{type(error).__name__}"
            return Check(check=name, ok=False, found=message_of(error), fix=self._start(server))

    def _start(self, server: str) -> str:
        """Return how a server that does not answer is started."""
        if self.folder is not None:
            return self._start_parts([server])
        address = {
            "postgres": f"PostgreSQL at {_address_of(self.settings)} (PAYRELAY_DSN__{READER.upper()})",
            "kafka": f"Kafka at {self.settings.kafka_bootstrap} (PAYRELAY_KAFKA_BOOTSTRAP)",
            "connect": f"Kafka Connect at {self.settings.connect_url} (PAYRELAY_CONNECT_URL)",
        }
        return f"start {address.get(server, server)}"

    def _start_parts(self, parts: Sequence[str]) -> str:
        """Return the command that starts parts of the local stack: those that hang are stopped first."""
        assert self.folder is not None
        if not self.folder.is_up():
            return "payrelay up"
        hanging = [part for part in parts if part not in stopped_parts(self.folder)]
        stop = f"payrelay stop {' '.join(hanging)}; " if hanging else ""
        return f"{stop}payrelay start {' '.join(parts)}"

    def _run(self, names: Sequence[str], *, by_hand: str) -> str:
        """Return the command that runs these processors, queues or services again; `by_hand` where no local stack does."""
        parts = parts_of(self.folder, names) if self.folder is not None else []
        return self._start_parts(parts) if parts else by_hand

    @cached_property
    def _slot_state(self) -> SlotState:
        with reader_engine(self.settings).connect() as connection:
            return slot_of(connection, self.settings.slot)

    @cached_property
    def _topic_states(self) -> list[TopicState]:
        return topic_states(self.settings)

    @cached_property
    def _consumer_positions(self) -> list[Position]:
        return consumer_positions(self.settings)

    @cached_property
    def _connector_state(self) -> tuple[str, str]:
        """What Kafka Connect says of connector and tasks, and the command that makes it run; empty where it does."""
        client = ConnectClient(self.settings.connect_url, patience_s=PATIENCE_S)
        try:
            status = client.status(self.settings.connector)
        except NoConnector as error:
            return str(error), "payrelay connect apply --execute"
        causes = "; ".join(task.cause for task in status.tasks if task.cause)
        state = f"{status.state}, tasks {[task.state for task in status.tasks]} {causes}".strip()
        if status.is_running:
            return state, ""
        return state, f"payrelay connect {'resume' if status.state in ('STOPPED', 'PAUSED') else 'restart'}"

    def _streaming_fix(self) -> str:
        """Return the command that makes the connector read the slot again."""
        if not self._slot_state.found or self._slot_state.wal_status == "lost":
            return REPAIR
        try:
            return self._connector_state[1] or "payrelay connect restart"
        except (PayrelayError, OSError, ValueError):
            return self._start("connect")

    def _parts(self, folder: StackFolder) -> Check:
        """Every part of the local stack runs."""
        if not folder.is_up():
            return Check(check="parts", ok=False, found="the local stack is down", fix="payrelay up")
        stopped = stopped_parts(folder)
        state = f"not running: {', '.join(stopped)}" if stopped else "all run"
        return Check(check="parts", ok=not stopped, found=state, fix=self._start_parts(stopped) if stopped else "")

    def _heartbeat(self) -> Check:
        """The connector reads the slot and writes its heartbeat."""
        with reader_engine(self.settings).connect() as connection:
            beat_at = beat_of(connection)
        limit_s = max(5.0, BEATS_MAX * self.settings.heartbeat_interval_ms / 1000)
        age_s = None if beat_at is None else max(0.0, (self.now - beat_at).total_seconds())
        state = "no heartbeat yet" if age_s is None else f"{age_s:.1f} s old, limit {limit_s:.0f} s"
        ok = age_s is not None and age_s <= limit_s
        return Check(check="heartbeat", ok=ok, found=state, fix="" if ok else self._streaming_fix())

    def _slot(self) -> Check:
        slot = self._slot_state
        if slot.database:
            return Check(
                check="slot",
                ok=False,
                found=f"{self.settings.slot} belongs to database {slot.database}, so nothing of this database is published",
                fix=f"export PAYRELAY_SLOT={self.settings.slot}_2; payrelay migrate; payrelay connect apply --execute",
            )
        if not slot.found or slot.wal_status == "lost":
            return Check(check="slot", ok=False, found="lost: nothing is published", fix=REPAIR)
        state = f"{'active' if slot.active else 'not active'}, {slot.retained_bytes} bytes of WAL retained"
        ok = slot.active and slot.retained_bytes <= RETAINED_BYTES_MAX
        return Check(check="slot", ok=ok, found=state, fix="" if ok else self._streaming_fix())

    def _publication(self) -> Check:
        with reader_engine(self.settings).connect() as connection:
            tables = published_tables(connection)
        ok = tables == PUBLISHED_TABLES
        return Check(
            check="publication", ok=ok, found=f"{tables} of {PUBLISHED_TABLES} tables", fix="" if ok else REPAIR
        )

    def _connector(self) -> Check:
        """Kafka Connect says that it runs. It says so of a dead pipeline too: heartbeat and arrival judge that."""
        state, fix = self._connector_state
        return Check(check="connector", ok=not fix, found=state, fix=fix)

    def _topics(self) -> Check:
        problems = [(state, problem) for state in self._topic_states for problem in state.problems]
        moved = {
            state.topic.removeprefix(self.settings.topic_prefix): state.partitions
            for state in self._topic_states
            if state.has_other_partitions
        }
        fixes = []
        if any(not state.has_other_partitions or len(state.problems) > 1 for state, _ in problems):
            fixes.append("payrelay topics apply --execute")
        if moved:  # nothing takes partitions away: what is there is declared, once consumers have read what lay before
            fixes.append(f"export PAYRELAY_PARTITIONS='{json.dumps(dict(self.settings.partitions) | moved)}'")
        differences = "; ".join(f"{state.topic}: {problem}" for state, problem in problems) or "as declared"
        return Check(check="topics", ok=not problems, found=differences, fix="; ".join(fixes))

    def _days_ahead(self) -> Check:
        with reader_engine(self.settings).connect() as connection:
            ahead = days_ahead(connection, self.now.date())
        ok = ahead >= DAYS_AHEAD_MIN
        return Check(
            check="days ahead",
            ok=ok,
            found=f"{ahead} days, {DAYS_AHEAD_MIN} are needed",
            fix="" if ok else "payrelay upkeep",
        )

    def _processors(self) -> Check:
        """Every processor's consumer group has a member."""
        idle = idle_processors(self.settings)
        state = f"no worker runs {', '.join(idle)}" if idle else "each has a member in its group"
        fix = self._run(idle, by_hand=f"payrelay worker {' '.join(idle)}") if idle else ""
        return Check(check="processors", ok=not idle, found=state, fix=fix)

    def _notifiers(self) -> Check:
        """Every notification queue has a notifier."""
        idle = idle_queues(self.settings)
        names = [f"notifier:{queue}" for queue in idle]
        state = f"no notifier serves {', '.join(idle)}" if idle else "each queue has a notifier"
        fix = self._run(names, by_hand=f"payrelay worker {' '.join(names)}") if idle else ""
        return Check(check="notifiers", ok=not idle, found=state, fix=fix)

    def _services(self) -> Check:
        """Every HTTP service answers."""
        silent = silent_services(self.settings)
        state = f"no answer from {', '.join(silent)}" if silent else "each answers"
        fix = self._run(silent, by_hand=f"payrelay serve {' '.join(silent)}") if silent else ""
        return Check(check="services", ok=not silent, found=state, fix=fix)

    def _positions(self) -> Check:
        """Every consumer's progress lies inside its log."""
        holes = [
            position
            for position in self._consumer_positions
            if not position.low <= position.next_offset <= position.high
        ]
        state = "; ".join(
            f"{hole.consumer} {hole.place[0]}/{hole.place[1]} is at {hole.next_offset}, "
            f"the log holds {hole.low} to {hole.high}"
            for hole in holes
        )
        return Check(
            check="positions",
            ok=not holes,
            found=state or "inside their logs",
            fix=_fix_of_hole(holes, stops_workers=self.folder is not None) if holes else "",
        )

    def _lag(self) -> Check:
        """How far each consumer is behind: in messages, and in the age of the oldest that waits."""
        messages: dict[str, int] = {}
        ages: dict[str, float] = {}
        for position in self._consumer_positions:
            messages[position.consumer] = messages.get(position.consumer, 0) + position.behind
        for position, age_s in lag_ages(self.settings, self._consumer_positions, self.now).items():
            ages[position.consumer] = max(ages.get(position.consumer, 0.0), age_s)
        state = ", ".join(
            f"{consumer} {count}" + (f" ({ages[consumer]:.0f} s)" if consumer in ages else "")
            for consumer, count in sorted(messages.items())
        )
        late = sorted(consumer for consumer, age_s in ages.items() if age_s > LAG_S_MAX)
        names = [consumer.removeprefix(self.settings.group_prefix) for consumer in late]
        fix = self._run(names, by_hand=f"payrelay worker {' '.join(names)}") if late else ""
        return Check(check="lag", ok=not late, found=state or "no consumer has begun", fix=fix)

    def _parked(self) -> Check:
        with reader_engine(self.settings).connect() as connection:
            counts = {
                service: connection.execute(text(f"SELECT count(*) FROM {service}.parked")).scalar_one()  # noqa: S608
                for service in SERVICES
            }
        parked = {service: count for service, count in counts.items() if count}
        fix = (
            "payrelay parked retry --execute --yes  # for what stays parked: payrelay parked skip ID --reason WHY"
            if parked
            else ""
        )
        return Check(check="parked", ok=not parked, found=str(parked or 0), fix=fix)


def _check_of(name: str, verdict: Verdict) -> Check:
    return Check(check=name, ok=verdict.ok, found=verdict.found, fix=verdict.fix)


def days_ahead(connection: Connection, today: date) -> int:
    """Return for how many days after today every outbox and inbox can take rows, none left out between."""
    return min(
        following(set(days_of(connection, service, table)), today) for service in SERVICES for table in PARTITIONED
    )


def following(days: Collection[date], today: date) -> int:
    """Return how many of the days follow on today without a gap. Days of a clock that was ahead lie behind one.

    >>> following({date(2026, 1, 1), date(2026, 1, 2), date(2026, 1, 3), date(2027, 1, 1)}, date(2026, 1, 1))
    2
    """
    return next(count for count in range(len(days) + 1) if today + timedelta(days=count + 1) not in days)


def _fix_of_hole(holes: Sequence[Position], *, stops_workers: bool) -> str:
    """Return the commands that apply what the log no longer holds, and bring the consumers into their logs."""
    commands = []
    for consumer, topic in sorted({(hole.consumer, hole.place[0]) for hole in holes}):
        partitions = ",".join(
            str(hole.place[1]) for hole in holes if (hole.consumer, hole.place[0]) == (consumer, topic)
        )
        commands.append(
            f"payrelay replay redeliver --consumer {consumer} --topic {topic} --from-outbox --execute --yes"
        )
        stop = " --stop-workers" if stops_workers else ""
        commands.append(
            f"payrelay offsets reset {consumer} --topic {topic}:{partitions} --to-current{stop} --execute --yes"
        )
    return "; ".join(commands)


def _address_of(settings: Settings) -> str:
    url = make_url(settings.dsn_of(READER))
    return f"{url.host}:{url.port or 5432}"
