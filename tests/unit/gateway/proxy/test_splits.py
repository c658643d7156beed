"""Messages split at every byte, which must mean the same as in one piece."""

from collections.abc import Iterator

import pytest

from llmux.access import Outcome
from tests.support.gateway import InMemoryRelay


def cuts(message: bytes) -> Iterator[list[bytes]]:
    """The message in two pieces, split at each position, and byte by byte."""
    for position in range(1, len(message)):
        yield [message[:position], message[position:]]
    yield [message[position : position + 1] for position in range(len(message))]


ID = b"X-Request-Id: fixed\r\n"
LENGTH = (
    b"POST /v1/completions?a=b HTTP/1.1\r\nHost: x\r\n%bContent-Type: application/json\r\n"
    b'X-Kept: 1\r\nContent-Length: 19\r\n\r\n{"model":"m","n":1}' % ID
)
CHUNKED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n%bContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
    b'5;a="b"\r\n{"mod\r\nC\r\nel":"m"    }\r\n0\r\nX: y\r\n\r\n' % ID
)
EMPTY = b"GET /v1/responses/1 HTTP/1.1\r\nHost: x\r\n%bmodel-override: m\r\n\r\n" % ID
REQUESTS = {"length": LENGTH, "chunked": CHUNKED, "empty": EMPTY, "blank lines first": b"\r\n\r\n" + LENGTH}


@pytest.mark.parametrize("name", list(REQUESTS))
def test_requests_do_not_depend_on_how_they_are_split(name: str) -> None:
    whole = InMemoryRelay()
    whole.receive(REQUESTS[name])
    assert whole.engine_side.written.startswith((b"POST /v1/completions", b"GET /v1/responses/1"))
    for pieces in cuts(REQUESTS[name]):
        split = InMemoryRelay()
        for piece in pieces:
            assert split.engine_side.written == b""
            split.receive(piece)
        assert split.engine_side.written == whole.engine_side.written, pieces
        assert split.client_side.written == b""


def local(path: bytes, extra: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: x\r\n%b%b\r\n" % (path, ID, extra)


SEQUENCES = {
    "pipelined": local(b"/health") + local(b"/nowhere") + local(b"/v1/models"),
    "body that is not wanted": b"POST /health HTTP/1.1\r\nHost: x\r\n%bContent-Length: 3\r\n\r\nabc" % ID
    + local(b"/ready"),
    "no model": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n%bContent-Type: application/json\r\n"
    b"Content-Length: 2\r\n\r\n{}" % ID + local(b"/ready"),
    "closing": local(b"/health", b"Connection: close\r\n") + local(b"/never"),
}


@pytest.mark.parametrize("name", list(SEQUENCES))
def test_pipelined_local_requests_do_not_depend_on_how_they_are_split(name: str) -> None:
    whole = InMemoryRelay()
    whole.receive(SEQUENCES[name])
    assert b"HTTP/1.1 200 OK" in whole.client_side.written
    for pieces in cuts(SEQUENCES[name]):
        split = InMemoryRelay()
        for piece in pieces:
            split.receive(piece)
        assert split.client_side.written == whole.client_side.written, pieces
        assert split.client_side.closed == whole.client_side.closed


MALFORMED = {
    "chunk size": CHUNKED.replace(b"\r\nC\r\n", b"\r\n+C\r\n"),
    "chunk end": CHUNKED.replace(b'"m"    }', b'"m"     }'),
    "trailer": CHUNKED.replace(b"X: y", b" folded"),
}


@pytest.mark.parametrize("name", list(MALFORMED))
def test_malformed_requests_are_refused_however_they_are_split(name: str) -> None:
    for pieces in cuts(MALFORMED[name]):
        split = InMemoryRelay()
        for piece in pieces:
            split.receive(piece)
        assert split.client_side.written.count(b"HTTP/1.1 400 ") == 1, pieces
        assert split.engine_side.written == b""


HEAD = b"HTTP/1.1 200 OK\r\nServer: u\r\n"
CONTENT_LENGTH = HEAD + b"content-length: 11\r\n\r\nhello world"
STREAM = (
    HEAD + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b"9\r\ndata: 1\n\n\r\n00a;x\r\ndata: 22\n\n\r\n0\r\nT: 1\r\n\r\n"
)
ANSWERS = {
    "length": CONTENT_LENGTH,
    "stream": STREAM,
    "nothing": HEAD + b"content-length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "interim first": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + CONTENT_LENGTH,
    "hop by hop": CONTENT_LENGTH.replace(b"Server: u", b"Keep-Alive: 5\r\nConnection: keep-alive"),
    "server error": CONTENT_LENGTH.replace(b"200 OK", b"500 Oh No"),
}


def answer(pieces: list[bytes], request: bytes = LENGTH) -> InMemoryRelay:
    setup = InMemoryRelay()
    setup.receive(request)
    for piece in pieces:
        setup.engine.data_received(piece)
    return setup


@pytest.mark.parametrize("request_version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("name", list(ANSWERS))
def test_answers_do_not_depend_on_how_they_are_split(name: str, request_version: bytes) -> None:
    request = LENGTH.replace(b"HTTP/1.1", request_version)
    whole = answer([ANSWERS[name]], request)
    assert whole.client_side.written.startswith(b"HTTP/1.1 ")
    assert whole.engine.usable
    for pieces in cuts(ANSWERS[name]):
        split = answer(pieces, request)
        assert split.client_side.written == whole.client_side.written, pieces
        assert split.access.ended == [(1, Outcome.COMPLETED)]
        assert split.engine.usable


@pytest.mark.parametrize("name", ["length", "stream", "nothing", "interim first"])
def test_truncated_answers_never_end_cleanly(name: str) -> None:
    complete = answer([ANSWERS[name]]).client_side.written
    head, separator, _ = complete.partition(b"\r\n\r\n")
    for length in range(1, len(ANSWERS[name])):
        cut = answer([ANSWERS[name][:length]])
        cut.engine.connection_lost(None)
        if cut.access.given_back:
            assert cut.client_side.written in (b"", head + separator)
        else:
            assert cut.access.ended == [(1, Outcome.BROKEN)], length
            assert cut.client_side.closed
            assert not cut.client_side.written.endswith(b"0\r\n\r\n")
            assert cut.client_side.written != complete


@pytest.mark.parametrize(
    "malformed",
    [
        STREAM.replace(b"9\r\n", b"+9\r\n"),
        STREAM.replace(b"9\r\n", b" 9\r\n"),
        STREAM.replace(b"9\r\n", b"8\r\n"),
        STREAM.replace(b"9\r\n", b"a\r\n"),
        STREAM.replace(b"T: 1", b"T 1"),
        CONTENT_LENGTH.replace(b": 11", b": +11"),
        CONTENT_LENGTH.replace(b": 11", b": 11\r\ncontent-length: 11"),
        CONTENT_LENGTH.replace(b": 11", b": 11\r\ntransfer-encoding: chunked"),
        CONTENT_LENGTH.replace(b"Server:", b"Server :"),
        CONTENT_LENGTH.replace(b"HTTP/1.1", b"HTTP/2.1"),
        STREAM.replace(b": chunked", b": gzip"),
    ],
)
def test_malformed_answers_never_end_cleanly(malformed: bytes) -> None:
    for pieces in [[malformed], *cuts(malformed)]:
        split = answer(pieces)
        assert not split.engine.usable, pieces
        assert split.access.given_back or split.access.ended == [(1, Outcome.BROKEN)], pieces
        assert not split.client_side.written.endswith(b"\r\n0\r\n\r\n")
