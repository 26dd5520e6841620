"""The proof: journal, bank debits, orders, effects, and balances recomputed from the journal, held against each other.

Each service's rows are read by themselves; they are joined here, by payment and account.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from ops.demo.journal import Intent, Journal, Merchant
from ops.ledger.integrity import ledger_problems
from ops.pipeline.health import reader_engine
from outbox.settings import SERVICES, Settings
from producers.payments.fees import FeeRule, fee_of
from schemas.money import CNY, points_of

EFFECTS = ("funds", "points", "accounting", "notification")


@dataclass(frozen=True, kw_only=True)
class ProofFacts:
    """What the tables say of a run, as read."""

    bank: list[Any]
    """transaction_no, payment_no, account_no, amount_fen, currency, status"""
    bank_balances: dict[str, int]
    payments: list[Any]
    """payment_no, order_no, merchant_no, payer_no, amount_fen, currency, status"""
    funds: list[Any]
    """payment_no, account_no, amount"""
    funds_balances: dict[str, int]
    """Of merchants, and of payers as `payer:…`."""
    paid: list[Any]
    """What payers' balances were debited: payment_no, account_no, amount"""
    points: list[Any]
    points_balances: dict[str, int]
    vouchers: list[Any]
    """Of those that stand: business_no, account, side, amount, currency"""
    deposited: dict[str, int]
    """What accounting holds of each payer's deposits, by payer."""
    records: list[Any]
    """payment_no, status"""
    parked: int
    ledger: list[str]
    """What is wrong inside the whole ledger."""


@dataclass(kw_only=True)
class Proof:
    """The outcome of a run. The proof holds where `holds` says so; `findings` name everything that is wrong."""

    orders: int
    settled: int
    failed: int
    unsettled: int
    effects: dict[str, int]
    delivered: int
    lost: int
    doubled: int
    parked: int
    ledger_balanced: bool
    findings: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return (
            not (self.unsettled or self.lost or self.doubled or self.parked)
            and self.ledger_balanced
            and not self.findings
        )


def prove(settings: Settings, journal: Journal, *, delivered: int | None = None) -> Proof:
    """Return the outcome of the run, from its journal and the services' tables. Reads only; may be repeated."""
    with reader_engine(settings).connect() as connection:
        facts = read_facts(connection, journal)
    return judge(journal, facts, delivered=delivered)


def read_facts(connection: Connection, journal: Journal) -> ProofFacts:
    """Return what the tables say of a run. One statement a service; the ledger is read whole."""
    run = {"like": journal.run.replace("_", r"\_") + "-%"}

    def rows(statement: str) -> list[Any]:
        return list(connection.execute(text(statement), run))

    def balances(statement: str) -> dict[str, int]:
        return {row[0]: int(row[1]) for row in rows(statement)}

    payments = rows("""SELECT payment_no, order_no, merchant_no, payer_no, amount_fen, currency, status FROM payments.payment
                       WHERE merchant_no LIKE :like""")
    return ProofFacts(
        bank=rows("""SELECT transaction_no, payment_no, account_no, amount_fen, currency, status FROM bank.transaction
                     WHERE account_no LIKE :like"""),
        bank_balances=balances("SELECT account_no, balance_fen FROM bank.account WHERE account_no LIKE :like"),
        payments=payments,
        funds=rows("SELECT payment_no, account_no, amount_fen AS amount FROM funds.entry WHERE account_no LIKE :like"),
        funds_balances=balances(
            "SELECT account_no, balance_fen FROM funds.account WHERE account_no LIKE :like OR account_no LIKE 'payer:' || :like"
        ),
        paid=rows("""SELECT payment_no, account_no, amount_fen AS amount FROM funds.entry
                     WHERE account_no LIKE 'payer:' || :like AND kind = 'debit'"""),
        points=rows("SELECT payment_no, account_no, points AS amount FROM points.entry WHERE account_no LIKE :like"),
        points_balances=balances("SELECT account_no, balance FROM points.account WHERE account_no LIKE :like"),
        vouchers=rows("""SELECT business_no, account, side, amount_fen AS amount, currency FROM accounting.voucher
                         JOIN accounting.entry USING (voucher_no) WHERE kind IN ('settlement', 'correction')
                         AND NOT EXISTS (SELECT FROM accounting.voucher r WHERE r.reverses = voucher.voucher_no)
                         AND business_no IN (SELECT v.business_no FROM accounting.voucher v
                                             JOIN accounting.entry e USING (voucher_no)
                                             WHERE e.account LIKE 'merchant_payable:' || :like)"""),
        deposited=balances("""SELECT substr(account, length('payer_balance:') + 1), sum(amount_fen) FROM accounting.voucher
                              JOIN accounting.entry USING (voucher_no) WHERE kind = 'deposit' AND side = 'C'
                              AND account LIKE 'payer_balance:' || :like GROUP BY account"""),
        records=rows("SELECT payment_no, status FROM notification.notify_record WHERE merchant_no LIKE :like"),
        parked=sum(
            rows(f"SELECT count(*) FROM {service}.parked WHERE headers ->> 'correlation' LIKE :like")[0][0]  # noqa: S608
            for service in SERVICES
        ),
        ledger=ledger_problems(connection),
    )


