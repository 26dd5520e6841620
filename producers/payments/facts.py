"""The facts of the payments service: which of its rows an outbox row announces. Pure."""

from __future__ import annotations

from outbox.facts import Fact, FactTable
from schemas.events import BalancePaymentRequested, PaymentFailed, PaymentSettled, SuspenseRecorded

FACTS = (
    FactTable(
        table="payments.payment",
        number="payment_no",
        order_no="order_no",
        facts=(
            Fact(type="'payment.settled'", condition="status = 'SETTLED'", happened_at="finished_at"),
            Fact(type="'payment.failed'", condition="status = 'FAILED'", happened_at="finished_at"),
            Fact(
                type="'payment.balance_requested'",
                condition="method = 'balance' AND status IN ('PAYING', 'SETTLED', 'FAILED')",
                happened_at="created_at",
            ),
        ),
        events=(PaymentSettled, PaymentFailed, BalancePaymentRequested),
        columns=(
            "payment_no",
            "order_no",
            "merchant_no",
            "payer_no",
            "amount_fen",
            "currency",
            "status",
            "method",
            "fee_fen",
            "points",
            "cost_fen",
            "bank_transaction_no",
        ),
        statuses={
            PaymentSettled: ("SETTLED",),
            PaymentFailed: ("FAILED",),
            BalancePaymentRequested: ("PAYING", "SETTLED", "FAILED"),
        },
        # A request's fee and points are in the row only once it is paid, with the event of that.
        not_compared={
            PaymentSettled: ("fee_rule", "cost_rule", "settled_at"),
            PaymentFailed: ("reason", "failed_at"),
            BalancePaymentRequested: ("fee_fen", "fee_rule", "points", "requested_at"),
        },
        stand_ins={"bank_transaction_no": "payment_no"},
    ),
    FactTable(
        table="payments.suspense",
        number="bank_transaction_no",
        key="payment_no",
        facts=(Fact(type="'payment.suspense_recorded'", happened_at="recorded_at"),),
        events=(SuspenseRecorded,),
        columns=("bank_transaction_no", "payment_no", "amount_fen", "currency"),
        not_compared={SuspenseRecorded: ("reason", "recorded_at")},
    ),
)
