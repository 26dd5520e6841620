"""Contracts do not change by accident: golden bytes of every event version, JSON Schema in step, topics as declared."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import msgspec
import pytest

from schemas.codec import Envelope, decode, encode
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


def test_the_schema_files_are_in_step() -> None:
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == rendered(), "run: make json"
