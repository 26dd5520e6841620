"""The bank's pages for a payer whose browser follows the platform's link: one to confirm, one with the result."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from schemas.bank import BankNotification, PaymentLink
from schemas.money import format_yuan

HEADERS = {
    "content-security-policy": "default-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",  # the address is the permission to pay
    "cache-control": "no-store",
}
"""Nothing on the page runs or comes from elsewhere, and no other page shows it in a frame."""


def wants_page(headers: Mapping[str, str]) -> bool:
    """Return whether a browser asks, rather than a program.

    >>> wants_page({"accept": "text/html,application/xml;q=0.9,*/*;q=0.8"}), wants_page({"accept": "*/*"}), wants_page({})
    (True, False, False)
    """
    return "text/html" in headers.get("accept", "")


def confirm_page(link: PaymentLink, *, now_s: float) -> str:
    """Return the page on which the payer pays: its button sends the address that the page has."""
    if link.expires_at <= now_s:
        return refused_page("This payment link has expired: open the payment again.")
    return _page("Confirm your payment", f'{_facts(link)}<form method="post"><button>Pay</button></form>')


def result_page(result: BankNotification) -> str:
    """Return the page of a transaction."""
    if result.status == "SUCCESS":
        return _page("Paid", _facts(result))
    return _page("Not paid", f"{_facts(result)}<p>No money was moved: {escape(result.reason or '')}.</p>")


def refused_page(message: str) -> str:
    """Return the page of a link that nobody can pay by."""
    return _page("Not possible", f"<p>{escape(message)}</p>")


def _facts(payment: PaymentLink | BankNotification) -> str:
    amount = f"{format_yuan(payment.amount_fen)} {payment.currency}"
    return f"<p>{escape(amount)} for payment {escape(payment.payment_no)}</p>"


def _page(title: str, content: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title></head><body><main><h1>{title}</h1>{content}</main></body></html>\n"
    )
