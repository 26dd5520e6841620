"""What a consumer's events should have caused: the type in which each consumer states it, in the `effects.py` of its package. Pure.

Reconcile, rebuild, timeline and `ledger check` read nothing else about a consumer's rows: one that states its effects is covered
by all of them. Statements are SQL as data. They run as role ops, each reads one service, and names tables with their schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from outbox.facts import FactTable
from schemas.codec import Envelope
from schemas.events import Event, SuspenseRecorded

Values = dict[str, str]
"""Of one business number: its effects, and what each amounts to."""

REVERSED = "reversed"
NO_EFFECT = ("0", REVERSED)
"""Values that amount to no effect."""

ANSWERED = "SUCCESS"
"""The status of a notification whose receiver has answered."""

COMMITTED = """coalesce(pg_xact_commit_timestamp(xmin), '-infinity') >= CAST(:since AS timestamptz)
    AND coalesce(pg_xact_commit_timestamp(xmin), '-infinity') < CAST(:before AS timestamptz)"""
"""A row written from :since up to, not including, :before. PostgreSQL forgets old times: such a row counts as written before all."""


def business_no(event: Event) -> str:
    """Return the number under which an event's effects are kept: the payment's, the deposit's, or the bank transaction's."""
    return event.bank_transaction_no if isinstance(event, SuspenseRecorded) else event.key


BUSINESS_NO = """CASE WHEN type LIKE 'payment.suspense_recorded.%' THEN CAST(payload AS json) ->> 'bank_transaction_no'
                      ELSE key END"""
"""The same, of an outbox row."""


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """How a consumer's rows are made again from its topics and compared with the live ones.

    Statements name `{schema}`. Those that give balances give account and amount.
    """

    kind: str
    """What a row is called."""
    tables: tuple[str, ...]
    """What the handler writes, in the order in which it does."""
    kept: tuple[str, ...] = ()
    """What it only reads: copied from the live schema."""
    rows: str
    """subject, event_id, number, content and about, by subject in the order of its bytes. Two rows of a subject agree if content
    and about do."""
    balances: str
    """The kept balances, by account in the order of its bytes."""
    entries: str
    """What the rows add up to."""
    effects: str
    """What the rows of the events `:ids`, or with the `:numbers`, add up to."""
    decided: str = ""
    """What those rows add up to that no event calls for."""
    aside: str = ""
    """The rows that are not compared, in words."""
    repeats: Callable[[Event], bool] = lambda _: True
    """Whether the handler may be given an event again: not where it decides by the balances of the moment."""
    switches: bool = False
    """Whether the rebuilt tables may replace the live ones; money's never do."""
    carried: str = ""
    """What the rebuilt tables `{schema}` take over from the live ones `{live}` before they replace them."""
    by_hand: str = ""
    """voucher_no, reverses, corrects and content of the vouchers that people have posted. Differences are then corrected by vouchers."""
    resolved: tuple[str, ...] = ()
    """Kinds of vouchers that need none in their place once people have reversed them."""

    @property
    def corrects(self) -> bool:
        """Return whether differences are corrected by vouchers."""
        return bool(self.by_hand)


@dataclass(frozen=True, kw_only=True)
class PaymentRows:
    """The rows of one payment, as its timeline shows them."""

    where: str
    """The table."""
    rows: str
    """id, cause, event_id, what, detail and committed_at of the rows of :payment_no, or of its business :numbers. `cause` is the id of
    another row of these that led to it, where no event did."""
    shown: bool = True
    """Whether each row is a line; else they only tell which events the payment has."""
    follows_end: bool = True
    """Whether there are such rows only once the payment has ended."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Facts of a service beside the rows that they should have led to: `ledger check` reads both and names what differs.

    Both statements give business_no and committed_at, in the order of business_no's bytes.
    """

    kind: str
    facts: str
    rows: str
    difference: Callable[[Any, Any], str | None]
    """How a fact and its row differ; None where they agree."""
    missing: str
    """What is said of a fact without a row."""
    extra: str
    """What is said of a row without a fact."""
    resolved: str = ""
    """business_no of those that people have resolved: they may differ."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What a consumer's events should have caused, and how the rows that they have caused are read."""

    expected: Callable[[Envelope, Mapping[str, str]], Values]
    """What an event calls for, given what is there: some effects are decided by the consumer."""
    rows: str
    """business_no, effect, value of the rows that `{where}` leaves; and status, which only a notification has."""
    of_events: str = "payment_no = ANY(:numbers)"
    """The condition for the rows of some events: by their business :numbers, or their :ids."""
    of_numbers: str = "payment_no = ANY(:numbers)"
    """The condition for the rows of some business :numbers."""
    changed: str = ""
    """business_no, effect, event_id of the rows for which `{committed}` holds. Empty: rows that no event calls for are not searched."""
    rebuild: Rebuild | None = None
    no_rebuild: str = ""
    """Why its rows cannot be rebuilt."""
    payment_rows: tuple[PaymentRows, ...] = ()
    correctable: bool = False
    """Whether reconcile corrects a wrong effect, by a row of its own that says why."""
    agreements: tuple[Agreement, ...] = ()
    facts: tuple[FactTable, ...] = ()
    """Its rows that it announces by events of its own."""
