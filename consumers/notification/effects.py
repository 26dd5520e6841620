"""What events should have caused at the notifying services: a notification each, which its receiver has answered. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from consumers.effects import Effects, Values
from consumers.notification.bodies import body_of
from consumers.notification.queues import BANK, MERCHANT
from schemas.codec import Envelope
from schemas.events import BankTransactionExecuted


def expected(envelope: Envelope, _: Mapping[str, str]) -> Values:
    """Return the notification that an event should have led to for its merchant."""
    return {MERCHANT: ""} if body_of(envelope.event) is not None else {}


def expected_of_bank(envelope: Envelope, _: Mapping[str, str]) -> Values:
    """Return the notification that an event should have led to for the platform."""
    return {BANK: ""} if isinstance(envelope.event, BankTransactionExecuted) else {}


_NO_REBUILD = (
    "its rows say what receivers were sent and have answered, which no topic tells: "
    "what is missing is filled by payrelay replay redeliver, and nobody is notified twice"
)

NOTIFICATIONS = """
    SELECT '{service}' AS service, id, queue, event_id, merchant_no, status, attempts, last_error, created_at, finished_at
    FROM {service}.notify_record WHERE queue = :queue AND event_id = ANY (:ids)"""
"""The notifications that a service owes for events."""

ATTEMPTS = """
    SELECT record_id, attempt, result, http_status, error, started_at, ended_at
    FROM {service}.notify_record_log WHERE record_id = ANY (:notifications) ORDER BY id"""
"""Every attempt at them, in order."""

EFFECTS = Effects(
    expected=expected,
    rows="""
        SELECT payment_no AS business_no, queue AS effect, '' AS value, status
        FROM notification.notify_record WHERE queue = 'merchant' AND {where}""",
    of_events="event_id = ANY(:ids)",
    changed="""
        SELECT payment_no AS business_no, queue AS effect, event_id FROM notification.notify_record
        WHERE queue = 'merchant' AND {committed}""",
    no_rebuild=_NO_REBUILD,
)

BANK_EFFECTS = Effects(
    expected=expected_of_bank,
    rows="""
        SELECT (SELECT transaction_no FROM bank.transaction
                WHERE transaction.payment_no = notify_record.payment_no) AS business_no,
               queue AS effect, '' AS value, status
        FROM bank.notify_record WHERE queue = 'bank' AND {where}""",
    of_events="event_id = ANY(:ids)",
    of_numbers="payment_no IN (SELECT payment_no FROM bank.transaction WHERE transaction_no = ANY(:numbers))",
    changed="""
        SELECT (SELECT transaction_no FROM bank.transaction
                WHERE transaction.payment_no = notify_record.payment_no) AS business_no,
               queue AS effect, event_id
        FROM bank.notify_record WHERE queue = 'bank' AND {committed}""",
    no_rebuild=_NO_REBUILD,
)
