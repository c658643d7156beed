"""What is read as the name or the address of a host, strictly and as browsers do."""

import pytest

from llmux import host_names


@pytest.mark.parametrize(
    ("host", "is_valid"),
    [
        (b"localhost", True),
        (b"a.example.org:8000", True),
        (b"[::1]:8000", True),
        (b"[::1%lo]", False),
        (b"[127.0.0.1]", False),
        (b"[1:2]", False),
        (b"", False),
        (b"a b", False),
        (b"a@b", False),
        (b"a" * 513, False),
    ],
)
def test_the_value_of_a_host_header(host: bytes, is_valid: bool) -> None:
    assert host_names.is_valid_host(host) is is_valid


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("example.org", True),
        ("example.org.", True),
        ("my_host-1", True),
        ("müller.example", True),
        ("-x", False),
        ("a..b", False),
        ("a:1", False),
        ("", False),
        ("a" * 64, False),
        (".".join(["abcdefghi"] * 26), False),
    ],
)
def test_names(text: str, is_name: bool) -> None:
    assert host_names.is_name(text) is is_name


@pytest.mark.parametrize(
    ("host", "is_address", "is_loopback"),
    [
        ("127.0.0.1", True, True),
        ("127.9.9.9", True, True),
        ("::1", True, True),
        ("::ffff:127.0.0.1", True, True),
        ("fe80::1%eth0", True, False),
        ("10.0.0.1", True, False),
        ("localhost", False, False),
        ("127.1", False, False),
        ("127.0.0.1%lo", False, False),
        ("", False, False),
    ],
)
def test_addresses(host: str, is_address: bool, is_loopback: bool) -> None:
    assert (host_names.is_address(host), host_names.is_loopback(host)) == (is_address, is_loopback)


@pytest.mark.parametrize(
    ("url", "host", "alone"),
    [
        ("http://A.example:80", ("a.example", 80), True),
        ("//[::1]:8000", ("::1", 8000), True),
        ("//a", ("a", None), True),
        ("http://a/path", ("a", None), False),
        ("http://user@a", ("a", None), False),
        ("http://a?x", ("a", None), False),
        ("http://a:x", None, False),
        ("http://[::1", None, False),
        ("a", None, False),
        ("http://", None, False),
    ],
)
def test_the_host_of_a_url(url: str, host: tuple[str, int | None] | None, alone: bool) -> None:
    assert host_names.host_of(url) == host
    assert host_names.split_host(url) == (host if alone else None)


@pytest.mark.parametrize(
    ("authority", "host", "port", "address"),
    [
        (b"127.1:8000", "127.1", "8000", "127.0.0.1"),
        (b"u:p@0x7f000001:08000", "0x7f000001", "8000", "127.0.0.1"),
        (b"%31%32%37.0.0.1", "127.0.0.1", "", "127.0.0.1"),
        ("\uff4cocalhost\u3002:1".encode(), "localhost", "1", None),
        (b"[::FFFF:127.0.0.1]:1", "[::ffff:127.0.0.1]", "1", "127.0.0.1"),
        (b"[::1%25lo]", "[::1%lo]", "", "::1"),
        (b"[127.0.0.1]", "[127.0.0.1]", "", None),
        (b"example.org.", "example.org", "", None),
    ],
)
def test_what_browsers_take_for_the_same(authority: bytes, host: str, port: str, address: str | None) -> None:
    assert host_names.split_leniently(authority) == (host, port)
    parsed = host_names.parse_ip_leniently(host)
    assert (None if parsed is None else str(parsed)) == address
