"""What events should have caused at points: a payer's entry, and the balance that the entries add up to. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from consumers.effects import Effects, PaymentRows, Rebuild, Values
from schemas.codec import Envelope
from schemas.events import PaymentSettled


def expected(envelope: Envelope, _: Mapping[str, str]) -> Values:
    """Return the points that an event should have brought to which account."""
    event = envelope.event
    return {event.payer_no: str(event.points)} if isinstance(event, PaymentSettled) else {}


_EARNED = "SELECT account_no AS account, CAST(sum(points) AS bigint) AS amount FROM {schema}.entry"

# What `reconcile --fix` has corrected stands beside the correction: together they are what the event calls for, or nothing.
_REBUILD = Rebuild(
    kind="entry",
    tables=("account", "entry"),
    rows="""
        SELECT payment_no || ' ' || account_no AS subject, (array_agg(event_id ORDER BY kind = 'correction'))[1] AS event_id,
               CAST(NULL AS bigint) AS number, CAST(sum(points) AS text) AS content, '' AS about
        FROM {schema}.entry GROUP BY payment_no, account_no HAVING sum(points) <> 0 OR NOT bool_or(kind = 'correction')
        ORDER BY payment_no || ' ' || account_no COLLATE "C" """,
    balances="""SELECT account_no AS account, balance AS amount FROM {schema}.account ORDER BY account_no COLLATE "C" """,
    entries=f"{_EARNED} GROUP BY 1",
    effects=f"{_EARNED} WHERE event_id = ANY(CAST(:ids AS uuid[])) GROUP BY 1",
    switches=True,
    carried="""
        UPDATE {schema}.entry SET created_at = before.created_at FROM {live}.entry AS before
        WHERE (entry.payment_no, entry.account_no, entry.kind) = (before.payment_no, before.account_no, before.kind)
          AND entry.created_at <> before.created_at""",
)

_ENTRIES = PaymentRows(
    where="points.entry",
    rows="""
        SELECT account_no || ' ' || kind AS id, NULL AS cause, event_id, kind AS what, account_no || ' ' || points || ' points' AS detail,
               coalesce(pg_xact_commit_timestamp(xmin), created_at) AS committed_at
        FROM points.entry WHERE payment_no = :payment_no""",
)

EFFECTS = Effects(
    expected=expected,
    rows="""
        SELECT payment_no AS business_no, account_no AS effect, CAST(sum(points) AS text) AS value, NULL AS status
        FROM points.entry WHERE {where} GROUP BY payment_no, account_no""",
    changed="SELECT payment_no AS business_no, account_no AS effect, event_id FROM points.entry WHERE {committed}",
    rebuild=_REBUILD,
    correctable=True,
    payment_rows=(_ENTRIES,),
)
