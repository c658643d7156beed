"""The address of a running llmux is refused before it is used, if nothing can ever answer there."""

import pytest

from llmux.cli.urls import check_url


@pytest.mark.parametrize("url", ["http://127.0.0.1:3000", "https://host", "http://[::1]:3000/", "http://a-b.example:1"])
def test_usable_addresses(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:3000",
        "http://",
        "http://${HOST}:3000",
        "http://$HOST",
        "http://h:${PORT}",
        "http://h:port",
        "http://h:0",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="is not of the form http://HOST:PORT"):
        check_url(url)
