"""Signatures over raw bodies: the Standard Webhooks scheme, for notifications, merchants' requests and payment links.

Source: Standard Webhooks 1.0.0, "Webhook signature scheme"; signed by its reference library.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from standardwebhooks import Webhook

ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"
TOLERANCE = timedelta(minutes=5)
SIGNATURES_MAX = 8
"""More than a rotation of secrets needs; the rest of a header is not looked at."""


def can_sign(secret: str) -> bool:
    """Return whether a secret is one that can be signed with: whsec_ and base64.

    >>> can_sign("whsec_a2tra2tra2s="), can_sign(""), can_sign("whsec_?")
    (True, False, False)
    """
    try:
        Webhook(secret)
    except (RuntimeError, ValueError):
        return False
    return True


def signed_headers(
    secret: str, *, message_id: str, at: datetime, body: bytes, old_secret: str | None = None
) -> dict[str, str]:
    """Return the three headers that prove a body's origin and time. While secrets rotate both have signed: either verifies."""
    secrets = [secret] if old_secret is None else [secret, old_secret]
    signatures = [Webhook(one).sign(message_id, at, body.decode()) for one in secrets]
    return {ID: message_id, TIMESTAMP: str(int(at.timestamp())), SIGNATURE: " ".join(signatures)}


def signed_at(secret: str, headers: Mapping[str, str], body: bytes) -> datetime | None:
    """Return the instant a body was signed at; None unless id, time and body are what the secret's holder signed.

    Compared in constant time. Whether the instant is near enough is the caller's to judge.
    """
    try:
        at = datetime.fromtimestamp(int(headers.get(TIMESTAMP, "")), UTC)
        expected = Webhook(secret).sign(headers[ID], at, body.decode())
    except (KeyError, ValueError, OverflowError, OSError):
        return None
    given = headers.get(SIGNATURE, "").split(" ")[:SIGNATURES_MAX]
    good = [hmac.compare_digest(one.encode(), expected.encode()) for one in given]
    return at if any(good) else None


def is_fresh(at: datetime, now: datetime) -> bool:
    """Return whether a signature's time is within five minutes of now, either way."""
    return abs(now - at) <= TOLERANCE
