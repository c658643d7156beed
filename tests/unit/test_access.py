"""How a remote server's paths and name follow from its URL."""

import ssl

import pytest

from llmux.access import Remote, Upstream


@pytest.mark.parametrize(
    ("base", "path", "joined"),
    [
        ("", "/v1/x", "/v1/x"),
        ("/v1", "/v1/x?a=b", "/v1/x?a=b"),
        ("/v1", "/v1?a=b", "/v1?a=b"),
        ("/v1", "/tokenize", "/tokenize"),
        ("/v1", "/v2/rerank", "/v2/rerank"),
        ("/openai/v1", "/v1/x", "/openai/v1/x"),
        ("/llm", "/v1/x", "/llm/v1/x"),
        ("/v1beta/openai", "/v1/x", "/v1beta/openai/x"),
        ("/api/v3", "/v1/x", "/api/v3/x"),
        ("/v1", "/v1x", "/v1x"),
    ],
)
def test_a_base_path_with_a_version_takes_the_place_of_v1(base: str, path: str, joined: str) -> None:
    assert Remote(base_path=base).join(path) == joined
    if path.startswith("/v1/"):
        assert Remote(base_path=base).split(joined) == path


def test_only_a_remote_server_has_no_default_port_in_its_name() -> None:
    tls = Remote(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "/v1")
    assert Upstream("127.0.0.1", 80).authority == "127.0.0.1:80"
    assert Upstream("h", 80, remote=Remote()).authority == "h"
    assert Upstream("h", 443, remote=tls).authority == "h"
    assert Upstream("::1", 443, remote=tls).authority == "[::1]"
    assert Upstream("h", 8443, remote=tls).url_of("/v1/models") == "https://h:8443/v1/models"
