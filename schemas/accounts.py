"""The chart of accounts: the codes of the ledger's accounts, spelled here and nowhere else. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["D", "C"]

BANK_CLEARING = "bank_clearing"
CHANNEL_COST = "channel_cost"
FEE_INCOME = "fee_income"
MERCHANT_PAYABLE = "merchant_payable"
PAYER_BALANCE = "payer_balance"
SUSPENSE = "suspense"


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralAccount:
    """A row of the chart of accounts. An entry's account is its code alone, or `code:party`."""

    code: str
    name: str
    normal_side: Side
    """The side on which its balance grows: debit for what is ours or spent, credit for what we owe or have earned."""
    floorless: bool = False
    """Every payment touches it and no check reads it: its balance is kept in stripes that reads add up."""


CHART = {
    account.code: account
    for account in (
        GeneralAccount(
            code=BANK_CLEARING, name="what banks have taken for us and will remit", normal_side="D", floorless=True
        ),
        GeneralAccount(code=CHANNEL_COST, name="what banks keep of it", normal_side="D", floorless=True),
        GeneralAccount(code=FEE_INCOME, name="what merchants pay us", normal_side="C", floorless=True),
        GeneralAccount(code=MERCHANT_PAYABLE, name="what we owe a merchant", normal_side="C"),
        GeneralAccount(code=PAYER_BALANCE, name="what we hold for a payer", normal_side="C"),
        GeneralAccount(code=SUSPENSE, name="money that no order could take", normal_side="C", floorless=True),
    )
}
"""The database has the same rows, and takes no entry of another account."""


def general_account(account: str) -> GeneralAccount:
    """Return the row of the chart that an account belongs to; raises ValueError where there is none.

    >>> general_account("merchant_payable:M1").normal_side
    'C'
    """
    try:
        return CHART[account.partition(":")[0]]
    except KeyError:
        raise ValueError(f"account {account!r} is not in the chart of accounts") from None


def merchant_payable(merchant_no: str) -> str:
    """Return the account of what the platform owes a merchant."""
    return f"{MERCHANT_PAYABLE}:{merchant_no}"


def payer_balance(payer_no: str) -> str:
    """Return the account of what the platform holds for a payer."""
    return f"{PAYER_BALANCE}:{payer_no}"
