"""What a rebuilt schema and the live one do not have in common, row by row and account by account, both at the same positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from consumers.effects import Rebuild
from ops.delivery.outcomes import batched
from ops.ledger.reads import CHUNK, paired
from ops.rebuild.rebuildable import sums
from outbox.quoting import quoted

NAMED_MAX = 100_000
"""Findings that are named; more are counted, and found again by the next run."""


class What(StrEnum):
    """How a rebuilt and a live row differ, or why they need not agree."""

    MISSING = "missing"
    EXTRA = "extra"
    DIFFERENT = "different"
    PARKED = "parked"
    """Live has parked the event: it is not lost, `payrelay parked retry` applies it."""
    SKIPPED = "skipped"
    """An operator has skipped the event: it is not to be applied."""
    BY_HAND = "by hand"
    """People have reversed or corrected the event's row, and their version stays."""


REVERSED = "reversed by hand"

IS_DIFFERENCE = (What.MISSING, What.EXTRA, What.DIFFERENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferingRow:
    """A row or an account that is not the same on both sides."""

    what: What
    kind: str
    subject: str
    live: str
    rebuilt: str
    fix: str = ""
    event_id: UUID | None = None
    number: int | None = None
    """Of the live row, where it has one."""
    rebuilt_number: int | None = None
    is_met: bool = True
    """Whether the rebuild met the event of an extra row; else the topics do not hold it, and nothing is known against the row."""


@dataclass(kw_only=True)
class RebuildDifference:
    """Everything that was found; findings are named up to a bound, and all counted."""

    findings: list[DifferingRow] = field(default_factory=list)
    counts: Counter[tuple[What, str]] = field(default_factory=Counter)
    compared: int = 0
    unmet: int = 0
    """Extra rows whose events are on no topic."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs but what is known to."""
        return not any(self.counts[what, kind] for what, kind in self.counts if what in IS_DIFFERENCE)

    def add(self, finding: DifferingRow) -> None:
        """One finding more."""
        self.counts[finding.what, finding.kind] += 1
        self.unmet += not finding.is_met
        if len(self.findings) < NAMED_MAX:
            self.findings.append(finding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A schema, as one transaction sees it."""

    connection: Connection
    schema: str
    consumer: str

    def rows(self, statement: str, **parameters: object) -> Iterator[Any]:
        """Give a statement's rows, some thousands at a time."""
        statement = statement.format(schema=self.schema)
        yield from self.connection.execute(text(statement), parameters, execution_options={"yield_per": CHUNK})

    def holding(self, table: str, ids: Collection[UUID]) -> dict[UUID, Any]:
        """Return the rows that the inbox or the parking lot has of the consumer's events."""
        rows = self.connection.execute(
            text(f"SELECT * FROM {self.schema}.{table} WHERE consumer = :consumer AND event_id = ANY(:ids)"),  # noqa: S608
            {"consumer": self.consumer, "ids": list(ids)},
        )
        return {row.event_id: row for row in rows}


@dataclass(frozen=True, slots=True)
class _Pair:
    live: Any
    rebuilt: Any

    @property
    def row(self) -> Any:
        return self.rebuilt if self.live is None else self.live


def compare(subject: Rebuild, live: Side, rebuilt: Side) -> RebuildDifference:
    """Return how live differs from what was rebuilt. Reads only.

    Both stand at the same positions; `live` is one transaction that sees one state. What people posted is taken as it stands.
    """
    instead = _put_instead(live, subject.by_hand) if subject.by_hand else {}
    skipped = _skipped(live)
    difference = RebuildDifference()
    adjust: Counter[str] = Counter()
    for pairs in batched(_unequal(subject, live, rebuilt, difference), 2_000):
        touched = [pair for pair in pairs if pair.live is not None and pair.live.number in instead]
        others = [pair for pair in pairs if pair.live is None or pair.live.number not in instead]
        by_hand = [_by_hand(subject, pair, instead[pair.live.number]) for pair in touched]
        judged = _judged(subject, others, live, rebuilt, skipped)
        for finding in (*by_hand, *judged):
            if finding is not None:
                difference.add(finding)
        # What people did is in live's balances on top of the event's; what is excused is in neither side's.
        _adjust(subject, adjust, live, [pair.live for pair in touched])
        stands = [
            pair.rebuilt
            for pair, finding in zip(touched, by_hand, strict=True)
            if finding is None or finding.what is What.BY_HAND
        ]
        excused = {finding.subject for finding in judged if finding.what in (What.PARKED, What.SKIPPED)}
        stands += [pair.rebuilt for pair in others if pair.row.subject in excused]
        _adjust(subject, adjust, rebuilt, [row for row in stands if row is not None], sign=-1)
    if subject.decided:
        adjust.update(sums(live.connection, subject.decided, live.schema))
        adjust.subtract(sums(rebuilt.connection, subject.decided, rebuilt.schema))
    for finding in _accounts(subject, live, rebuilt, adjust):
        difference.add(finding)
    return difference


def _unequal(subject: Rebuild, live: Side, rebuilt: Side, difference: RebuildDifference) -> Iterator[_Pair]:
    lefts, rights = live.rows(subject.rows), rebuilt.rows(subject.rows)
    for left, right in paired(lefts, rights, lambda row: row.subject, lambda row: row.subject):
        difference.compared += 1
        if left is None or right is None or (left.content, left.about) != (right.content, right.about):
            yield _Pair(left, right)


def _adjust(subject: Rebuild, adjust: Counter[str], side: Side, rows: Sequence[Any], *, sign: int = 1) -> None:
    """What these rows did on that side counts towards what live should have, or against it."""
    if rows:
        which = {"ids": [row.event_id for row in rows], "numbers": [row.number for row in rows]}
        for account, amount in sums(side.connection, subject.effects, side.schema, **which).items():
            adjust[account] += sign * amount


def _put_instead(live: Side, by_hand: str) -> dict[int, str | None]:
    """Return, by the number of each voucher that was reversed, what people put in its place; None where nothing."""
    rows = list(live.rows(by_hand))
    reversed_ = {row.reverses for row in rows if row.reverses}
    corrections = {row.corrects: row for row in rows if row.corrects}

    def last_of(number: int) -> str | None:
        content = None
        while (correction := corrections.get(number)) is not None:
            number, content = correction.voucher_no, correction.content
        return None if number in reversed_ else content

    return {number: last_of(number) for number in reversed_}


def _by_hand(subject: Rebuild, pair: _Pair, stands: str | None) -> DifferingRow | None:
    """Return what is to be said of a voucher that differs and that people have reversed; None where they have put right what it was.

    What they put in its place stands, and so does nothing where that resolves it. Else the fact has no voucher: a difference.
    """
    wanted = pair.rebuilt.content if pair.rebuilt is not None else None
    if stands == wanted:
        return None
    is_open = wanted is not None and stands is None and pair.row.subject.split()[0] not in subject.resolved
    return DifferingRow(
        what=What.DIFFERENT if is_open else What.BY_HAND,
        kind=subject.kind,
        subject=pair.row.subject,
        live=stands or REVERSED,
        rebuilt=wanted or "",
        fix="--correct" if is_open else "",
        event_id=pair.row.event_id,
        number=pair.live.number,
        rebuilt_number=pair.rebuilt.number if pair.rebuilt is not None else None,
    )


def _judged(
    subject: Rebuild, pairs: Sequence[_Pair], live: Side, rebuilt: Side, skipped: Collection[UUID]
) -> list[DifferingRow]:
    """Return what each unequal pair is, and what fixes it."""
    missing = {pair.rebuilt.event_id for pair in pairs if pair.live is None}
    extra = {pair.live.event_id for pair in pairs if pair.rebuilt is None}
    parked, applied = live.holding("parked", missing), live.holding("inbox", missing)
    rejected, met = rebuilt.holding("parked", extra), rebuilt.holding("inbox", extra)
    return [_judge(subject, pair, live.consumer, parked, applied, skipped, rejected, met) for pair in pairs]


def _judge(
    subject: Rebuild,
    pair: _Pair,
    consumer: str,
    parked: Mapping[UUID, Any],
    applied: Mapping[UUID, Any],
    skipped: Collection[UUID],
    rejected: Mapping[UUID, Any],
    met: Mapping[UUID, Any],
) -> DifferingRow:
    identity = pair.row.event_id
    how = "--correct" if subject.corrects else "--switch" if subject.switches else ""
    what, fix, is_met = What.DIFFERENT, how, True
    if pair.live is None:
        what = What.MISSING
        if identity in parked:
            what, fix = What.PARKED, f"payrelay parked retry: {parked[identity].cause} {parked[identity].error[:100]}"
        elif identity in skipped:
            what, fix = What.SKIPPED, ""
        elif identity not in applied:
            fix = f"payrelay replay redeliver --consumer {quoted(consumer)} --event {identity} --execute"
        elif not how:
            fix = "the event counts as applied, and its row is gone: payrelay reconcile --full --fix"
    elif pair.rebuilt is None:
        what, is_met = What.EXTRA, identity in met or identity in rejected
        if identity in rejected:
            fix = f"{how}; the handler rejects its event: {rejected[identity].error[:100]}"
        elif not is_met:
            fix = "its event is on no topic: payrelay timeline"
    return DifferingRow(
        what=what,
        kind=subject.kind,
        subject=pair.row.subject,
        live=_content(pair.live, pair.rebuilt),
        rebuilt=_content(pair.rebuilt, pair.live),
        fix=fix,
        event_id=identity,
        number=pair.live.number if pair.live is not None else None,
        rebuilt_number=pair.rebuilt.number if pair.rebuilt is not None else None,
        is_met=is_met,
    )


def _content(row: Any, other: Any) -> str:
    """Return a row's content, and what else differs from the other one's."""
    if row is None:
        return ""
    return row.content if other is None or row.about == other.about else f"{row.content} ({row.about})"


def _skipped(live: Side) -> set[UUID]:
    rows = live.rows(
        """SELECT event ->> 'event_id' AS event_id FROM {schema}.parked_audit
           WHERE action = 'SKIP' AND event ->> 'consumer' = :consumer AND event ->> 'event_id' IS NOT NULL""",
        consumer=live.consumer,
    )
    return {UUID(row.event_id) for row in rows}


def _accounts(subject: Rebuild, live: Side, rebuilt: Side, adjust: Mapping[str, int]) -> Iterator[DifferingRow]:
    """Give the accounts whose balances are not what the rebuilt ones call for, with what stands aside counted in."""
    only = dict(adjust)
    account: Callable[[Any], str] = lambda row: row.account  # noqa: E731
    pairs = paired(live.rows(subject.balances), rebuilt.rows(subject.balances), account, account)
    for left, right in pairs:
        name = account(right if left is None else left)
        kept = 0 if left is None else left.amount
        wanted = (0 if right is None else right.amount) + only.pop(name, 0)
        if kept != wanted:
            yield _account(name, kept, wanted)
    for name, wanted in sorted(only.items()):
        if wanted:
            yield _account(name, 0, wanted)


def _account(name: str, kept: int, wanted: int) -> DifferingRow:
    return DifferingRow(
        what=What.DIFFERENT,
        kind="account",
        subject=name,
        live=str(kept),
        rebuilt=str(wanted),
        fix=f"{kept - wanted:+d} in live",
    )
