"""The facts of the bank: which of its rows an outbox row announces. Pure."""

from __future__ import annotations

from outbox.facts import Fact, FactTable
from schemas.events import BankTransactionExecuted

FACTS = (
    FactTable(
        table="bank.transaction",
        number="transaction_no",
        facts=(Fact(type="'bank.transaction_executed'", happened_at="created_at"),),
        events=(BankTransactionExecuted,),
        columns=("transaction_no", "payment_no", "amount_fen", "currency", "status"),
        not_compared={BankTransactionExecuted: ("reason", "executed_at")},
    ),
)
