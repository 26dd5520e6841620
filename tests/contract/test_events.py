"""Contracts do not change by accident: golden bytes of every event version, JSON Schema in step, topics as declared."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import msgspec
import pytest
import regress
from jsonschema import ValidationError

from producers.payments.orders import PaymentRequest
from schemas.bank import BankNotification, PaymentLink
from schemas.codec import Envelope, Undecodable, decode, decode_body, encode
from schemas.events import EVENTS, Event, json_schema
from schemas.export import FOLDER, rendered
from tests.factories import (
    ID,
    balance_paid,
    balance_refused,
    balance_requested,
    bank_executed,
    deposited,
    failed,
    settled,
    suspense,
)

GOLDEN = Path(__file__).parent / "golden"
EXAMPLES: list[Event] = [
    settled(cost_fen=20, cost_rule="rate 20 bp"),
    failed(),
    suspense(),
    balance_requested(),
    balance_paid(),
    balance_refused(),
    deposited(),
    bank_executed(),
]
EXAMPLES += [
    decode_body(path.stem, path.read_bytes().rstrip(b"\n"))
    for path in sorted(GOLDEN.glob("*.json"))
    if path.stem in EVENTS and path.stem not in {event.type for event in EXAMPLES}
]
"""And each event whose golden file alone says what is in it."""
EARLIER: dict[str, Event] = {"payment.settled.v1.first": settled()}
"""As an event was released before it had all of its fields; the file's name says what of."""


def test_every_event_has_an_example_and_a_golden_file() -> None:
    assert {event.type for event in EXAMPLES} == set(EVENTS)
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(EVENTS) | set(EARLIER)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.type)
def test_golden_bytes(event: Event) -> None:
    golden = (GOLDEN / f"{event.type}.json").read_text().rstrip("\n")
    assert encode(event) == golden
    assert decoded(event.type, golden) == Envelope(id=ID, version=1, correlation="O", event=event)


@pytest.mark.parametrize("name", EARLIER)
def test_what_was_released_before_reads_with_defaults(name: str) -> None:
    event = EARLIER[name]
    assert decoded(event.type, (GOLDEN / f"{name}.json").read_text()).event == event


def decoded(type_: str, body: str) -> Envelope:
    headers = {"ce_id": str(ID), "ce_type": type_, "aggregate_version": "1", "correlation": "O"}
    return decode({name: value.encode() for name, value in headers.items()}, body.encode())


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.type)
def test_the_published_schema_accepts_the_golden_bytes(event: Event) -> None:
    jsonschema.validate(msgspec.json.decode(encode(event)), json_schema(type(event)))


@pytest.mark.parametrize("currency", ["CNY\n", "CNY\r", "\nCNY", "CNY\u2028", "cny", "CN", "CNYY", ""])
@pytest.mark.parametrize(
    "event", [example for example in EXAMPLES if "currency" in example.__struct_fields__], ids=lambda event: event.type
)
def test_a_currency_is_three_letters_and_no_newline_after_them(event: Event, currency: str) -> None:
    body = {**msgspec.json.decode(encode(event)), "currency": currency}
    with pytest.raises(ValidationError):
        jsonschema.validate(body, json_schema(type(event)))
    with pytest.raises(Undecodable):
        decoded(event.type, msgspec.json.encode(body).decode())


PAYMENT_BODY = {"payer_no": "U", "amount_fen": 1, "order_no": "O"}
NOTIFICATION_BODY = {"transaction_no": "B", "payment_no": "P", "amount_fen": 1, "status": "SUCCESS"}
LINK_BODY = {"payment_no": "P", "account_no": "A", "amount_fen": 1, "expires_at": 1}


@pytest.mark.parametrize(
    ("body", "kind"), [(PAYMENT_BODY, PaymentRequest), (NOTIFICATION_BODY, BankNotification), (LINK_BODY, PaymentLink)]
)
def test_no_request_brings_a_currency_with_a_newline(body: dict[str, object], kind: type[msgspec.Struct]) -> None:
    assert msgspec.convert({**body, "currency": "CNY"}, kind)
    for currency in ("CNY\n", "CNY ", "cny"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({**body, "currency": currency}, kind)


def test_patterns_are_ecma_262_and_bounded_by_a_length() -> None:
    """What Python alone has, such as \\Z, no other reader of the schemas knows; its `$` lets a final newline pass."""
    texts = [string for event in EVENTS.values() for string in _strings(json_schema(event))]
    patterns = {str(text["pattern"]) for text in texts if "pattern" in text}
    assert patterns
    for pattern in patterns:
        regress.Regex(pattern, "u")
    assert not [text for text in texts if "pattern" in text and "maxLength" not in text]


def test_what_is_no_ecma_262_does_not_compile() -> None:
    with pytest.raises(regress.RegressError):
        regress.Regex(r"^[A-Z]{3}\Z", "u")


def _strings(schema: object) -> list[dict[str, object]]:
    if isinstance(schema, list):
        return [string for part in schema for string in _strings(part)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if schema.get("type") == "string" else []
    return own + [string for part in schema.values() for string in _strings(part)]


def test_the_schema_files_are_in_step() -> None:
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == rendered(), "run: make json"
