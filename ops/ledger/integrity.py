"""Whether the ledger agrees with itself: vouchers balance, and balances are the sums of their entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text


def ledger_problems(connection: Connection) -> list[str]:
    """Return what is wrong inside the ledger: vouchers out of balance, balances that are not their entries' sums, no currency."""
    unbalanced = connection.execute(
        text("""SELECT voucher_no, business_no, count(*) OVER () AS total FROM accounting.voucher LEFT JOIN accounting.entry USING (voucher_no)
                GROUP BY voucher_no HAVING coalesce(sum(CASE side WHEN 'D' THEN amount_fen ELSE -amount_fen END), 1) <> 0
                ORDER BY voucher_no LIMIT 20""")
    ).all()
    problems = [f"voucher {row.voucher_no} of {row.business_no} is out of balance" for row in unbalanced]
    problems += _more(unbalanced, "vouchers")
    off = connection.execute(
        text("""SELECT account, currency, coalesce(kept.debit, 0) AS kept_debit, coalesce(kept.credit, 0) AS kept_credit,
                       coalesce(entered.debit, 0) AS debit, coalesce(entered.credit, 0) AS credit, count(*) OVER () AS total
                FROM (SELECT account, currency, sum(debit_fen) AS debit, sum(credit_fen) AS credit
                      FROM accounting.balance GROUP BY account, currency) AS kept
                FULL JOIN (SELECT account, currency, sum(amount_fen) FILTER (WHERE side = 'D') AS debit,
                                  sum(amount_fen) FILTER (WHERE side = 'C') AS credit
                           FROM accounting.entry JOIN accounting.voucher USING (voucher_no)
                           GROUP BY account, currency) AS entered USING (account, currency)
                WHERE (coalesce(kept.debit, 0), coalesce(kept.credit, 0))
                      IS DISTINCT FROM (coalesce(entered.debit, 0), coalesce(entered.credit, 0))
                ORDER BY account LIMIT 20""")
    ).all()
    problems += [
        f"ledger balance of {row.account} in {row.currency!r} is {row.kept_debit} debit, {row.kept_credit} credit; "
        f"its entries are {row.debit}, {row.credit}"
        for row in off
    ]
    problems += _more(off, "balances")
    strange = connection.execute(
        text("""SELECT account, currency, count(*) OVER () AS total FROM accounting.balance WHERE currency !~ '^[A-Z]{3}$'
                GROUP BY account, currency HAVING sum(debit_fen) <> sum(credit_fen) ORDER BY account, currency LIMIT 20""")
    ).all()
    problems += [f"ledger balance of {row.account} is in {row.currency!r}, which is no currency" for row in strange]
    return problems + _more(strange, "such balances")


def _more(named: Sequence[Any], what: str) -> list[str]:
    more = named[0].total - len(named) if named else 0
    return [f"and {more} more {what}"] if more else []
