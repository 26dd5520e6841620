"""A consumer that is in tests only: each settled payment stamps its payer's card. It shows what a new consumer has to state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from sqlalchemy import Connection, text

from consumers import processors
from consumers.delivery.processor import Processor
from consumers.effects import EffectCorrection, Effects, PaymentRows, Rebuild, Values, by_difference
from outbox.rows import as_json
from schemas.codec import Envelope
from schemas.events import PaymentSettled
from schemas.topics import PAYMENT_ORDER

NAME = "loyalty"

TABLES = """
    CREATE TABLE shop.card (payer_no text PRIMARY KEY, stamps bigint NOT NULL);
    CREATE TABLE shop.stamp (
      payment_no text NOT NULL, payer_no text NOT NULL REFERENCES shop.card, kind text NOT NULL DEFAULT 'stamped',
      stamps bigint NOT NULL, event_id uuid NOT NULL, made_at timestamptz NOT NULL DEFAULT now(), reason text, actor text,
      PRIMARY KEY (payment_no, payer_no, kind), CHECK ((kind = 'corrected') = (reason IS NOT NULL AND actor IS NOT NULL)));
    GRANT SELECT, INSERT, UPDATE, DELETE ON shop.card, shop.stamp TO shop;
    GRANT SELECT ON shop.card, shop.stamp TO ops"""

_CARDS = text("""
    INSERT INTO card (payer_no, stamps)
    SELECT payer_no, sum(stamps) FROM json_to_recordset(CAST(:rows AS json)) AS earned (payer_no text, stamps bigint)
    GROUP BY payer_no ORDER BY payer_no
    ON CONFLICT (payer_no) DO UPDATE SET stamps = card.stamps + excluded.stamps""")

_STAMPS = text("""
    INSERT INTO stamp (payment_no, payer_no, stamps, event_id)
    SELECT * FROM json_to_recordset(CAST(:rows AS json))
        AS earned (payment_no text, payer_no text, stamps bigint, event_id uuid)""")


def stamp_cards(connection: Connection, events: Sequence[Envelope]) -> None:
    rows = [
        {
            "payment_no": envelope.event.payment_no,
            "payer_no": envelope.event.payer_no,
            "stamps": 1 + envelope.event.amount_fen // 5_000,
            "event_id": envelope.id,
        }
        for envelope in events
        if isinstance(envelope.event, PaymentSettled)
    ]
    if rows:
        connection.execute(_CARDS, {"rows": as_json(rows)})
        connection.execute(_STAMPS, {"rows": as_json(rows)})


PROCESSOR = Processor(name=NAME, service="shop", topics=(PAYMENT_ORDER,), handle=stamp_cards)


def expected(envelope: Envelope, _: Mapping[str, str]) -> Values:
    event = envelope.event
    return {event.payer_no: str(1 + event.amount_fen // 5_000)} if isinstance(event, PaymentSettled) else {}


_EARNED = "SELECT payer_no AS account, CAST(sum(stamps) AS bigint) AS amount FROM {schema}.stamp"

EFFECTS = Effects(
    expected=expected,
    rows="""
        SELECT payment_no AS business_no, payer_no AS effect, CAST(sum(stamps) AS text) AS value, NULL AS status
        FROM shop.stamp WHERE {where} GROUP BY payment_no, payer_no""",
    changed="SELECT payment_no AS business_no, payer_no AS effect, event_id FROM shop.stamp WHERE {committed}",
    rebuild=Rebuild(
        kind="stamp",
        tables=("card", "stamp"),
        rows="""
            SELECT payment_no AS subject, (array_agg(event_id ORDER BY kind = 'corrected'))[1] AS event_id,
                   CAST(NULL AS bigint) AS number, payer_no || ' ' || sum(stamps) AS content, '' AS about
            FROM {schema}.stamp GROUP BY payment_no, payer_no HAVING sum(stamps) <> 0 OR NOT bool_or(kind = 'corrected')
            ORDER BY payment_no COLLATE "C" """,
        balances="""SELECT payer_no AS account, stamps AS amount FROM {schema}.card ORDER BY payer_no COLLATE "C" """,
        entries=f"{_EARNED} GROUP BY 1",
        effects=f"{_EARNED} WHERE event_id = ANY(CAST(:ids AS uuid[])) GROUP BY 1",
    ),
    payment_rows=(
        PaymentRows(
            where="shop.stamp",
            rows="""
                SELECT payment_no || ' ' || kind AS id, NULL AS cause, event_id, kind AS what, payer_no || ' ' || stamps AS detail,
                       coalesce(pg_xact_commit_timestamp(xmin), made_at) AS committed_at
                FROM shop.stamp WHERE payment_no = :payment_no""",
        ),
    ),
    correction=EffectCorrection(
        hold=(
            "INSERT INTO shop.card (payer_no, stamps) VALUES (:effect, 0) ON CONFLICT (payer_no) DO NOTHING",
            "SELECT FROM shop.card WHERE payer_no = :effect FOR UPDATE",
        ),
        rows=by_difference(
            enter="""
                INSERT INTO shop.stamp (payment_no, payer_no, kind, stamps, event_id, reason, actor)
                VALUES (:business_no, :effect, 'corrected', :difference, :event_id, :reason, :actor)
                ON CONFLICT (payment_no, payer_no, kind) DO NOTHING""",
            move="UPDATE shop.card SET stamps = stamps + :difference WHERE payer_no = :effect",
        ),
    ),
)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer is one of this version's, by a line in consumers/processors.py as any other has it."""
    monkeypatch.setitem(processors._CONSUMERS, NAME, ("tests.loyalty:PROCESSOR", "tests.loyalty:EFFECTS"))


def make_tables(connection: Connection) -> None:
    """The consumer's tables are there. Transaction: the caller's, as the owner."""
    for statement in TABLES.split(";"):
        connection.execute(text(statement))


def drop_tables(connection: Connection) -> None:
    """Nothing is left of the consumer. Transaction: the caller's, as the owner."""
    connection.execute(text("DROP TABLE shop.stamp, shop.card"))
    connection.execute(text("TRUNCATE shop.inbox, shop.progress"))
