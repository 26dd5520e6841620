"""What events should have caused in the ledger: a voucher with its entries, and balances that the entries add up to. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from consumers.accounting.entries import (
    Entry,
    Voucher,
    deposit_entries,
    net_of,
    settlement_entries,
    suspense_entries,
    voucher_of,
)
from consumers.accounting.posting import BY_HAND, by_hand, correction, reversal
from consumers.effects import (
    REVERSED,
    Agreement,
    EffectCorrection,
    Effects,
    PaymentRows,
    Rebuild,
    Values,
    Write,
    WrongEffect,
)
from outbox.errors import Refused
from schemas.codec import Envelope

CORRECTED = "corrected "


def expected(envelope: Envelope, present: Mapping[str, str]) -> Values:
    """Return the voucher that an event should have led to. In the place of one that people have reversed, a correction of the same
    amount is expected; of money in suspense, nothing is: it is resolved.
    """
    voucher = voucher_of(envelope)
    if voucher is None:
        return {}
    value = present.get(voucher.kind, "")
    if value == REVERSED and voucher.kind == "suspense":
        return {voucher.kind: REVERSED}
    if value == REVERSED or value.startswith(CORRECTED):
        amount_fen = sum(line.amount_fen for line in voucher.entries if line.side == "D")
        return {voucher.kind: f"{CORRECTED}{voucher.currency} {amount_fen}"}
    lines = " ".join(f"{line.account} {line.side}{line.amount_fen}" for line in voucher.entries)
    return {voucher.kind: f"{voucher.currency} {lines}"}


_ROWS = """
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
    FROM accounting.voucher WHERE event_id IS NOT NULL AND {where}"""

_CHANGED = """
    SELECT business_no, kind AS effect, event_id FROM accounting.voucher
    WHERE event_id IS NOT NULL AND {committed}"""

_NET = """
    SELECT account || ' ' || currency AS account,
           CAST(sum(CASE side WHEN 'D' THEN amount_fen ELSE -amount_fen END) AS bigint) AS amount
    FROM {schema}.entry JOIN {schema}.voucher USING (voucher_no)"""

_REBUILD = Rebuild(
    kind="voucher",
    tables=("voucher", "entry", "balance"),
    kept=("chart_of_accounts",),
    rows="""
        SELECT kind || ' ' || business_no AS subject, event_id, voucher_no AS number,
               currency || ': ' || entered.content AS content, CAST(occurred_at AS text) AS about
        FROM {schema}.voucher JOIN (
          SELECT voucher_no, string_agg(account || ' ' || side || ' ' || amount_fen, ', ' ORDER BY account COLLATE "C", side, amount_fen)
                 AS content FROM {schema}.entry GROUP BY voucher_no) AS entered USING (voucher_no)
        WHERE event_id IS NOT NULL ORDER BY kind || ' ' || business_no COLLATE "C" """,
    balances="""
        SELECT account || ' ' || currency AS account, CAST(sum(debit_fen - credit_fen) AS bigint) AS amount
        FROM {schema}.balance GROUP BY account, currency ORDER BY account || ' ' || currency COLLATE "C" """,
    entries=f"{_NET} GROUP BY 1",
    effects=f"{_NET} WHERE voucher_no = ANY(CAST(:numbers AS bigint[])) GROUP BY 1",
    decided=f"{_NET} WHERE event_id IS NULL GROUP BY 1",
    aside="vouchers posted by hand",
    by_hand="""
        SELECT voucher_no, reverses, corrects, currency || ': ' ||
               (SELECT string_agg(account || ' ' || side || ' ' || amount_fen, ', ' ORDER BY account COLLATE "C", side, amount_fen)
                FROM {schema}.entry WHERE entry.voucher_no = voucher.voucher_no) AS content
        FROM {schema}.voucher WHERE event_id IS NULL ORDER BY voucher_no""",
    resolved=("suspense",),
)

_PAYMENT_VOUCHERS = PaymentRows(
    where="accounting.voucher",
    rows="""
        WITH RECURSIVE chain AS (
          SELECT voucher_no FROM accounting.voucher WHERE business_no = ANY (:numbers) AND event_id IS NOT NULL
          UNION
          SELECT later.voucher_no FROM chain CROSS JOIN LATERAL (
            SELECT voucher_no FROM accounting.voucher WHERE reverses = chain.voucher_no
            UNION ALL SELECT voucher_no FROM accounting.voucher WHERE corrects = chain.voucher_no) AS later)
        SELECT CAST(voucher_no AS text) AS id, CAST(coalesce(reverses, corrects) AS text) AS cause, event_id, kind AS what,
               'voucher ' || voucher_no || ' '
                 || (SELECT sum(amount_fen) FROM accounting.entry WHERE entry.voucher_no = voucher.voucher_no AND side = 'D')
                 || ' fen' || coalesce(' by ' || nullif(actor, '') || ': ' || reason, '') AS detail,
               coalesce(pg_xact_commit_timestamp(voucher.xmin), posted_at) AS committed_at
        FROM chain JOIN accounting.voucher USING (voucher_no) ORDER BY voucher_no""",
)

# A fact's voucher, or the last of the corrections in its place; there is at most one that was not reversed.
_VOUCHERS = """
    SELECT business_no, kind, currency, coalesce(pg_xact_commit_timestamp(xmin), occurred_at) AS committed_at,
           (SELECT coalesce(sum(amount_fen), 0)::bigint FROM accounting.entry
            WHERE entry.voucher_no = voucher.voucher_no AND side = 'D') AS amount_fen,
           (SELECT json_object_agg(account, fen) FROM (
              SELECT account, sum(CASE side WHEN 'D' THEN amount_fen ELSE -amount_fen END)::bigint AS fen
              FROM accounting.entry WHERE entry.voucher_no = voucher.voucher_no GROUP BY account) AS line) AS entries
    FROM accounting.voucher
    WHERE NOT EXISTS (SELECT FROM accounting.voucher AS reversal WHERE reversal.reverses = voucher.voucher_no)
      AND (kind = '{kind}' OR (kind = 'correction' AND EXISTS (
             SELECT FROM accounting.voucher AS first
             WHERE first.business_no = voucher.business_no AND first.kind = '{kind}' AND first.event_id IS NOT NULL)))
    ORDER BY business_no COLLATE "C" """

RESOLVED = """
    SELECT business_no, (SELECT reason FROM accounting.voucher AS reversal
                         WHERE reversal.reverses = voucher.voucher_no) AS reason
    FROM accounting.voucher
    WHERE kind = 'suspense'
      AND EXISTS (SELECT FROM accounting.voucher AS reversal WHERE reversal.reverses = voucher.voucher_no)
      AND NOT EXISTS (SELECT FROM accounting.voucher AS instead WHERE instead.corrects = voucher.voucher_no)"""
"""Money in suspense whose voucher was reversed, with nothing in its place, and for which reason."""


def _voucher_difference(entries_of: Callable[[Any], Iterable[Entry]]) -> Callable[[Any, Any], str | None]:
    """Return how a fact and the voucher that stands for it are compared. A correction need not agree account by account."""

    def difference(fact: Any, voucher: Any) -> str | None:
        amount, posted = (fact.amount_fen, fact.currency), (voucher.amount_fen, voucher.currency)
        if amount != posted:
            return f"is {amount[0]} {amount[1]}, its voucher {posted[0]} {posted[1]}"
        if voucher.kind != "correction" and voucher.entries != (wanted := net_of(entries_of(fact))):
            return f"calls for the entries {wanted}, its voucher has {voucher.entries}"
        return None

    return difference


def _vouchers(kind: str, facts: str, entries_of: Callable[[Any], Iterable[Entry]], *, resolved: str = "") -> Agreement:
    return Agreement(
        kind=kind,
        facts=facts,
        rows=_VOUCHERS.format(kind=kind),
        difference=_voucher_difference(entries_of),
        missing="has no voucher that stands",
        extra="has a voucher, and did not happen",
        resolved=resolved,
    )


# When a row was committed, not when its fact happened, says how long the other side has had.
_SETTLEMENTS = _vouchers(
    "settlement",
    """SELECT payment_no AS business_no, amount_fen, currency, merchant_no, payer_no, method, fee_fen,
              coalesce(cost_fen, 0) AS cost_fen, coalesce(pg_xact_commit_timestamp(xmin), finished_at) AS committed_at
       FROM payments.payment WHERE status = 'SETTLED' ORDER BY payment_no COLLATE "C" """,
    settlement_entries,
)

_SUSPENSE = _vouchers(
    "suspense",
    """SELECT bank_transaction_no AS business_no, amount_fen, currency,
              coalesce(pg_xact_commit_timestamp(xmin), recorded_at) AS committed_at
       FROM payments.suspense ORDER BY bank_transaction_no COLLATE "C" """,
    suspense_entries,
    resolved=RESOLVED,
)

_DEPOSITS = _vouchers(
    "deposit",
    """SELECT deposit_no AS business_no, payer_no, amount_fen, currency,
              coalesce(pg_xact_commit_timestamp(xmin), deposited_at) AS committed_at
       FROM funds.deposit ORDER BY deposit_no COLLATE "C" """,
    deposit_entries,
)

_VOUCHER = """
    SELECT voucher_no, currency, occurred_at,
           (SELECT voucher_no FROM accounting.voucher AS reversal WHERE reversal.reverses = voucher.voucher_no) AS reversed_by,
           (SELECT voucher_no FROM accounting.voucher AS instead WHERE instead.corrects = voucher.voucher_no) AS corrected_by,
           (SELECT json_agg(json_build_object('account', account, 'side', side, 'amount_fen', amount_fen) ORDER BY line)
            FROM accounting.entry WHERE entry.voucher_no = voucher.voucher_no) AS entries
    FROM accounting.voucher WHERE business_no = :business_no AND kind = :effect AND event_id IS NOT NULL"""


def correcting_vouchers(wrong: WrongEffect) -> list[Write]:
    """Return the vouchers that set a fact right: its own is taken back if it stands, and replaced if its event calls for one.

    Raises Refused where there is no voucher, it was corrected before, or it is in another currency than its event.
    """
    if not (stands := wrong.state):
        raise Refused(f"there is no {wrong.effect} voucher of {wrong.business_no}")
    number = stands["voucher_no"]
    if stands["corrected_by"] is not None:
        raise Refused(f"voucher {number} was corrected before, by voucher {stands['corrected_by']}")
    is_reversed = stands["reversed_by"] is not None
    if is_reversed != wrong.stands.startswith((REVERSED, CORRECTED)):
        raise Refused(f"voucher {number} was reversed meanwhile, and nothing was posted: run the command again")
    wanted = voucher_of(wrong.envelope) if wrong.wanted and wrong.envelope is not None else None
    if wanted is not None and wanted.currency != stands["currency"]:
        raise Refused(
            f"voucher {number} is in {stands['currency']}, its event in {wanted.currency}: correct it by hand"
        )
    original = Voucher(
        business_no=wrong.business_no,
        kind=wrong.effect,  # type: ignore[arg-type]
        event_id=wrong.event_id,
        currency=stands["currency"],
        occurred_at=stands["occurred_at"],
        entries=tuple(Entry(**entry) for entry in stands["entries"]),
    )
    vouchers = []
    by = {"reason": wrong.reason, "actor": wrong.actor}
    if not is_reversed:
        vouchers.append(reversal(original, number, at=wrong.at, **by))
    if wanted is not None:
        vouchers.append(correction(original, number, wanted.entries, at=wrong.at, **by))
    return [
        Write(BY_HAND[voucher.kind], by_hand(voucher), otherwise=f"voucher {number} has its {voucher.kind} already")
        for voucher in vouchers
    ]


_CORRECTION = EffectCorrection(
    reads=_VOUCHER,
    rows=correcting_vouchers,
    wrong="reverse the voucher, and post its correction",
    stray="reverse the voucher",
)

EFFECTS = Effects(
    expected=expected,
    rows=_ROWS,
    of_events="business_no = ANY(:numbers)",
    of_numbers="business_no = ANY(:numbers)",
    changed=_CHANGED,
    rebuild=_REBUILD,
    payment_rows=(_PAYMENT_VOUCHERS,),
    agreements=(_SETTLEMENTS, _SUSPENSE, _DEPOSITS),
    correction=_CORRECTION,
)
