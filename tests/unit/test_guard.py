"""Where a notification must never go."""

import pytest

from consumers.notification.notifier.ssrf import ForbiddenAddress, check_url, is_public


@pytest.mark.parametrize("address", [
    "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255",
    "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1",
    "2002:7f00:1::", "2001:db8::1", "::ffff:a9fe:a9fe",
])  # fmt: skip
def test_not_public(address: str) -> None:
    assert not is_public(address)


def test_public() -> None:
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1::1")


@pytest.mark.parametrize("url", [
    "http://example.com/", "https://127.0.0.1/", "https://user@example.com/", "https://[::1]/", "file:///etc/passwd", "https:///x",
])  # fmt: skip
def test_refused_without_a_look_up(url: str) -> None:
    with pytest.raises((ForbiddenAddress, ValueError)):
        check_url(url, allow_private=False)
