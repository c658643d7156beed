"""A client's connection, without sockets: how much it works off at once, and that every request is answered."""

import re
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from llmux.gateway.options import GatewayOptions
from llmux.gateway.proxy.client_connection import ClientConnection
from tests.support.gateway import FakeTransport, InMemoryRelay
from tests.support.skips import replaces_compiled_code

POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
UNKNOWN_MODEL = POST + b'Content-Length: 16\r\n\r\n{"model":"nope"}'
BODY = b'{"model":"m"}'


def health(number: int) -> bytes:
    return b"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\n\r\n" % number


def numbers(written: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"x-request-id: (\d+)\r\n", written)]


def chunked(body: bytes, size: int, end: bytes = b"0\r\n\r\n") -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + end


@pytest.mark.parametrize("reads", [1, 32])
def test_few_pipelined_requests_are_answered_at_once_and_all_of_them_in_order(reads: int) -> None:
    relay = InMemoryRelay()
    flood = b"".join(map(health, range(10_000)))
    size = len(flood) // reads + 1
    for at in range(0, len(flood), size):
        # libuv goes on reading in the same iteration unless reading is paused.
        relay.client.data_received(flood[at : at + size])
        assert relay.soon and not relay.client_side.reads
    answered = numbers(relay.client_side.written)
    assert len(answered) <= 20
    while relay.soon:
        relay.client_side.written = b""
        relay.next_iteration()
        answers = numbers(relay.client_side.written)
        assert len(answers) <= 20
        answered += answers
    assert answered == list(range(10_000))
    assert relay.client_side.reads


@pytest.mark.parametrize(
    "flood",
    [
        HEALTH * 1000,
        (b"\r\n" + HEALTH) * 1000,
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" * 1000,
        UNKNOWN_MODEL * 1000,
        chunked(b" " * 4000, 2),
        b"\r\n" * 100_000,
    ],
    ids=["answers", "blank lines between", "errors", "unknown models", "chunks", "blank lines"],
)
def test_another_client_is_answered_before_a_flood_has_been_worked_off(flood: bytes) -> None:
    relay = InMemoryRelay()
    other_side = FakeTransport()
    other = ClientConnection(relay.client._state)
    other.connection_made(other_side)
    for at in range(0, len(flood), 16_384):
        relay.client.data_received(flood[at : at + 16_384])
    assert relay.soon and not relay.client_side.reads
    other.data_received(HEALTH)
    assert other_side.written.startswith(b"HTTP/1.1 200 OK")
    assert relay.soon
    while relay.soon:
        relay.next_iteration()
    assert relay.client_side.reads


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100])
def test_few_chunks_are_read_at_once(size: int) -> None:
    relay = InMemoryRelay()
    body = BODY + b" " * 16_000
    relay.client.data_received(chunked(body, size))
    reader = relay.client._body
    if len(body) // size > 500:
        assert reader is not None and reader.size_bytes <= 500 * size
    while relay.soon:
        relay.next_iteration()
    assert relay.engine_side.written.endswith(b"\r\n\r\n" + body)


def test_requests_that_an_engine_answers_are_not_put_off() -> None:
    relay = InMemoryRelay()
    for _ in range(100):
        relay.client.data_received(POST + b"X-Request-Id: a\r\nContent-Length: 13\r\n\r\n" + BODY)
        relay.engine.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        assert relay.client_side.written.endswith(b"{}")
        relay.next_iteration()
        relay.client_side.written = b""


def test_pipelined_requests_for_an_engine_are_sent_one_after_the_other() -> None:
    relay = InMemoryRelay()
    requests = [POST + b"X-Request-Id: %d\r\nContent-Length: 13\r\n\r\n" % number + BODY for number in range(1000)]
    relay.receive(b"".join(requests))
    for number in range(1000):
        while relay.soon:
            relay.next_iteration()
        assert relay.engine_side.written.count(b"x-request-id: %d\r\n" % number) == 1
        relay.engine_side.written = b""
        relay.engine.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    assert numbers(relay.client_side.written) == list(range(1000))


def test_a_body_that_is_mostly_framing_is_refused() -> None:
    relay = InMemoryRelay()
    relay.receive(chunked(b"x" * 30_000, 1))
    assert relay.client_side.written.startswith(b"HTTP/1.1 400 ")
    assert b"mostly framing" in relay.client_side.written


