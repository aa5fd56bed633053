"""Which addresses pages may be fetched from, however they are written."""

import pytest

from localoss.errors import LocalossError
from localoss.tools import addresses


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("0.0.0.0", False),
        ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False), ("169.254.169.254", False),
        ("100.64.0.1", False), ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False), ("fc00::1", False), ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("::127.0.0.1", False), ("ff02::1", False),
        ("fec0::1", False), ("::ffff:0:127.0.0.1", False), ("64:ff9b:1::7f00:1", False),
        ("64:ff9b::808:808", True), ("2001:db8::1", False), ("198.18.0.1", False), ("240.0.0.1", False),
        ("not an address", False),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert addresses.is_public(address) is public


@pytest.mark.parametrize(
    "url",
    [
        "http://127.1/", "http://2130706433/", "http://0x7f.1/", "http://[::1]/", "http://[::ffff:7f00:1]/",
        "http://localhost./", "http://0/", "http://user:word@example.org/", "gopher://x", "http://", "http://[",
        "http://x:99999/", "http://0177.0.0.1/", "http://0.0.0.0/", "http://[::]/", "http://①②⑦.⓪.⓪.①/",
        "http://127。0。0。1/", "http://8.8.8.8@127.0.0.1/", "HTTP://LOCALHOST/",
    ],
)  # fmt: skip
def test_addresses_that_hide_what_they_are(url):
    with pytest.raises(LocalossError):
        _, host, port = addresses.split(url)
        addresses.resolve(host, port)


def test_a_name_that_resolves_to_both_is_refused(monkeypatch):
    answers = [(2, 1, 6, "", (address, 80)) for address in ("93.184.216.34", "127.0.0.1")]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(addresses.AddressRefused):
        addresses.resolve("rebind.example", 80)
    assert addresses.resolve("rebind.example", 80, ["rebind.example"]) == "93.184.216.34"
