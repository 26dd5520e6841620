"""Signatures over raw bodies: the Standard Webhooks scheme, for notifications, merchants' requests and payment links.

Source: Standard Webhooks 1.0.0, "Webhook signature scheme". Its reference library verifies ours in a test.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from schemas.numeric import parse_whole

ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"
TOLERANCE = timedelta(minutes=5)
SECONDS_MAX = 253_402_300_799
"""The last second of the year 9999, in Unix time."""
SIGNATURES_MAX = 8
"""More than a rotation of secrets needs; the rest of a header is not looked at."""


SECRET_FORM = "whsec_ and 24 to 64 bytes in base64"  # noqa: S105 - what a secret looks like, and none
"""What `is_secret` asks for, in words."""


def can_sign(secret: str) -> bool:
    """Return whether a secret is one that can be signed with: whsec_ and base64.

    >>> can_sign("whsec_a2tra2tra2s="), can_sign(""), can_sign("whsec_?")
    (True, False, False)
    """
    try:
        return bool(_key(secret))
    except ValueError:
        return False


def is_secret(secret: str) -> bool:
    """Return whether a secret may be somebody's, as Standard Webhooks has it: whsec_, and 24 to 64 bytes in base64.

    >>> is_secret("whsec_" + "a2tr" * 8), is_secret("whsec_a2tr"), is_secret("a2tr" * 8), is_secret("hello")
    (True, False, False, False)
    """
    return secret.startswith("whsec_") and can_sign(secret) and 24 <= len(_key(secret)) <= 64


def signed_headers(
    secret: str, *, message_id: str, at: datetime, body: bytes, old_secret: str | None = None
) -> dict[str, str]:
    """Return the three headers that prove a body's origin and time. While secrets rotate both have signed: either verifies."""
    secrets = [secret] if old_secret is None else [secret, old_secret]
    signatures = [_signature(secret, message_id, int(at.timestamp()), body) for secret in secrets]
    return {ID: message_id, TIMESTAMP: str(int(at.timestamp())), SIGNATURE: " ".join(signatures)}


def signed_at(secret: str, headers: Mapping[str, str], body: bytes) -> datetime | None:
    """Return the instant a body was signed at; None unless id, time and body are what the secret's holder signed.

    Compared in constant time. Whether the instant is near enough is the caller's to judge.
    """
    try:
        at_s = parse_whole(headers[TIMESTAMP], high=SECONDS_MAX)
        at = datetime.fromtimestamp(at_s, UTC)
        expected = _signature(secret, headers[ID], at_s, body)
    except (KeyError, ValueError):
        return None
    given = headers.get(SIGNATURE, "").split(" ")[:SIGNATURES_MAX]
    good = [hmac.compare_digest(signature.encode(), expected.encode()) for signature in given]
    return at if any(good) else None


def is_fresh(at: datetime, now: datetime) -> bool:
    """Return whether a signature's time is within five minutes of now, either way."""
    return abs(now - at) <= TOLERANCE


def _signature(secret: str, message_id: str, at_s: int, body: bytes) -> str:
    digest = hmac.digest(_key(secret), f"{message_id}.{at_s}.".encode() + body, "sha256")
    return f"v1,{b64encode(digest).decode()}"


@lru_cache(maxsize=4_096)
def _key(secret: str) -> bytes:
    try:
        return b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise ValueError("no base64") from error