def test_a_small_body_may_be_mostly_framing() -> None:
    relay = InMemoryRelay()
    relay.receive(chunked(BODY + b" " * 10_000, 1))
    assert relay.engine_side.written.endswith(BODY + b" " * 10_000)


def test_headers_are_limited_in_number() -> None:
    relay = InMemoryRelay()
    relay.receive(b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 255 + b"\r\n")
    assert relay.client_side.written.startswith(b"HTTP/1.1 200 ")
    relay.client_side.written = b""
    relay.receive(b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 256 + b"\r\n")
    assert relay.client_side.written.startswith(b"HTTP/1.1 431 ")
    assert b"more than 256 headers" in relay.client_side.written


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"Content-Length: " + b"0" * 4299 + b"13\r\n\r\n" + BODY,
        POST + b"Content-Length: " + b"0" * 20 + b"13\r\n\r\n" + BODY,
    ],
)
def test_lengths_of_many_digits_are_refused(request_bytes: bytes) -> None:
    relay = InMemoryRelay()
    relay.receive(request_bytes)
    assert relay.client_side.written.startswith(b"HTTP/1.1 400 ")


class Boom(Exception):
    pass


def fail(*_arguments: Any, **_options: Any) -> Any:
    raise Boom


REPLACED = [
    "llmux.gateway.proxy.client_connection.find_in_json",
    "llmux.gateway.proxy.own_answers.answer_locally",
    "llmux.gateway.http.request_head.RequestHead.parse",
    "llmux.gateway.proxy.receiving.BodyReader",
    "llmux.gateway.proxy.pool.EnginePools.of",
    "llmux.gateway.proxy.exchange.Exchange._send",
    "llmux.gateway.proxy.client_connection.find_route",
]
PLACES = [*(pytest.param(place, marks=replaces_compiled_code) for place in REPLACED), "acquire"]


