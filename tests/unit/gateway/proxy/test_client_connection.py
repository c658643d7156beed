"""A client's connection, without sockets: how much it works off at once, and that every request is answered."""

import re
from typing import Any

import pytest
from structlog.testing import capture_logs

from llmux.gateway.proxy.client_connection import ClientConnection
from tests.support.gateway import FakeTransport, InMemoryRelay

POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
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
        assert relay.client_side.written.endswith(b"{}") and not relay.soon
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


PLACES = [
    "llmux.gateway.proxy.client_connection.find_model",
    "llmux.gateway.proxy.client_connection.answer_locally",
    "llmux.gateway.http.request_head.RequestHead.parse",
    "llmux.gateway.proxy.client_connection.BodyReader",
    "llmux.gateway.proxy.exchange.Exchange._begin",
    "llmux.gateway.proxy.exchange.Exchange._send",
    "tests.support.access.FakeAccess.knows",
    "acquire",
]


@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_llmux_itself_is_answered_and_logged_once(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = InMemoryRelay()
    if place == "acquire":
        relay.access.on_acquire = fail
    else:
        monkeypatch.setattr(place, fail)
    path = b"/health" if "locally" in place else b"/v1/completions"
    with capture_logs() as logs:
        relay.receive(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n" % path + BODY)
    written = relay.client_side.written
    assert written.startswith(b"HTTP/1.1 500 ") and written.count(b"HTTP/1.1") == 1
    assert b'"code":"internal_error"' in written and b"connection: close\r\n" in written
    assert relay.access.leases == {} and relay.access.problems == []
    assert [type(entry["exc_info"]) for entry in logs] == [Boom]
