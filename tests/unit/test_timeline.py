"""A timeline built from rows: what waits, what is missing, and at which place."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from ops.delivery.registry import known_consumers
from ops.timeline.facts import PaymentFacts
from ops.timeline.places import MessagePlace, Records
from ops.timeline.steps import ReadProgress, steps_of
from ops.timeline.story import Story, story_of
from outbox.settings import Settings
from tests.factories import AT, ID

S = timedelta(seconds=1)
CONSUMERS = {"payment.order": [known_consumers(Settings())["accounting"]], "funds.transfer": []}
TABLES = (
    "bank",
    "notified",
    "suspense",
    "outbox",
    "inbox",
    "effects",
    "notifications",
    "attempts",
    "parked",
    "audited",
)


def row(**values: Any) -> Any:
    return SimpleNamespace(**values)


PAYMENT = row(
    payment_no="P1", order_no="O1", merchant_no="M1", status="SETTLED", amount_fen=100, currency="CNY", method="bank_card",
    reason=None, bank_transaction_no=None, created_at=AT, finished_at=AT + S,
)  # fmt: skip
SETTLED = row(
    service="payments", id=ID, topic="payment.order", key="P1", version=1, type="payment.settled.v1", causation=None, lsn=100,
    committed_at=AT + S,
)  # fmt: skip


def story(*, slot_found: bool = True, confirmed: int = 200, next_offset: int = 0, **tables: Any) -> Story:
    facts = PaymentFacts(payment=PAYMENT, **{name: tables.pop(name, []) for name in TABLES})
    standing = ReadProgress(
        at=AT + 60 * S, slot_found=slot_found, confirmed_lsn=confirmed, remembered={"accounting": ID},
        positions={("accounting", "payment.order", 0): next_offset},
    )  # fmt: skip
    return story_of(facts, steps_of(facts, tables.pop("records", {}), standing, CONSUMERS))


def at_end(payment_story: Story) -> tuple[str, str, str]:
    line = payment_story.lines[-1]
    return line.where, line.what, line.fix.partition(str(ID))[0].strip()


@pytest.mark.parametrize(
    ("standing", "what", "mend"),
    [
        ({}, "missing", "payrelay connect snapshot --event"),
        ({"confirmed": 100}, "waiting", "payrelay doctor"),
        ({"slot_found": False, "confirmed": 0}, "missing", "payrelay doctor --repair-slot --execute"),
    ],
)
def test_an_event_without_a_record_waits_or_is_missing(standing: dict[str, Any], what: str, mend: str) -> None:
    payment_story = story(outbox=[SETTLED], records={ID: Records()}, **standing)
    assert at_end(payment_story) == ("payment.order", what, mend)
    assert payment_story.is_whole == (what == "waiting")


def test_a_record_without_an_inbox_row_waits_or_was_passed_over() -> None:
    message = MessagePlace(place=("payment.order", 0), offset=5, at=AT + 2 * S, type="payment.settled.v1")
    records = {ID: Records(found=[message])}
    assert at_end(story(outbox=[SETTLED], records=records, next_offset=5))[:2] == ("accounting.inbox", "waiting")
    passed = story(outbox=[SETTLED], records=records, next_offset=6)
    assert at_end(passed)[1:] == ("missing", "payrelay replay redeliver --consumer accounting --event")
    assert [line.since_cause_ms for line in passed.lines] == [None, 1000.0, 1000.0, 1000.0, None]


def test_a_payment_that_nobody_was_told_of_says_so() -> None:
    payment_story = story()
    assert at_end(payment_story)[:2] == ("payments.outbox", "missing")
    assert not payment_story.is_whole


def test_each_attempt_to_tell_a_merchant_is_a_line() -> None:
    record = row(
        id="N1", service="notification", event_id=ID, merchant_no="M1", created_at=AT + 3 * S, finished_at=AT + 9 * S, status="SUCCESS", attempts=2,
        last_error=None,
    )  # fmt: skip
    tries = [
        row(record_id="N1", attempt=1, result="HTTP_REQUEST_FAILED", http_status=None, error="refused", started_at=AT + 4 * S, ended_at=AT + 5 * S),
        row(record_id="N1", attempt=2, result="SUCCESS", http_status=200, error="", started_at=AT + 8 * S, ended_at=AT + 9 * S),
    ]  # fmt: skip
    lines = story(outbox=[SETTLED], notifications=[record], attempts=tries).lines[-4:]
    assert [(line.what, line.since_cause_ms) for line in lines] == [
        ("CREATED", None),
        ("HTTP_REQUEST_FAILED", 2000.0),
        ("SUCCESS", 6000.0),
        ("SUCCESS", 6000.0),
    ]
    assert lines[1].detail == "attempt 1 took 1000 ms: refused"
