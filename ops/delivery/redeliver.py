"""Hands past events to a consumer again: the plan, and carrying it out.

`ops` looks with its own role; what is applied is applied by the consumer's own functions, with its service's DSN.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from consumers.delivery.loop import Delivery
from consumers.delivery.redeliver import PastMessage, Redelivered, redeliver, sort_out
from ops.delivery.outcomes import Fate, batched, fates
from ops.delivery.search import Search, Window, id_of, searching
from outbox.clock import utc_now
from outbox.database import engine_for
from outbox.settings import Settings

CHUNK = 2_000
"""Messages looked up together."""


@dataclass(frozen=True, kw_only=True)
class RedeliveryPlan:
    """What handing a window over would do as things stand."""

    places: dict[str, Redelivered]
    """By topic and partition; partition -1 is the outbox."""
    missing: frozenset[UUID]
    """Asked for by id, and not found."""

    @property
    def total(self) -> Redelivered:
        """Return all places together."""
        total = Redelivered(missing=set(self.missing))
        for counted in self.places.values():
            total.add(counted)
        return total


def plan(
    settings: Settings, consumer: str, window: Window, *, from_outbox: bool, resends_external: bool = False
) -> RedeliveryPlan:
    """Return what handing the window's events to the consumer would do as things stand. Reads only.

    Whether its handler fails at one, or passes over it as superseded, only the handler can tell. Raises Refused for what is no
    consumer of this version or no topic of it; Unreachable.
    """
    places: dict[str, Redelivered] = {}
    counted: set[UUID] = set()
    with searching(settings, consumer, window) as search:
        records, waits = _source(search, from_outbox=from_outbox)
        for part in batched(records, CHUNK):
            by_place: dict[str, list[PastMessage]] = {}
            for member in part:
                by_place.setdefault(str(member.log), []).append(member)
            for place, members in by_place.items():
                free = [member for member in members if not waits(member)]
                outcome = _foresee(search, free, counted)
                outcome.waiting += len(members) - len(free)
                if not resends_external:
                    outcome.resent = 0
                places.setdefault(place, Redelivered()).add(outcome)
        return RedeliveryPlan(places=dict(sorted(places.items())), missing=window.events - search.met)


def _foresee(search: Search, records: list[PastMessage], counted: set[UUID]) -> Redelivered:
    """Return what would become of the messages; `counted` are the events met so far that would be applied."""
    outcome, chosen = sort_out(search.connection, search.delivery, records)
    processor = search.delivery.processor
    envelopes = [member.envelope for member in chosen if member.envelope is not None]
    known_fates = fates(
        search.connection, processor.service, search.delivery.consumer, {member.id for member in envelopes}
    )
    for envelope in envelopes:
        if known_fates[envelope.id] is Fate.APPLIED or envelope.id in counted:
            outcome.known += 1
            outcome.resent += processor.notifies(envelope.event)
        else:
            counted.add(envelope.id)
            outcome.applied += 1
            outcome.outside += processor.notifies(envelope.event)
    return outcome


def carry_out(
    settings: Settings, consumer: str, window: Window, *, from_outbox: bool, resends_external: bool = False
) -> Redelivered:
    """Each of the window's events that the consumer had not applied is applied, unless the outcome says why not.

    Own transactions, as the service, beside its live worker, whose position stays. May be repeated and cut off anywhere.
    Without `resends_external` no receiver is notified again about events applied before. Raises what `plan` raises.
    """
    with searching(settings, consumer, window) as search:
        passed = Redelivered()
        processor = search.delivery.processor
        engine = engine_for(settings.dsn_of(processor.service), name="redeliver", pool_size=1)
        try:
            records, waits = _source(search, from_outbox=from_outbox)
            outcome = redeliver(
                engine,
                Delivery(processor, engine, consumer=consumer, clock=utc_now),
                _to_hand_over(search, records, waits, passed, with_known=resends_external),
                notifies_again=resends_external,
            )
        finally:
            engine.dispose()
        outcome.add(passed)
        outcome.missing = set(window.events - search.met)
    return outcome


def _to_hand_over(
    search: Search,
    records: Iterable[PastMessage],
    waits: Callable[[PastMessage], bool],
    passed: Redelivered,
    *,
    with_known: bool,
) -> Iterator[PastMessage]:
    """Give the messages that neither wait nor are known as applied; the others are counted as passed."""
    for part in batched(records, CHUNK):
        ids = {identity for message in part if (identity := id_of(message)) is not None}
        known_fates = fates(search.connection, search.delivery.processor.service, search.delivery.consumer, ids)
        for message in part:
            identity = id_of(message)
            if waits(message):
                passed.waiting += 1
            elif identity is not None and known_fates[identity] is Fate.APPLIED and not with_known:
                passed.known += 1
            else:
                yield message


def redeliver_events(settings: Settings, consumer: str, ids: Collection[UUID], *, execute: bool) -> Redelivered:
    """Each of the events that the consumer had not applied is applied, if executed, unless the outcome says why not.

    They are read from the outbox; `missing` are in none that the consumer follows. Own transactions, as the service. May be
    repeated, and run beside the live worker. No receiver is notified again about events applied before. Raises Refused, Unreachable.
    """
    if not ids:
        return Redelivered()
    window = Window(events=frozenset(ids))
    if execute:
        return carry_out(settings, consumer, window, from_outbox=True)
    return plan(settings, consumer, window, from_outbox=True).total


def _source(search: Search, *, from_outbox: bool) -> tuple[Iterator[PastMessage], Callable[[PastMessage], bool]]:
    """Return the window's messages, and what tells which of them the live stream has yet to come to, beyond its own position."""
    if from_outbox:
        return search.in_outbox(), search.waiting()
    return search.on_topics(), lambda _: False