@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_llmux_itself_is_answered_and_logged_once(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = InMemoryRelay()
    if place == "acquire":
        relay.access.on_acquire = fail
    else:
        monkeypatch.setattr(place, fail)
    path = b"/health" if "locally" in place else b"/v1/completions"
    with capture_logs() as logs:
        relay.receive((POST + b"Content-Length: 13\r\n\r\n").replace(b"/v1/completions", path) + BODY)
    written = relay.client_side.written
    assert written.startswith(b"HTTP/1.1 500 ") and written.count(b"HTTP/1.1") == 1
    assert b'"code":"internal_error"' in written and b"connection: close\r\n" in written
    assert relay.access.leases == {} and relay.access.problems == []
    assert [type(entry["exc_info"]) for entry in logs] == [Boom]


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (bytes.fromhex("16030102000100"), b"use http:// instead of https://"),
        (bytes.fromhex("16030102000100") + b"\r\n\r\n", b"use http:// instead of https://"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", b"speaks plain HTTP/1.1"),
        (b"GET /health\r\n", b"speaks plain HTTP/1.1"),
        (b"GET /health HTTP/1.1\nHost: x\n\n", b"bare LF"),
        (b"GET /health HTTP/1.1\r\nHost: x\n", b"bare LF"),
        (b"get /health HTTP/1.1\r\n", b"speaks plain HTTP/1.1"),
        (b"\x05\x01\x00", b"speaks plain HTTP/1.1"),
        (b"*1\r\n$4\r\nPING\r\n", b"speaks plain HTTP/1.1"),
        (b"GET /health HTTP/2.0\r\n", b"speaks plain HTTP/1.1"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", b"speaks plain HTTP/1.1"),
        (b"A" * 40, b"speaks plain HTTP/1.1"),
        (b"\n", b"speaks plain HTTP/1.1"),
    ],
)
def test_what_cannot_become_a_request_is_refused_at_once(raw: bytes, hint: bytes) -> None:
    for pieces in ([raw], [raw[at : at + 1] for at in range(len(raw))]):
        relay = InMemoryRelay()
        for piece in pieces:
            relay.receive(piece)
        written = relay.client_side.written
        assert written.startswith(b"HTTP/1.1 400 ") and written.count(b"HTTP/1.1 400 ") == 1
        assert hint in written


@pytest.mark.parametrize(
    "begun",
    [b"", b"\r", b"\r\n", b"\r\n\r\n", b"G", b"GET", b"GET ", b"GET /a", b"GET /a HTTP/1.1\r", b"M-SEARCH * HT"],
)
def test_what_may_become_a_request_is_waited_for(begun: bytes) -> None:
    relay = InMemoryRelay()
    relay.receive(begun)
    assert relay.client_side.written == b""


def status(raw: bytes) -> int:
    relay = InMemoryRelay()
    relay.receive(raw)
    return int(relay.client_side.written[9:12])


BAD_HOSTS = [
    b"a b", b"a/b", b"a, b", b"http://a", b"[::1", b"<script>", b"a{}^", b"a\tb", b"", b" ", b"a@b", b"a?b", b"a#b",
    b"a:b", b"[::1]x", b"[zz]", b"[:::]", b"::1", b"a\\b", b"a%zz", b"\xe9", b"[fe80::1]:x", b"a:80:80",
]  # fmt: skip
GOOD_HOSTS = [
    b"a", b"a.b:80", b"a:", b"127.0.0.1:3000", b"[::1]", b"[::1]:3000", b"a_b", b"a%20b", b"  a  ",
    b"xn--d1acufc.xn--p1ai",
]  # fmt: skip


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_a_host_that_is_none_is_refused(host: bytes) -> None:
    assert status(b"GET /health HTTP/1.1\r\nHost: %b\r\n\r\n" % host) == 400
    assert status(b"GET /health HTTP/1.0\r\nHost: %b\r\n\r\n" % host) == 400
    assert status(b"GET http://%b/health HTTP/1.1\r\nHost: a\r\n\r\n" % host) in (400, 404)


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_hosts(host: bytes) -> None:
    assert status(b"GET /health HTTP/1.1\r\nHost: %b\r\n\r\n" % host) == 200


def test_hosts_are_counted() -> None:
    assert status(b"GET /health HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n") == 400
    assert status(b"GET /health HTTP/1.0\r\n\r\n") == 200
    assert status(b"GET http://user@a/health HTTP/1.1\r\nHost: a\r\n\r\n") == 400
    assert status(b"GET http:///health HTTP/1.1\r\nHost: a\r\n\r\n") == 400
    assert status(b"GET http://a:80/health HTTP/1.1\r\nHost: a\r\n\r\n") == 200


@pytest.mark.parametrize("first", [b"identity", b"gzip", b"x", b"", b"chunked"])
@pytest.mark.parametrize("second", [b"identity", b"chunked"])
def test_a_second_transfer_encoding_is_refused(first: bytes, second: bytes) -> None:
    fields = b"Transfer-Encoding: %b\r\nTransfer-Encoding: %b\r\n\r\n" % (first, second)
    assert status(POST + fields + b"d\r\n" + BODY + b"\r\n0\r\n\r\n") == 400


@pytest.mark.parametrize(
    "trailer",
    [
        b": a", b"X : a", b"GET / HTTP/1.1 : x", b"CONNECT a:1 HTTP/1.1", b"\xe9: a", b"X: \x00", b"X: \x7f",
        b"X: a\x1fb",
        b"X", b" X: a", b"X\t: a", b"a(b: c",
        b"Transfer-Encoding: chunked", b"content-length: 1",
    ],
)  # fmt: skip
def test_trailers_must_be_fields(trailer: bytes) -> None:
    assert status(chunked(BODY, 5, b"0\r\n%b\r\n\r\n" % trailer)) == 400


def test_good_trailers_are_dropped() -> None:
    relay = InMemoryRelay()
    relay.receive(chunked(BODY, 5, b"0\r\nX: a\tb \xe9\r\nY:\r\n\r\n"))
    assert relay.engine_side.written.endswith(b"\r\n\r\n" + BODY)
    assert b"X:" not in relay.engine_side.written


@pytest.mark.parametrize("extension", [b"a\x7f", b"a\x00", b'a="\x01"'])
def test_control_characters_in_chunk_extensions_are_refused(extension: bytes) -> None:
    raw = POST + b"Transfer-Encoding: chunked\r\n\r\nd;%b\r\n%b\r\n0\r\n\r\n" % (extension, BODY)
    assert status(raw) == 400


@pytest.mark.parametrize(
    "field", [b"Proxy-Connection: close", b"proxy-connection: Keep-Alive", b"PROXY-CONNECTION: upgrade"]
)
def test_proxy_connection_says_nothing_about_this_connection(field: bytes) -> None:
    relay = InMemoryRelay()
    for _ in range(3):
        relay.receive(b"GET /health HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % field)
    assert relay.client_side.written.count(b"HTTP/1.1 200 OK") == 3
    assert not relay.client_side.closed


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"zstd", b"br", b"identity, gzip", b"x"])
@pytest.mark.parametrize("where", ["body", "header", "path"])
def test_compressed_bodies_are_refused_before_anything_else_happens(encoding: bytes, where: str) -> None:
    relay = InMemoryRelay()
    relay.access.asleep.append("cold")
    path = b"/upstream/cold/v1/completions" if where == "path" else b"/v1/completions"
    override = b"model-override: cold\r\n" if where == "header" else b""
    relay.receive(
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Encoding: %b\r\n%bContent-Length: 100\r\n\r\n"
        % (path, encoding, override)
    )
    written = relay.client_side.written
    assert written.startswith(b"HTTP/1.1 415 ")
    assert b'"code":"unsupported_encoding"' in written and b"\r\naccept-encoding: identity\r\n" in written
    assert encoding in written
    assert relay.access.asked == []