def judge(journal: Journal, facts: ProofFacts, *, delivered: int | None = None) -> Proof:
    """Return what the facts mean. Pure."""
    intents = {intent.order_no: intent for intent in journal.intents}
    orders = {row.payment_no: row for row in facts.payments}
    findings = list(_foreign_currencies(facts))
    lost: set[str] = set()
    doubled = 0

    debits = {row.payment_no: row.amount_fen for row in facts.bank if row.status == "SUCCESS"}
    paid = {row.payment_no: row.amount for row in facts.paid}
    unsettled = 0
    for source, taken in (("bank", debits), ("balance", paid)):
        for payment_no, amount_fen in taken.items():
            if (order := orders.get(payment_no)) is None or order.status not in ("SETTLED", "FAILED"):
                unsettled += 1
                state = order.status if order else "missing"
                findings.append(f"{source} debit of {amount_fen}: order {payment_no} is {state}")
    for row in facts.payments:
        findings += _order_problems(row, intents.get(row.order_no), bank=debits, balance=paid)
    opened = {row.order_no for row in facts.payments}
    findings += [f"order {order_no} of the journal was never opened" for order_no in intents if order_no not in opened]

    settled = [row for row in facts.payments if row.status == "SETTLED"]
    finished = [row for row in facts.payments if row.status in ("SETTLED", "FAILED")]
    counts = {
        "funds": Counter(row.payment_no for row in facts.funds),
        "points": Counter(row.payment_no for row in facts.points),
        "accounting": Counter(row.business_no for row in facts.vouchers if row.account.startswith("merchant_payable:")),
        "notification": Counter(row.payment_no for row in facts.records if row.status == "SUCCESS"),
    }
    for name, counted in counts.items():
        for row in finished if name == "notification" else settled:
            if not counted[row.payment_no]:
                lost.add(row.payment_no)
                findings.append(f"payment {row.payment_no} of order {row.order_no} has no {name} effect")
        for payment_no, count in counted.items():
            if count > 1:
                doubled += count - 1
                findings.append(f"payment {payment_no} has {count} {name} effects")
            if payment_no not in orders:
                doubled += 1
                findings.append(f"{name} effect of payment {payment_no}, which has no order")

    for subject, expected, actual in _balances(journal, facts):
        for account in sorted(expected.keys() | actual.keys()):
            want, have = expected.get(account, 0), actual.get(account, 0)
            if want == have:
                continue
            findings.append(f"{subject} balance of {account} is {have}, the journal makes it {want}")
            # More than one movement where balances grow, or less money left than one debit leaves.
            shrinks = subject == "bank" or account.startswith("payer:")
            if (have > want) != shrinks:
                doubled += 1
            else:
                lost.add(account)
    findings += facts.ledger
    if facts.parked:
        findings.append(f"{facts.parked} events are parked: look into <service>.parked")
    if delivered is not None and delivered < len(finished):
        findings.append(f"{len(finished) - delivered} notifications did not reach their merchants")
    return Proof(
        orders=len(intents),
        settled=len(settled),
        failed=sum(row.status == "FAILED" for row in facts.payments),
        unsettled=unsettled,
        effects={
            name: sum(bool(counted[row.payment_no]) for row in (finished if name == "notification" else settled))
            for name, counted in counts.items()
        },
        delivered=len(finished) if delivered is None else delivered,
        lost=len(lost),
        doubled=doubled,
        parked=facts.parked,
        ledger_balanced=not facts.ledger,
        findings=findings,
    )


