"""What happens in a random fault run, and what is sent meanwhile: functions of the seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

WORKERS = 3
SESSION_TIMEOUT_S = 3.0
VERSIONS = 5
"""Events of each key."""
OPEN_KEYS = 200
"""Keys whose events come in turns."""
REPEATS = 0.05
"""Share of records that come again, later, as a restarted connector sends them."""


class Kind(StrEnum):
    """What is done. Whatever is done to a worker or a part is over after a while."""

    LEAVE = "worker told to end"
    KILL = "worker killed"
    FREEZE = "worker frozen beyond its session"
    JOIN = "one more worker"
    POSTGRES_KILL = "PostgreSQL killed"
    POSTGRES_AWAY = "PostgreSQL stopped and held down"
    BROKER_KILL = "broker killed"
    BROKER_FREEZE = "broker frozen"


LASTS_S = {
    Kind.LEAVE: (0.5, 5.0),
    Kind.KILL: (0.5, 5.0),
    Kind.FREEZE: (SESSION_TIMEOUT_S + 1.0, SESSION_TIMEOUT_S + 5.0),
    Kind.JOIN: (5.0, 10.0),
    Kind.POSTGRES_KILL: (0.0, 0.0),
    Kind.POSTGRES_AWAY: (2.0, 6.0),
    Kind.BROKER_KILL: (0.0, 0.0),
    Kind.BROKER_FREEZE: (2.0, 6.0),
}
"""From, to: until the worker is back, thawed or gone again, or the part may come back."""

TO_A_WORKER = (Kind.LEAVE, Kind.KILL, Kind.FREEZE)
POSTGRES = (Kind.POSTGRES_KILL, Kind.POSTGRES_AWAY)
BROKER = (Kind.BROKER_KILL, Kind.BROKER_FREEZE)
RECOVERY_S = 6.0
"""Between two acts on parts; the supervisor gives a part up that ends five times within a minute."""


@dataclass(frozen=True, kw_only=True)
class Act:
    """Something done at a time, for a while."""

    at_s: float
    kind: Kind
    lasts_s: float
    worker: int | None = None

    def __str__(self) -> str:
        whom = "" if self.worker is None else f" {self.worker}"
        return f"{self.kind}{whom}" + (f" for {self.lasts_s:.1f} s" if self.lasts_s else "")


def plan_of(seed: int, *, duration_s: float) -> list[Act]:
    """Return the acts of a run, in order. A shorter run is the beginning of a longer one."""
    return list(takewhile(lambda act: act.at_s < duration_s, _acts(random.Random(seed))))


def _acts(draw: random.Random) -> Iterator[Act]:
    """Give acts for ever, dealt from a shuffled pack, so that none stays away for long."""
    at_s, parts_free_s = 1.0, 0.0
    free_s = dict.fromkeys(range(WORKERS), 0.0)
    turns = {pair: draw.randrange(2) for pair in (POSTGRES, BROKER)}
    while True:
        pack: list[Kind | tuple[Kind, Kind]] = [*TO_A_WORKER, Kind.KILL, Kind.JOIN, POSTGRES, BROKER]
        draw.shuffle(pack)
        for card in pack:
            at_s += draw.uniform(1.0, 4.0)
            worker = None
            if isinstance(card, tuple):  # its two kinds take turns
                kind = card[turns[card]]
                turns[card] = 1 - turns[card]
                at_s = max(at_s, parts_free_s)
            else:
                kind = card
            if kind in TO_A_WORKER:
                at_s = max(at_s, min(free_s.values()))
                worker = draw.choice([number for number, free in free_s.items() if free <= at_s])
            lasts_s = round(draw.uniform(*LASTS_S[kind]), 1)
            if worker is not None:
                free_s[worker] = at_s + lasts_s + 1.0
            elif kind is not Kind.JOIN:
                parts_free_s = at_s + lasts_s + RECOVERY_S
            yield Act(at_s=round(at_s, 1), kind=kind, lasts_s=lasts_s, worker=worker)


def records_of(seed: int, *, events: int) -> Iterator[tuple[int, int]]:
    """Give (key, version) of each record to send, repeats among them; but for these a key's versions rise from 1."""
    draw = random.Random(seed)
    keys = events // VERSIONS
    versions = dict.fromkeys(range(min(OPEN_KEYS, keys)), 0)
    begun, recent = len(versions), list[tuple[int, int]]()
    while versions:
        key = draw.choice(list(versions))
        versions[key] += 1
        yield key, versions[key]
        recent = [*recent[-OPEN_KEYS:], (key, versions[key])]
        if versions[key] == VERSIONS:
            del versions[key]
            if begun < keys:
                versions[begun] = 0
                begun += 1
        if draw.random() < REPEATS:
            yield draw.choice(recent)
