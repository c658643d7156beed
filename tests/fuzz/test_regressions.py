"""Inputs that once raised, stalled or meant different things to different programs, and the fuzzer's own seeds."""

import pytest

from tests.fuzz.loop import DeterministicLoop
from tests.fuzz.relay import Fault, Relay, statuses_of
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import BOUNDARY, TARGETS, split_requests

_FORM_HEAD = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: a\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
_FORM = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--%b--\r\n'
_NO_UTF8_KEY = b'{"model":"a","\xff":1}'
_LONG_BOUNDARY = b"b" * 257
_JSON_HEAD = b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def _form(content_type: bytes, boundary: bytes) -> bytes:
    body = _FORM % (boundary, boundary)
    return _FORM_HEAD % (content_type, len(body)) + body


REFUSED = {
    "a Content-Length of 4,301 digits": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: "
    + b"0" * 4299
    + b'13\r\n\r\n{"model":"m"}',
    "a boundary of 257 characters": _form(b"multipart/form-data; boundary=" + _LONG_BOUNDARY, _LONG_BOUNDARY),
    "a key that is not UTF-8, and the model in the path": _JSON_HEAD
    % (b"/upstream/m/v1/chat/completions", b"", len(_NO_UTF8_KEY))
    + _NO_UTF8_KEY,
    "a key that is not UTF-8, and the model in the header": _JSON_HEAD
    % (b"/v1/chat/completions", b"model-override: m\r\n", len(_NO_UTF8_KEY))
    + _NO_UTF8_KEY,
    "a Content-Length of 4,301 digits for a path of llmux's own": b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: "
    + b"0" * 4301
    + b"\r\n\r\n",
}
"""Requests that raised an exception; each has to be answered with 400."""

FOUND = {
    "a bare LF in an answer's head": (
        "answer",
        b"HTTP/1.1 200 OK\r\nX: a\nset-cookie: evil=1\r\ncontent-length: 2\r\n\r\n{}",
    ),
    "a bare CR in an answer's head": ("answer", b"HTTP/1.1 200 OK\r\nX: a\rb\r\ncontent-length: 2\r\n\r\n{}"),
    "a NUL in an answer's head": ("answer", b"HTTP/1.1 200 OK\r\nX: a\x00\r\ncontent-length: 2\r\n\r\n{}"),
    "a line without a colon in an answer's head": ("answer", b"HTTP/1.1 200 OK\r\nX\r\ncontent-length: 2\r\n\r\n{}"),
    "an 8-bit name in an answer's head": ("answer", b"HTTP/1.1 200 OK\r\nX\xff: a\r\ncontent-length: 2\r\n\r\n{}"),
    "a bare CR in an answer's reason": ("answer", b"HTTP/1.1 200 OK\rX\r\ncontent-length: 0\r\n\r\n"),
    "another transfer encoding of an answer without a body": (
        "answer",
        b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: gzip\r\n\r\n",
    ),
    "a byte order mark before the JSON in which a model is replaced": ("model", b'\x01\xef\xbb\xbf{"model":"m"}'),
    "a NUL in the trailer's name of an answer": ("chunked", b"5\r\nhello\r\n0\r\nA\x00: b\r\n\r\n"),
    "an 8-bit trailer's name of an answer": ("chunked", b"5\r\nhello\r\n0\r\nA\xce: b\r\n\r\n"),
    "a trailer of an answer that would frame it": ("chunked", b"0\r\nTransfer-Encoding: \r\n\r\n\r\n0\r\n\r\n"),
    "a head without a body": ("chunked", b""),
}
"""What the fuzzer has found, by the target that finds it."""


@pytest.mark.parametrize("name", list(REFUSED))
def test_requests_that_raised_are_refused(name: str) -> None:
    relay = Relay(DeterministicLoop())
    relay.receive([REFUSED[name]])
    assert statuses_of(relay.client_side) == (b"400",)
    assert relay.engine_side.written == b""
    relay.finish()


@pytest.mark.parametrize("name", list(FOUND))
def test_what_was_found_stays_mended(name: str) -> None:
    target, data = FOUND[name]
    TARGETS[target](data)


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "repeated"])
def test_the_seeds_are_answered_as_they_have_to_be(target: str) -> None:
    for seed in SEEDS[target]():
        TARGETS[target](seed)


def test_the_seeds_reach_what_is_fuzzed() -> None:
    answered = set()
    for seed in SEEDS["request"]():
        relay = Relay(DeterministicLoop())
        relay.receive([seed])
        answered.update(statuses_of(relay.client_side))
    assert {b"200", b"400", b"404"} <= answered


@pytest.mark.parametrize(
    "unclean",
    [b"POST / HTTP/1.1\r\nX: a\nb\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nfour", b"POST / HTTP/1.1"],
)
def test_an_unclean_request_to_an_engine_is_a_fault(unclean: bytes) -> None:
    with pytest.raises(Fault):
        split_requests(unclean)


def test_exceptions_of_callbacks_are_not_lost() -> None:
    loop = DeterministicLoop()
    loop.call_soon(int, BOUNDARY)
    loop.turn()
    with pytest.raises(ValueError, match="invalid literal"):
        loop.settle()
