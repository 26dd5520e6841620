"""What an event calls for at each of its consumers, and what is there. The events are read by their consumers' own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from consumers.accounting.agent import PROCESSOR as ACCOUNTING
from consumers.accounting.entries import voucher_of
from consumers.delivery.processor import Processor
from consumers.funds.agent import PROCESSOR as FUNDS
from consumers.funds.funds import payer_account
from consumers.notification.agent import BANK_PROCESSOR as BANK_NOTIFICATION
from consumers.notification.agent import PROCESSOR as NOTIFICATION
from consumers.notification.bodies import body_of
from consumers.notification.queues import BANK, MERCHANT
from consumers.points.agent import PROCESSOR as POINTS
from consumers.settlement.agent import PROCESSOR as SETTLEMENT
from schemas.codec import Envelope
from schemas.events import (
    BalancePaid,
    BalancePaymentRequested,
    BalanceRefused,
    BankTransactionExecuted,
    Event,
    PaymentSettled,
    SuspenseRecorded,
)
from schemas.money import CNY

Effects = dict[str, str]
"""Of one business number: which effects, and what each amounts to."""


def business_no(event: Event) -> str:
    """Return the number that an event's effects hang on."""
    return event.bank_transaction_no if isinstance(event, SuspenseRecorded) else event.key


BUSINESS_NO = """CASE WHEN type LIKE 'payment.suspense_recorded.%' THEN CAST(payload AS json) ->> 'bank_transaction_no'
                      ELSE key END"""
"""The same, of an outbox row."""


@dataclass(frozen=True, kw_only=True)
class Follower:
    """A consumer beside the rows that its events lead to."""

    processor: Processor
    rows: str
    """business_no, effect, value of the rows that `{where}` leaves, and the status of a notification."""
    looked_up: str
    """Of some events: their :numbers, or their :ids."""
    named: str = "payment_no = ANY(:numbers)"
    """Of some business numbers."""
    expected: Callable[[Envelope, Mapping[str, str]], Effects]
    """What an event calls for, given what is there: some effects are decided by who follows."""
    changed: str = ""
    """The rows of a stretch of time: those committed from :since up to, not including, :before. Empty: not looked at by themselves."""


def _amounts(lines: Mapping[str, int], currency: str) -> Effects:
    """Return the effects as funds keeps them: amounts of its one currency. Of another currency, none of its amounts is right."""
    unit = "" if currency == CNY else f" {currency}"
    return {account: f"{amount}{unit}" for account, amount in lines.items()}


def _funds(envelope: Envelope, found: Mapping[str, str]) -> Effects:
    match envelope.event:
        case PaymentSettled(method="bank_card") as event:
            return _amounts({event.merchant_no: event.amount_fen - event.fee_fen}, event.currency)
        case BalancePaymentRequested() as event:
            decision = found.get(DECISION, PAID)
            moves = {
                payer_account(event.payer_no): -event.amount_fen,
                event.merchant_no: event.amount_fen - event.fee_fen,
            }
            return {DECISION: decision} | (_amounts(moves, event.currency) if decision == PAID else {})
        case _:
            return {}


def _points(envelope: Envelope, _: Mapping[str, str]) -> Effects:
    event = envelope.event
    return {event.payer_no: str(event.points)} if isinstance(event, PaymentSettled) else {}


def _accounting(envelope: Envelope, found: Mapping[str, str]) -> Effects:
    """A voucher that was taken back: the correction in its place is of the same amount, and money in suspense is resolved."""
    voucher = voucher_of(envelope)
    if voucher is None:
        return {}
    stands = found.get(voucher.kind, "")
    if stands == REVERSED and voucher.kind == "suspense":
        return {voucher.kind: REVERSED}
    if stands == REVERSED or stands.startswith(CORRECTED):
        amount_fen = sum(line.amount_fen for line in voucher.entries if line.side == "D")
        return {voucher.kind: f"{CORRECTED}{voucher.currency} {amount_fen}"}
    lines = " ".join(f"{line.account} {line.side}{line.amount_fen}" for line in voucher.entries)
    return {voucher.kind: f"{voucher.currency} {lines}"}


def _notification(envelope: Envelope, _: Mapping[str, str]) -> Effects:
    return {MERCHANT: ""} if body_of(envelope.event) is not None else {}


def _bank_notification(envelope: Envelope, _: Mapping[str, str]) -> Effects:
    return {BANK: ""} if isinstance(envelope.event, BankTransactionExecuted) else {}


def _settlement(envelope: Envelope, _: Mapping[str, str]) -> Effects:
    match envelope.event:
        case BalancePaid():
            return {ORDER: "SETTLED"}
        case BalanceRefused():
            return {ORDER: "FAILED"}
        case _:
            return {}


DECISION, PAID, ORDER = "decision", "paid", "order"
REVERSED, CORRECTED = "reversed", "corrected "
NOTHING = ("0", REVERSED)
"""Values that amount to no effect."""

