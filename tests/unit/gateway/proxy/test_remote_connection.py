"""What of a request reaches a server that llmux does not run."""

import pytest

from llmux.access import Remote, Upstream
from llmux.gateway.options import GatewayOptions
from llmux.gateway.proxy.pool import EnginePool
from llmux.gateway.proxy.remote_connection import RemoteConnection
from llmux.gateway.proxy.turns import Turns
from llmux.gateway.statistics import GatewayStatistics
from tests.support.gateway import FakeTransport


def sent(path: bytes, fields: bytes = b"", *, api_key: str | None = "theirs") -> list[bytes]:
    remote = Remote(base_path="/api/v1")
    upstream = Upstream("h", 80, api_key, remote=remote)
    pool = EnginePool(upstream, GatewayOptions(), GatewayStatistics(), Turns([].append), 0.0)
    connection, transport = RemoteConnection(pool, remote, api_key), FakeTransport()
    connection.connection_made(transport)
    head = b"POST " + path + b" HTTP/1.1\r\n" + pool.fixed_headers + fields + b"content-length: 2\r\n\r\n"
    connection.send(None, head, b"{}", to_head_request=False, has_waited=False)  # type: ignore[arg-type]
    assert isinstance(transport.written, bytes)
    lines = transport.written.split(b"\r\n")
    assert lines[-3:] == [b"content-length: 2", b"", b"{}"]
    return lines[:-3]


def test_path_name_and_key_are_the_servers() -> None:
    assert sent(b"/v1/chat/completions?a=b") == [
        b"POST /api/v1/chat/completions?a=b HTTP/1.1",
        b"host: h",
        b"authorization: Bearer theirs",
    ]


@pytest.mark.parametrize("path", [b"/v1/messages", b"/v1/messages/count_tokens?beta=true"])
def test_anthropics_paths_have_their_own_header_for_the_key(path: bytes) -> None:
    lines = sent(path, b"anthropic-version: 2023-06-01\r\n")
    assert lines[1:] == [b"host: h", b"x-api-key: theirs", b"anthropic-version: 2023-06-01"]


def test_without_a_key_there_is_no_header_for_one() -> None:
    assert sent(b"/v1/completions", api_key=None)[1:] == [b"host: h"]


def test_what_tells_who_the_client_is_stays_here() -> None:
    fields = b"".join(
        name + b": x\r\n"
        for name in (b"Origin", b"referer", b"X-LLMux-Note", b"x-forwarded-for", b"Forwarded", b"Sec-Fetch-Site")
    )
    assert sent(b"/v1/completions", fields + b"accept: */*\r\n")[3:] == [b"accept: */*"]
