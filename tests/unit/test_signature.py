"""Signatures: ours verify with the reference library, the reference library's with ours; nothing else does."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from schemas.bank import PaymentLink, link_address, read_link
from schemas.signature import is_fresh, signed_at, signed_headers

SECRET = "whsec_" + b64encode(b"k" * 32).decode()
OTHER = "whsec_" + b64encode(b"o" * 32).decode()
NOW = datetime.now(UTC).replace(microsecond=0)


def test_the_reference_library_verifies_ours() -> None:
    now = datetime.now(UTC).replace(microsecond=0)  # the library refuses what was signed minutes ago
    headers = signed_headers(SECRET, message_id="m1", at=now, body=b'{"a":1}')
    assert Webhook(SECRET).verify(b'{"a":1}', headers) == {"a": 1}
    assert signed_at(SECRET, headers, b'{"a":1}') == now


def test_while_secrets_rotate_the_reference_library_verifies_with_either_and_afterwards_with_the_new_one_alone() -> (
    None
):
    body = '{"note": "\u9a8c\u7b7e"}'.encode()
    now = datetime.now(UTC).replace(microsecond=0)
    both = signed_headers(SECRET, message_id="m1", at=now, body=body, old_secret=OTHER)
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify(body, both) == {"note": "\u9a8c\u7b7e"}
        assert signed_at(secret, both, body) == now
    after = signed_headers(SECRET, message_id="m1", at=now, body=body)
    assert Webhook(SECRET).verify(body, after)
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(body, after)


@given(st.binary(min_size=24, max_size=64), st.text(min_size=1, max_size=40), st.text(max_size=200))
def test_we_sign_as_the_reference_library_does(key: bytes, message_id: str, body: str) -> None:
    secret = "whsec_" + b64encode(key).decode()
    try:
        expected = Webhook(secret).sign(message_id, NOW, body)
    except UnicodeEncodeError:
        return
    assert signed_headers(secret, message_id=message_id, at=NOW, body=body.encode())["webhook-signature"] == expected


@pytest.mark.parametrize("change", [
    {"webhook-id": "m2"}, {"webhook-timestamp": "1"}, {"webhook-signature": "v1,AAAA"}, {"webhook-signature": ""},
    {"webhook-timestamp": "x"}, {"webhook-timestamp": "9" * 30}, {"webhook-signature": "v1,ü"},
])  # fmt: skip
def test_what_was_changed_does_not_verify(change: dict[str, str]) -> None:
    headers = signed_headers(SECRET, message_id="m1", at=NOW, body=b"{}") | change
    assert signed_at(SECRET, headers, b"{}") is None


def test_another_secret_or_body_does_not_verify_and_one_of_several_signatures_is_enough() -> None:
    headers = signed_headers(SECRET, message_id="m1", at=NOW, body=b"{}")
    assert signed_at(OTHER, headers, b"{}") is None
    assert signed_at(SECRET, headers, b"{ }") is None
    rotated = headers | {"webhook-signature": "v1,AAAA " + headers["webhook-signature"]}
    assert signed_at(SECRET, rotated, b"{}") == NOW


@given(
    st.binary(max_size=100),
    st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text(max_size=40)),
)
def test_no_bytes_raise(body: bytes, headers: dict[str, str]) -> None:
    assert signed_at(SECRET, headers, body) is None


def test_five_minutes_either_way() -> None:
    assert is_fresh(NOW - timedelta(minutes=5), NOW)
    assert not is_fresh(NOW + timedelta(minutes=5, seconds=1), NOW)


def test_a_payment_link_is_the_platforms_or_nothing() -> None:
    from urllib.parse import parse_qs, urlparse

    link = PaymentLink(payment_no="P1", account_no="A1", amount_fen=100, currency="CNY", expires_at=2_000_000_000)
    address = link_address("http://bank", SECRET, link)
    assert address == link_address("http://bank", SECRET, link)
    query = {name: values[0] for name, values in parse_qs(urlparse(address).query).items()}
    assert read_link(SECRET, query["link"], query["signature"]) == link
    assert read_link(SECRET, query["link"].replace("100", "1"), query["signature"]) is None
    assert read_link(OTHER, query["link"], query["signature"]) is None
    assert read_link(SECRET, "\ud800", "") is None