COMMITTED = """coalesce(pg_xact_commit_timestamp(xmin), '-infinity') >= CAST(:since AS timestamptz)
    AND coalesce(pg_xact_commit_timestamp(xmin), '-infinity') < CAST(:before AS timestamptz)"""
"""A row written from :since up to, not including, :before; what was written in times forgotten has no time."""

FOLLOWERS = (
    Follower(
        processor=FUNDS,
        rows="""
            SELECT payment_no AS business_no, account_no AS effect,
                   CAST(sum(CASE kind WHEN 'debit' THEN -amount_fen ELSE amount_fen END) AS text) AS value,
                   NULL AS status
            FROM funds.entry WHERE {where} GROUP BY payment_no, account_no
            UNION ALL
            SELECT payment_no, 'decision', CASE WHEN paid THEN 'paid' ELSE 'refused' END, NULL
            FROM funds.balance_payment WHERE {where}""",
        looked_up="payment_no = ANY(:numbers)",
        changed="""SELECT payment_no AS business_no, account_no AS effect, event_id
                   FROM funds.entry WHERE kind <> 'deposit' AND {committed}""",
        expected=_funds,
    ),
    Follower(
        processor=POINTS,
        rows="""
            SELECT payment_no AS business_no, account_no AS effect, CAST(sum(points) AS text) AS value, NULL AS status
            FROM points.entry WHERE {where} GROUP BY payment_no, account_no""",
        looked_up="payment_no = ANY(:numbers)",
        changed="SELECT payment_no AS business_no, account_no AS effect, event_id FROM points.entry WHERE {committed}",
        expected=_points,
    ),
    Follower(
        processor=ACCOUNTING,
        rows="""
            SELECT business_no, kind AS effect,
                   CASE WHEN EXISTS (SELECT FROM accounting.voucher AS reversal
                                     WHERE reversal.reverses = voucher.voucher_no)
                   THEN coalesce((
                     WITH RECURSIVE instead AS (
                       SELECT first.voucher_no FROM accounting.voucher AS first WHERE first.corrects = voucher.voucher_no
                       UNION ALL
                       SELECT later.voucher_no FROM accounting.voucher AS later JOIN instead ON later.corrects = instead.voucher_no)
                     SELECT 'corrected ' || currency || ' ' || sum(amount_fen)
                     FROM instead JOIN accounting.entry USING (voucher_no)
                     WHERE side = 'D' AND NOT EXISTS (SELECT FROM accounting.voucher AS reversal
                                                      WHERE reversal.reverses = instead.voucher_no)), 'reversed')
                   ELSE currency || (SELECT string_agg(' ' || account || ' ' || side || amount_fen, '' ORDER BY line)
                                     FROM accounting.entry WHERE entry.voucher_no = voucher.voucher_no)
                   END AS value, NULL AS status
            FROM accounting.voucher WHERE event_id IS NOT NULL AND {where}""",
        looked_up="business_no = ANY(:numbers)",
        named="business_no = ANY(:numbers)",
        changed="""SELECT business_no, kind AS effect, event_id FROM accounting.voucher
                   WHERE event_id IS NOT NULL AND {committed}""",
        expected=_accounting,
    ),
    # What is read of notifications, here and nowhere else.
    Follower(
        processor=NOTIFICATION,
        rows="""SELECT payment_no AS business_no, queue AS effect, '' AS value, status
                FROM notification.notify_record WHERE queue = 'merchant' AND {where}""",
        looked_up="event_id = ANY(:ids)",
        changed="""SELECT payment_no AS business_no, queue AS effect, event_id FROM notification.notify_record
                   WHERE queue = 'merchant' AND {committed}""",
        expected=_notification,
    ),
    Follower(
        processor=BANK_NOTIFICATION,
        rows="""SELECT (SELECT transaction_no FROM bank.transaction
                        WHERE transaction.payment_no = notify_record.payment_no) AS business_no,
                       queue AS effect, '' AS value, status
                FROM bank.notify_record WHERE queue = 'bank' AND {where}""",
        looked_up="event_id = ANY(:ids)",
        named="payment_no IN (SELECT payment_no FROM bank.transaction WHERE transaction_no = ANY(:numbers))",
        changed="""SELECT (SELECT transaction_no FROM bank.transaction
                           WHERE transaction.payment_no = notify_record.payment_no) AS business_no,
                          queue AS effect, event_id
                   FROM bank.notify_record WHERE queue = 'bank' AND {committed}""",
        expected=_bank_notification,
    ),
    Follower(
        processor=SETTLEMENT,
        rows="""SELECT payment_no AS business_no, 'order' AS effect, status AS value, NULL AS status
                FROM payments.payment WHERE method = 'balance' AND status IN ('SETTLED', 'FAILED') AND {where}""",
        looked_up="payment_no = ANY(:numbers)",
        expected=_settlement,
    ),
)
