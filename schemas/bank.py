"""What platform and bank say to each other over HTTP: the payment link and the bank's notification."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal
from urllib.parse import urlencode

import msgspec
from msgspec import Meta, Struct

from schemas.events import Amount, Currency, Instant, Method, Number, Reason
from schemas.signature import ID, SIGNATURE, TIMESTAMP, signed_at, signed_headers


class BankNotification(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bank's answer to a payment. FAILED moved no money and says why."""

    transaction_no: Number
    payment_no: Number
    amount_fen: Amount
    currency: Currency
    status: Literal["SUCCESS", "FAILED"]
    reason: Reason | None = None
    executed_at: Instant | None = None
    """When the bank executed it, by the bank's clock. An older platform refuses it: upgrade the platform before the bank."""


class PaymentLink(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the platform asks the bank to debit, once the payer follows the link."""

    payment_no: Number
    account_no: Number
    amount_fen: Amount
    currency: Currency
    expires_at: Annotated[int, Meta(gt=0, description="Unix seconds")]


def link_address(url: str, secret: str, link: PaymentLink, *, method: Method = "bank_card") -> str:
    """Return the address at which the payer pays; the same for the same link, so that it can be given again.

    At the bank, or at the platform itself for a balance payment: a link of the one is none for the other.
    """
    body = msgspec.json.encode(link)
    at = datetime.fromtimestamp(link.expires_at, UTC)
    headers = signed_headers(secret, message_id=_message_id(link, method), at=at, body=body)
    query = urlencode({"link": body.decode(), "signature": headers[SIGNATURE]})
    return f"{url.rstrip('/')}/pay?{query}"


def _message_id(link: PaymentLink, method: Method) -> str:
    return link.payment_no if method == "bank_card" else f"{method} {link.payment_no}"


def read_link(secret: str, text: str, signature: str, *, method: Method = "bank_card") -> PaymentLink | None:
    """Return the link that the platform signed; None where it did not."""
    try:
        link = msgspec.json.decode(text.encode(), type=PaymentLink)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    headers = {ID: _message_id(link, method), TIMESTAMP: str(link.expires_at), SIGNATURE: signature}
    return link if signed_at(secret, headers, text.encode()) else None
