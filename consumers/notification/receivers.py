"""Who is notified, at which address and with which secret."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, text

from consumers.notification.notifier.ssrf import ForbiddenAddress, check_url
from outbox.errors import Refused, UnknownName
from schemas.signature import SECRET_FORM, is_secret


def register_receiver(connection: Connection, merchant_no: str, *, url: str, secret: str) -> None:
    """The merchant is notified at this address, signed with this secret alone. May be repeated: the last one holds.

    Transaction: the caller's. Raises Refused for an address or a secret that cannot be a receiver's. Whether it may be a private
    address depends on where it is sent from: the notifier's setting.
    """
    try:
        check_url(url, allow_private=True)
    except ForbiddenAddress as error:
        raise Refused(f"{url[:200]!r} cannot be a receiver's address: {error}") from error
    if not is_secret(secret):
        raise Refused(f"the secret of receiver {merchant_no!r} must be {SECRET_FORM}")
    connection.execute(_REGISTER, {"merchant_no": merchant_no, "url": url, "secret": secret})


_REGISTER = text("""
    INSERT INTO receiver (merchant_no, url, secret) VALUES (:merchant_no, :url, :secret)
    ON CONFLICT (merchant_no) DO UPDATE
    SET url = EXCLUDED.url, secret = EXCLUDED.secret, old_secret = NULL, old_secret_until = NULL""")


def rotate_secret(connection: Connection, merchant_no: str, *, secret: str, old_until: datetime) -> None:
    """Notifications are signed with the new secret, and with the one before it too until then: either verifies.

    Transaction: the caller's. Repeatable: the same secret again only moves the end. Raises Refused.
    """
    if not is_secret(secret):
        raise Refused(f"the secret is not accepted: it must be {SECRET_FORM}")
    parameters = {"merchant_no": merchant_no, "secret": secret, "until": old_until}
    if not connection.execute(_ROTATE, parameters).rowcount:
        raise UnknownName(f"merchant {merchant_no!r} has no receiver: register its address first")


_ROTATE = text("""
    UPDATE receiver
    SET old_secret = CASE WHEN secret = :secret THEN old_secret ELSE secret END, secret = :secret,
        old_secret_until = CASE WHEN secret <> :secret OR old_secret IS NOT NULL THEN CAST(:until AS timestamptz) END
    WHERE merchant_no = :merchant_no""")