def _foreign_currencies(facts: ProofFacts) -> Iterable[str]:
    """Give the currencies that the journal is not in: amounts are compared below, all of one currency."""
    for source, rows in (("bank", facts.bank), ("payments", facts.payments), ("accounting", facts.vouchers)):
        for currency in sorted({row.currency for row in rows} - {CNY}):
            yield f"{source} holds money in {currency!r}, and the journal is in {CNY}"


def _order_problems(
    row: Any, intent: Intent | None, *, bank: Mapping[str, int], balance: Mapping[str, int]
) -> Iterable[str]:
    if intent is None:
        yield f"order {row.order_no} is in no journal"
        return
    if (row.merchant_no, row.payer_no, row.amount_fen) != (intent.merchant_no, intent.payer_no, intent.amount_fen):
        yield f"order {row.order_no} is not what the journal asked for"
    name, taken, other = ("bank", bank, balance) if intent.method == "bank_card" else ("balance", balance, bank)
    if row.status == "SETTLED" and taken.get(row.payment_no) != row.amount_fen:
        yield f"order {row.order_no} is SETTLED without the {name}'s debit of {row.amount_fen}"
    if row.status not in ("SETTLED", "FAILED"):
        yield f"order {row.order_no} is {row.status}"
    if row.status == "FAILED" and row.payment_no in taken:
        yield f"order {row.order_no} is FAILED, but the {name} has debited {taken[row.payment_no]}"
    if row.payment_no in other:
        yield f"order {row.order_no} is paid by {name}, and was debited elsewhere"


def _balances(journal: Journal, facts: ProofFacts) -> Iterable[tuple[str, Mapping[str, int], Mapping[str, int]]]:
    """Give subject, balances as the journal makes them, balances as kept. Poor payers' orders move nothing."""
    bank = {payer.account_no: payer.balance_fen for payer in journal.payers.values()}
    funds = Counter({f"payer:{payer.payer_no}": payer.deposit_fen for payer in journal.payers.values()})
    points: Counter[str] = Counter()
    booked: Counter[str] = Counter()
    for intent in journal.intents:
        payer = journal.payers[intent.payer_no]
        if payer.balance_fen == 0:
            continue
        fee_fen = fee_of(_fee_rule(journal.merchants[intent.merchant_no]), intent.amount_fen)
        if intent.method == "bank_card":
            bank[payer.account_no] -= intent.amount_fen
        else:
            funds[f"payer:{payer.payer_no}"] -= intent.amount_fen
            booked[f"payer_balance:{payer.payer_no}"] += intent.amount_fen
        funds[intent.merchant_no] += intent.amount_fen - fee_fen
        points[intent.payer_no] += points_of(intent.amount_fen)
        booked[f"merchant_payable:{intent.merchant_no}"] += intent.amount_fen - fee_fen
    kept: Counter[str] = Counter()
    for row in facts.vouchers:
        normal = {"merchant_payable": "C", "payer_balance": "D"}.get(row.account.partition(":")[0])
        if normal:  # what merchants are owed, and what payers have paid of what they are owed
            kept[row.account] += row.amount if row.side == normal else -row.amount
    yield "bank", bank, facts.bank_balances
    yield "funds", funds, facts.funds_balances
    yield "points", points, facts.points_balances
    yield "ledger", booked, kept
    deposits = {payer.payer_no: payer.deposit_fen for payer in journal.payers.values() if payer.deposit_fen}
    yield "deposit", deposits, facts.deposited


def _fee_rule(merchant: Merchant) -> FeeRule:
    return FeeRule(
        rate_bp=merchant.fee_rate_bp,
        fixed_fen=merchant.fee_fixed_fen,
        min_fen=merchant.fee_min_fen,
        cap_fen=merchant.fee_cap_fen,
    )