def test_a_body_that_is_not_encoded_may_say_so() -> None:
    relay = InMemoryRelay()
    relay.receive(POST + b"Content-Encoding: identity\r\nContent-Length: 13\r\n\r\n" + BODY)
    assert relay.engine_side.written.endswith(BODY)


def limited(**limits: Any) -> InMemoryRelay:
    return InMemoryRelay(options=GatewayOptions(**limits))


def test_bodies_under_way_are_bounded_together() -> None:
    relay = limited(max_receiving_bytes=10_000)
    state = relay.client._state
    sides = [FakeTransport() for _ in range(4)]
    connections = [ClientConnection(state) for _ in sides]
    for connection, side in zip(connections, sides, strict=True):
        connection.connection_made(side)
        connection.data_received(POST + b"Content-Length: 50000000\r\n\r\n" + b"x" * 3000)
    assert [side.written[:13] for side in sides] == [b"", b"", b"", b"HTTP/1.1 429 "]
    assert b"max_receiving_bytes" in sides[3].written and b"\r\nretry-after: " in sides[3].written
    assert state.receiving_bytes == 9000
    connections[0].connection_lost(None)
    assert state.receiving_bytes == 6000
    relay.receive(chunked(BODY + b" " * 3000, 1000))
    assert relay.engine_side.written.endswith(b" ")
    connections[1].data_received(b"x" * 3000)
    assert state.receiving_bytes == 9000
    for connection in connections:
        connection.abort()
        connection.connection_lost(None)
    assert state.receiving_bytes == 0


def test_a_body_that_trickles_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    relay = limited(body_idle_timeout_seconds=30.0, min_body_bytes_per_second=1000.0)
    relay.receive(POST + b"Content-Length: 50000000\r\n\r\n" + b"x" * 5000)
    for _ in range(3):
        now += 10.0
        relay.receive(b"x")
    assert relay.client.deadline == pytest.approx(1000.0 + 30.0 + 5.003)
    relay.receive(b"x" * 100_000)
    assert relay.client.deadline == now + 30.0
    relay.client.time_out()
    assert relay.client_side.written.startswith(b"HTTP/1.1 408 ")
    assert b"less than 1000 bytes/s" in relay.client_side.written


def test_connections_far_beyond_the_limit_are_closed_without_an_answer() -> None:
    relay = limited(max_connections=1)
    state = relay.client._state
    sides = [FakeTransport() for _ in range(66)]
    for side in sides:
        ClientConnection(state).connection_made(side)
    assert all(side.written.startswith(b"HTTP/1.1 429 ") for side in sides[:64])
    assert [(side.written, side.aborted) for side in sides[64:]] == [(b"", True)] * 2
    assert state.statistics.connections_refused == 66
    assert len(state.connections) == 65


def test_many_connections_that_send_at_once_do_not_add_up() -> None:
    relay = InMemoryRelay()
    state = relay.client._state
    clients = [ClientConnection(state) for _ in range(100)]
    sides = [FakeTransport() for _ in clients]
    for client, side in zip(clients, sides, strict=True):
        client.connection_made(side)
        client.data_received(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 400)
    assert sum(client._body.size_bytes for client in clients if client._body is not None) < 6_000
    assert sum(not side.reads for side in sides) > 80
    while relay.soon:
        relay.next_iteration()
    assert {client._body.size_bytes for client in clients if client._body is not None} == {400}
    assert all(side.reads for side in sides)
    assert state.receiving_bytes == 40_000
    for client in clients:
        client.connection_lost(None)
    assert state.receiving_bytes == 0
