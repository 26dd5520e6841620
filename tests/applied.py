"""What was applied, in the order of application: a table of the tests' own, written in the transaction of the effects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from consumers.accounting.agent import PROCESSOR
from outbox.settings import Settings
from schemas.codec import Envelope
from tests.pipeline import engine_of


def make_applied(settings: Settings) -> None:
    """The table is there. Its numbers rise in the order of application: whoever writes holds the partition's progress."""
    with engine_of(settings, "owner").begin() as owner:
        owner.execute(text("SELECT pg_advisory_xact_lock(hashtext('accounting.applied'))"))
        owner.execute(
            text("""CREATE TABLE IF NOT EXISTS accounting.applied (
                      number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                      key text NOT NULL, version bigint NOT NULL, event_id uuid NOT NULL)""")
        )
        owner.execute(text("CREATE INDEX IF NOT EXISTS applied_key ON accounting.applied (key)"))
        owner.execute(text("GRANT INSERT, SELECT ON accounting.applied TO accounting"))
        owner.execute(text("GRANT SELECT ON accounting.applied TO ops"))


def apply(connection: Connection, events: Sequence[Envelope]) -> None:
    """Each event is written down as applied, and posted to the ledger. Transaction: the caller's."""
    connection.execute(
        text("""INSERT INTO applied (key, version, event_id)
                SELECT key, version, event_id
                FROM unnest(CAST(:keys AS text[]), CAST(:versions AS bigint[]), CAST(:ids AS uuid[]))
                     WITH ORDINALITY AS applied (key, version, event_id, place)
                ORDER BY place"""),
        {
            "keys": [event.event.key for event in events],
            "versions": [event.version for event in events],
            "ids": [event.id for event in events],
        },
    )
    PROCESSOR.handle(connection, events)


def applied(connection: Connection, prefix: str) -> list[tuple[str, int]]:
    """Return key and version of what was applied, in the order of application."""
    rows = connection.execute(
        text("SELECT key, version FROM accounting.applied WHERE key LIKE :like ORDER BY number"),
        {"like": f"{prefix}%"},
    )
    return [(row.key, row.version) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How what was applied differs from what was sent."""

    lost: int
    doubled: int
    unknown: int
    order_breaks: int
    """Events applied after a later one of their key."""

    @property
    def holds(self) -> bool:
        return not (self.lost or self.doubled or self.unknown or self.order_breaks)


def judge(sent: Mapping[str, int], rows: Iterable[tuple[str, int]]) -> Verdict:
    """Compare what was applied with what was sent: of each key, versions 1 up to the given one, each once and in order."""
    seen: dict[str, list[int]] = {}
    for key, version in rows:
        seen.setdefault(key, []).append(version)
    return Verdict(
        lost=sum(len(set(range(1, count + 1)) - set(seen.get(key, ()))) for key, count in sent.items()),
        doubled=sum(len(versions) - len(set(versions)) for versions in seen.values()),
        unknown=sum(len(set(versions) - set(range(1, sent.get(key, 0) + 1))) for key, versions in seen.items()),
        order_breaks=sum(
            later < max(versions[:place]) for versions in seen.values() for place, later in enumerate(versions) if place
        ),
    )
