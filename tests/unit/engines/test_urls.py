"""Which URLs are read, what is said of the others, and that no secret in one is repeated."""

import pytest

from llmux.engines.urls import ServerUrl, WrongUrl, parse_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://api.example.org/v1/", ServerUrl(True, "api.example.org", 443, "/v1")),
        ("http://[::1]:8080", ServerUrl(False, "::1", 8080)),
        ("HTTP://Gpu-Box:81/a%20b", ServerUrl(False, "gpu-box", 81, "/a%20b")),
    ],
)
def test_urls_are_taken_apart(text: str, expected: ServerUrl) -> None:
    assert parse_url(text) == expected
    assert parse_url(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("api.example.org", "must begin with http", "write it as http://127.0.0.1:8080"),
        ("https:///v1", "names no host", "write it as"),
        ("https://:443", "names no host", "write it as"),
        ("http://h:0", "port 0", "write it as"),
        ("http://h:99999", "is not a URL", "write it as"),
        ("http://1.2.3", "neither an address", "write it as"),
        ("https://user:swordfish@h/v1", "a user or a password", "api_key"),
        ("https://h/v1?api_key=swordfish", "contains a key", "api_key"),
        ("https://h/v1?a=b", "a query", "end it with its path"),
        ("https://h/a/../b", "a path that requests cannot have", "write it as"),
        ("https://h/a b", "no URL has", "%20"),
        ("https://h/v1/chat/completions", "one endpoint", "write https://h/v1"),
    ],
)
def test_wrong_urls_are_refused_with_a_remedy(text: str, message: str, remedy: str) -> None:
    with pytest.raises(WrongUrl, match=message) as wrong:
        parse_url(text)
    assert remedy in wrong.value.remedy
    assert "swordfish" not in f"{wrong.value} {wrong.value.remedy}"


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.5", True), ("::1", True), ("localhost", True), ("h", False)])
def test_loopback_is_known(host: str, expected: bool) -> None:
    assert ServerUrl(False, host, 80).is_loopback is expected
