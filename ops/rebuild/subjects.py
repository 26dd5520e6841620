"""What can be rebuilt from the topics, service by service, and how its rows are read for comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, text

from consumers.delivery.processor import Processor
from consumers.funds.funds import move_funds
from outbox.errors import Refused
from schemas.codec import Envelope
from schemas.events import BalancePaymentRequested


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A service whose rows follow from its topics.

    Statements name `{schema}`. `rows` gives subject, event_id, number, content and about, by subject in the order of its
    bytes: two rows of a subject agree where content and about do. `balances` gives account and amount in that order; `entries`
    what they should be, by account, `effects` how much of it the rows of the events `:ids`, or of the `:numbers`, did, and `decided` what
    no event of its topics tells.
    """

    kind: str
    """What a row is called."""
    tables: tuple[str, ...]
    """What the handler writes, in the order in which it does."""
    kept: tuple[str, ...] = ()
    """What it only reads: copied as it stands."""
    rows: str
    balances: str
    entries: str
    effects: str
    decided: str = ""
    aside: str = ""
    """What is taken as it stands, in words."""
    handle: Callable[[Connection, Sequence[Envelope]], None] | None = None
    """What of the handler can be repeated, if not all of it."""
    switches: bool = False
    """Whether the rebuilt tables may take the live ones' place; money's never do."""
    carried: str = ""
    """What the rebuilt tables `{schema}` take over from the live ones `{live}` before a switch: when their rows were first made."""
    corrects: bool = False
    """Whether differences can be corrected by vouchers."""
    resolved: tuple[str, ...] = ()
    """Kinds of vouchers that people are done with once they are reversed: of others, something must stand."""


def _only_settled(connection: Connection, events: Sequence[Envelope]) -> None:
    """Credit merchants for settled payments; what funds decides by the balance of that moment is not decided again."""
    move_funds(connection, [one for one in events if not isinstance(one.event, BalancePaymentRequested)])


_NET = """
    SELECT account || ' ' || currency AS account,
           CAST(sum(CASE side WHEN 'D' THEN amount_fen ELSE -amount_fen END) AS bigint) AS amount
    FROM {schema}.entry JOIN {schema}.voucher USING (voucher_no)"""

ACCOUNTING = Subject(
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
    corrects=True,
    resolved=("suspense",),
)

# What `reconcile --fix` has put right stands beside what it corrects: together they are what the event calls for, or nothing.
_ENTERED_BY = "(array_agg(event_id ORDER BY kind = 'correction'))[1]"
_UNTOUCHED = "NOT bool_or(kind = 'correction')"

_POINTS = "SELECT account_no AS account, CAST(sum(points) AS bigint) AS amount FROM {schema}.entry"

POINTS = Subject(
    kind="entry",
    tables=("account", "entry"),
    rows=f"""
        SELECT payment_no || ' ' || account_no AS subject, {_ENTERED_BY} AS event_id, CAST(NULL AS bigint) AS number,
               CAST(sum(points) AS text) AS content, '' AS about
        FROM {{schema}}.entry GROUP BY payment_no, account_no HAVING sum(points) <> 0 OR {_UNTOUCHED}
        ORDER BY payment_no || ' ' || account_no COLLATE "C" """,  # noqa: S608 - names of ours
    balances="""SELECT account_no AS account, balance AS amount FROM {schema}.account ORDER BY account_no COLLATE "C" """,
    entries=f"{_POINTS} GROUP BY 1",
    effects=f"{_POINTS} WHERE event_id = ANY(CAST(:ids AS uuid[])) GROUP BY 1",
    switches=True,
    carried="""
        UPDATE {schema}.entry SET created_at = before.created_at FROM {live}.entry AS before
        WHERE (entry.payment_no, entry.account_no, entry.kind) = (before.payment_no, before.account_no, before.kind)
          AND entry.created_at <> before.created_at""",
)

_MOVED = """
    SELECT account_no AS account, CAST(sum(CASE kind WHEN 'debit' THEN -amount_fen ELSE amount_fen END) AS bigint) AS amount
    FROM {schema}.entry"""

# A credit of a balance payment was decided with its debit; its entry carries the request's event.
FUNDS = Subject(
    kind="entry",
    tables=("account", "entry", "balance_payment", "deposit"),
    rows=f"""
        SELECT payment_no || ' ' || account_no AS subject, {_ENTERED_BY} AS event_id, CAST(NULL AS bigint) AS number,
               CAST(sum(amount_fen) AS text) AS content, '' AS about
        FROM {{schema}}.entry
        WHERE kind IN ('credit', 'correction') AND NOT EXISTS (SELECT FROM {{schema}}.balance_payment AS decided
                                                               WHERE decided.payment_no = entry.payment_no)
        GROUP BY payment_no, account_no HAVING sum(amount_fen) <> 0 OR {_UNTOUCHED}
        ORDER BY payment_no || ' ' || account_no COLLATE "C" """,  # noqa: S608 - names of ours
    balances="""
        SELECT account_no AS account, balance_fen AS amount FROM {schema}.account ORDER BY account_no COLLATE "C" """,
    entries=f"{_MOVED} GROUP BY 1",
    effects=f"{_MOVED} WHERE event_id = ANY(CAST(:ids AS uuid[])) GROUP BY 1",
    decided=f"""{_MOVED}
        WHERE kind NOT IN ('credit', 'correction') OR EXISTS (SELECT FROM {{schema}}.balance_payment AS decided
                                          WHERE decided.payment_no = entry.payment_no)
        GROUP BY 1""",
    aside="deposits and balance payments, which funds decides itself by the balance of the moment",
    handle=_only_settled,
)

SUBJECTS = {"accounting": ACCOUNTING, "points": POINTS, "funds": FUNDS}

_TOLD = (
    "its rows say what receivers were sent and have answered, which no topic tells: "
    "what is missing is filled by payrelay replay redeliver, and nobody is told twice"
)

CANNOT = {
    "settlement": "its rows are payments' orders, which HTTP requests make and time expires: its topic tells only how some end",
    "notification": _TOLD,
    "bank_notification": _TOLD,
}


def subject_of(processor: Processor) -> Subject:
    """Return how a processor's rows are rebuilt; raises Refused, saying why, where they cannot be."""
    if (subject := SUBJECTS.get(processor.name)) is None:
        why = CANNOT.get(processor.name, "nobody has said how its rows are compared: ops/rebuild/subjects.py")
        raise Refused(f"{processor.name} cannot be rebuilt: {why}")
    return subject


def repeatable(processor: Processor, subject: Subject) -> Processor:
    """Return the processor with as much of its handler as a rebuild may repeat."""
    return replace(processor, handle=subject.handle) if subject.handle else processor


def sums(connection: Connection, statement: str, schema: str, **parameters: object) -> Mapping[str, int]:
    """Return amounts by account."""
    rows = connection.execute(text(statement.format(schema=schema)), parameters)
    return {row.account: row.amount for row in rows}
