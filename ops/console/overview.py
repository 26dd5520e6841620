"""The first page: whether what is due is sent. Figures now, and charts of the last quarter of an hour, live."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from threading import Lock

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import Connection

from ops.console.edge import SEEN, console_of, followed, fragment, page
from ops.notifications.figures import QueueFigures, TimeStep, attempts_by_step, database_now, joined, standing

WINDOW_S = 900
STEP_S = 5
AGAIN_S = 90
"""So long ago an attempt may have begun whose row is not written yet: these steps are read again."""
EVERY_S = 1.0

router = APIRouter(dependencies=[SEEN])


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What the page shows."""

    tiles: dict[str, float]
    series: str
    """JSON."""


@dataclass(kw_only=True)
class Overview:
    """The last window, kept between readings, so that each reads the last steps only. Safe between threads."""

    steps: list[TimeStep] = field(default_factory=list)
    now: QueueFigures | None = None
    waiting: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=WINDOW_S // STEP_S))
    """What waited, by step; known only while somebody looks."""
    read_at: int = 0
    lock: Lock = field(default_factory=Lock)

    def read(self, connection: Connection) -> Snapshot:
        """Return the state of now."""
        with self.lock:
            self._advance(connection)
            return Snapshot(tiles=self._tiles(), series=self._series())

    def _advance(self, connection: Connection) -> None:
        now = database_now(connection)
        at = int(now.timestamp()) // STEP_S * STEP_S
        begin = at - WINDOW_S
        since = max(begin, self.read_at - AGAIN_S // STEP_S * STEP_S)
        fresh = attempts_by_step(connection, begin=datetime.fromtimestamp(since, UTC), end=now, step_s=STEP_S)
        self.steps = joined(self.steps, fresh, since=since, begin=begin)
        self.now = standing(connection)
        if not self.waiting or self.waiting[-1][0] != at:
            self.waiting.append((at, self.now.waiting))
        self.read_at = at

    def _series(self) -> str:
        """Return what the charts draw, as JSON: columns of equal length, a step without attempts included."""
        by_at, waiting = {step.at: step for step in self.steps}, dict(self.waiting)
        ats = range(self.read_at - WINDOW_S, self.read_at, STEP_S)
        none = TimeStep(0, 0, 0, None, None)
        rows = [by_at.get(at, none) for at in ats]
        columns = {
            "at": list(ats),
            "sent": [step.sent / STEP_S for step in rows],
            "failed": [step.failed / STEP_S for step in rows],
            "waiting": [waiting.get(at) for at in ats],
            "late_p50_s": [step.late_p50_s for step in rows],
            "late_p99_s": [step.late_p99_s for step in rows],
        }
        return msgspec.json.encode(columns).decode()

    def _tiles(self) -> dict[str, float]:
        """Return the figures of now, and of the last minute."""
        assert self.now is not None
        minute = [step for step in self.steps if step.at >= self.read_at - 60]
        late = [step.late_p99_s for step in minute if step.late_p99_s is not None]
        return asdict(self.now) | {
            "sent_minute": sum(step.sent for step in minute),
            "failed_minute": sum(step.failed for step in minute),
            "late_s": max(late, default=0.0),
        }


def overview_of(request: Request) -> Overview:
    """Return the application's own."""
    kept: Overview = request.app.state.overview
    return kept


@router.get("/")
async def show(request: Request) -> Response:
    """The figures as they are, then live."""
    seen = await console_of(request).reader.transact(overview_of(request).read)
    return page(request, "overview.html", tiles=seen.tiles, series=seen.series)


@router.get("/live", response_class=EventSourceResponse)
async def live(request: Request) -> AsyncGenerator[ServerSentEvent]:
    """The figures once a second."""
    read = partial(console_of(request).reader.transact, overview_of(request).read)
    async for seen in followed(request, "overview", read, every_s=EVERY_S):
        yield ServerSentEvent(raw_data=fragment(request, "tiles.html", tiles=seen.tiles))
        yield ServerSentEvent(raw_data=seen.series, event="series")
