"""What is fuzzed. Each target gives its input to a connection and raises where an answer is not what it has to be.

Nothing may raise, be answered with ``internal_error``, or leave a lease behind. An input means the same whole and in
pieces. h11 is the second opinion on framing, and ``json.loads`` on JSON.
"""

import json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import h11

from llmux.access import Outcome
from llmux.errors import RequestError
from llmux.gateway.http.chunks import ChunkReader, FramingError
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.http.response_head import ResponseHead
from tests.fuzz.loop import DeterministicLoop
from tests.fuzz.relay import ANSWER, UPSTREAM, Fault, Relay, reads, statuses_of, without_prefix
from tests.support.access import FakeAccess

LOOP = DeterministicLoop()
_BARE_LINE_END = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_MALFORMED = frozenset((b"400", b"431", b"501"))
_CHUNKED_REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nmodel-override: m\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_CHUNKED_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_PLAIN_REQUEST = b"GET /v1/responses/1 HTTP/%b\r\nHost: x\r\nmodel-override: m\r\n\r\n"
BOUNDARY = b"xYzZY"


def random_cuts(data: bytes) -> list[int]:
    """Where to cut the data: always the same for the same data. Short data is now and then cut everywhere."""
    number = zlib.crc32(data)
    if len(data) < 400 and not number % 32:
        return list(range(1, len(data)))
    return [number % len(data), (number >> 8) % len(data), (number >> 16) % len(data)] if data else []


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of an input, as far as it must not depend on its pieces."""

    statuses: tuple[bytes, ...]
    engine: bytes
    closed: bool


# Requests.


def request(data: bytes) -> None:
    """A client's bytes from the first on: heads, bodies, pipelined requests."""
    whole, split = _requested(data, ()), _requested(data, random_cuts(data))
    if whole != split:
        raise Fault(f"a request depends on its pieces: {_difference(whole, split)}", f"{whole} {split}")
    if not zlib.crc32(data) % 4:
        _compare_bodies(data, whole.engine)


def _requested(data: bytes, cuts: Sequence[int]) -> Seen:
    relay = Relay(LOOP)
    relay.receive(reads(data, cuts))
    # Which of two reasons comes first to refuse a malformed head may depend on how much of it there is.
    statuses = tuple(b"400" if status in _MALFORMED else status for status in statuses_of(relay.client_side))
    seen = Seen(statuses, without_prefix(relay.engine_side.written), relay.client_side.closed)
    relay.finish()
    return seen


def _difference(one: Seen, other: Seen) -> str:
    if one.engine != other.engine:
        return "the engine gets something else"
    return f"{b' '.join(one.statuses).decode()} or {b' '.join(other.statuses).decode()}, {one.closed}/{other.closed}"


def _compare_bodies(data: bytes, engine: bytes) -> None:
    """Everything that the engine gets as a body must be one for h11 too, and in the same order.

    What llmux refuses is its own business, and so is what it accepts after something that h11 refuses.
    """
    bodies, complete = _bodies_by_h11(data)
    if not complete:
        return
    expected = iter(bodies)
    for body in split_requests(engine):
        if body not in expected:
            raise Fault("the engine gets a body that h11 does not see", (body[:80], bodies[:4]))


def _bodies_by_h11(data: bytes) -> tuple[list[bytes], bool]:
    """The bodies of the requests in the data, and whether h11 takes all of it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
    while data.startswith(b"\r\n"):
        data = data[2:]
    connection.receive_data(data)
    bodies: list[bytes] = []
    body = bytearray()
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                return bodies, True
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return bodies, event is not h11.PAUSED
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                bodies.append(bytes(body))
                body.clear()
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return bodies, True
                connection.start_next_cycle()
    except h11.ProtocolError:
        return bodies, False


def split_requests(engine: bytes) -> list[bytes]:
    """The bodies of the requests that llmux has sent, each with a Content-Length or without a body."""
    bodies = []
    while engine:
        head, separator, engine = engine.partition(b"\r\n\r\n")
        if not separator:
            raise Fault("the engine gets an incomplete head", head[:80])
        lines = head.lower().split(b"\r\n")
        lengths = [line for line in lines if line.startswith(b"content-length:")]
        chunked = any(line.startswith(b"transfer-encoding") for line in lines)
        if len(lengths) > 1 or chunked or any(byte < 32 for byte in _values(head)):
            raise Fault("the engine gets an unclean head", head[:400])
        length = int(lengths[0][15:]) if lengths else 0
        body, engine = engine[:length], engine[length:]
        if len(body) != length:
            raise Fault("the engine gets an incomplete body", head[:80])
        bodies.append(body)
    return bodies


def _values(head: bytes) -> bytes:
    return head.replace(b"\r\n", b"").replace(b"\t", b"")


# Chunked bodies.


def chunked(data: bytes) -> None:
    """A chunked body, and what comes after it: of a client, which is decoded, and of an engine, which is relayed."""
    message = _CHUNKED_REQUEST + data
    whole = _requested(message, ())
    split = _requested(message, [len(_CHUNKED_REQUEST) + cut for cut in random_cuts(data)])
    if whole != split:
        raise Fault(f"a chunked request depends on its pieces: {_difference(whole, split)}", f"{whole} {split}")
    _compare_bodies(message, whole.engine)
    _check_answer(_CHUNKED_ANSWER, data)


# Answers.


def answer(data: bytes) -> None:
    """An engine's bytes from the first on: interim answers, the head, the body, the end of the connection."""
    _check_answer(b"", data)


def _check_answer(head: bytes, data: bytes) -> None:
    version = b"1.1" if zlib.crc32(data) % 4 else b"1.0"
    asked = _PLAIN_REQUEST % version
    whole = _answered(asked, head + data, ())
    split = _answered(asked, head + data, [len(head) + cut for cut in random_cuts(data)])
    if whole != split:
        raise Fault("an answer depends on its pieces", f"{whole} {split}")


def _answered(asked: bytes, data: bytes, cuts: Sequence[int]) -> bytes | None:
    """The body that a client reads; None where it cannot take the answer for a whole one."""
    relay = Relay(LOOP, answer=b"")
    relay.receive([asked])
    relay.receive_answer(reads(data, cuts))
    closed_by_llmux = relay.engine_side.closed
    relay.lose_engine()
    relay.loop.settle()
    received = relay.client_side.written
    ended = [outcome for _, outcome in relay.access.ended]
    statuses_of(relay.client_side)
    body = _body_for_client(asked, received, closed=relay.client_side.closed)
    # A given-back request is asked again elsewhere, and that answer's body goes behind the head that the client has.
    if relay.access.given_back and received.partition(b"\r\n\r\n")[2]:
        raise Fault("a request was given back after its answer's body had begun", received[:300])
    if Outcome.COMPLETED in ended and body is None and not relay.access.given_back:
        raise Fault("the client gets a broken answer that counts as complete", received[:300])
    if Outcome.BROKEN in ended and body is not None and _frames_its_end(received) and not _is_own(received):
        raise Fault("the client gets a clean end of a broken answer", received[-80:])
    if not closed_by_llmux and not ended and not relay.access.given_back and received and not relay.client_side.closed:
        raise Fault("the client waits for ever", received[:80])
    relay.finish()
    # An HTTP/1.0 client reads until the close, and cannot see that its answer is not whole.
    return None if Outcome.BROKEN in ended else body


def _is_own(received: bytes) -> bool:
    """Whether llmux answered in the engine's place."""
    return b"\r\nx-llmux-error: 1\r\n" in received.partition(b"\r\n\r\n")[0]


def _frames_its_end(received: bytes) -> bool:
    head = received.partition(b"\r\n\r\n")[0].lower()
    return b"\r\ntransfer-encoding:" in head or b"\r\ncontent-length:" in head


def _body_for_client(asked: bytes, received: bytes, *, closed: bool) -> bytes | None:
    """What a strict client takes for the whole body; None without one. Raises Fault where it refuses the answer."""
    if not received:
        return None
    if _BARE_LINE_END.search(received.partition(b"\r\n\r\n")[0]):
        raise Fault("the client gets a bare CR or LF in a head", received[:300])
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(received)
    if closed:
        connection.receive_data(b"")
    body = bytearray()
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                if connection.trailing_data[0]:
                    raise Fault("the client gets more than its answer", connection.trailing_data[0][:80])
                return bytes(body)
            elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return None
    except h11.RemoteProtocolError as error:
        if closed and ("closed connection" in str(error) or "without sending complete" in str(error)):
            return None
        reason = str(error).partition(": bytearray")[0]
        raise Fault(f"the client gets a malformed answer: {reason}", (asked[:40], received[:300])) from None


# The model in a body.


def model(data: bytes) -> None:
    """A request's body: where its model is read from, and where another one is written. The first byte says how."""
    how, body = data[:1], data[1:]
    match how[0] % 4 if how else 0:
        case 0:
            _check_json(body)
        case 1:
            _check_replaced(body)
        case 2:
            _ask(b"/v1/audio/transcriptions", b'multipart/form-data; boundary="%b"' % BOUNDARY, body)
        case _:
            # The Content-Type itself.
            kind, _, rest = body.partition(b"\n")
            clean = bytes(byte for byte in kind if byte >= 32 and byte != 127)
            _ask(b"/v1/audio/transcriptions", b"multipart/form-data; " + clean, rest)


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of one request with a body."""

    status: bytes
    models: list[str]
    """The model that was asked for, if any."""
    sent: list[bytes]
    """The body that the engine got, if any."""


def _ask(path: bytes, content_type: bytes, body: bytes, *models: str) -> Asked:
    """Send one request where these models are configured."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    relay = Relay(LOOP, FakeAccess(awake=dict.fromkeys(("m", *models), UPSTREAM)))
    relay.receive(reads(head % (path, content_type, len(body)) + body))
    statuses = statuses_of(relay.client_side)
    if len(statuses) != 1:
        raise Fault("not one answer to one request", relay.client_side.written[:300])
    sent = split_requests(relay.engine_side.written)
    relay.finish()
    return Asked(statuses[0], relay.asked, sent)


def _check_json(body: bytes) -> None:
    loaded = _loads(body)
    named = loaded.get("model") if isinstance(loaded, dict) else None
    is_named = isinstance(named, str) and bool(named)
    asked = _ask(b"/v1/completions", b"application/json", body, *([named] if is_named else []))
    if asked.models:
        if asked.models != [named]:
            raise Fault("llmux and an engine read different models", (asked.models, loaded))
        if asked.sent not in ([body], [body.removeprefix(BOM_UTF8)]):
            raise Fault("a body is changed that names its model itself", (body[:200], asked.sent))
    elif asked.status == b"404":
        raise Fault("llmux finds another model than an engine would, or one where there is none", (body[:200], named))


def _check_replaced(body: bytes) -> None:
    asked = _ask(b"/upstream/other/v1/completions", b"application/json", body, "other")
    if asked.models not in ([], ["other"]):
        raise Fault("the path's model is not the one asked for", asked.models)
    if not asked.sent:
        return
    loaded, original = _loads(asked.sent[0]), _loads(body)
    if original is None:
        if loaded is not None:
            raise Fault("a body that is not JSON becomes one", (body[:200], asked.sent[0][:200]))
    elif isinstance(original, dict) and isinstance(original.get("model"), str):
        expected = original | {"model": "other"}
        # NaN is not equal to itself, but its text is.
        if repr(loaded) != repr(expected):
            raise Fault("replacing the model changes more than the model", (body[:200], asked.sent[0][:200]))


def _loads(body: bytes) -> object:
    """As Starlette reads it; None where it cannot."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


# The parsers alone.


PARSERS: tuple[Callable[[bytes], object], ...] = (
    lambda data: RequestHead().parse(data),
    lambda data: ResponseHead(data, to_head_request=False),
    lambda data: ResponseHead(data, to_head_request=True),
    lambda data: ChunkReader().feed(data),
    lambda data: ChunkReader(collect=True).feed(data),
)


def parsers(data: bytes) -> None:
    """One parser, which the first byte chooses, without a connection around it: many more inputs in the same time."""
    if data:
        with suppress(RequestError, FramingError):
            PARSERS[data[0] % len(PARSERS)](data[1:])


# Whatever repeats.


@dataclass(frozen=True, slots=True)
class Repetition:
    """Where a repeated unit stands in what a client or an engine sends."""

    before: bytes
    after: bytes = b""
    by_engine: bool = False
    max_bytes: int = 512 * 1024


_JSON_REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
_FORM_REQUEST = (
    b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=%b\r\n"
    b"Content-Length: %d\r\n\r\n"
)
REPETITIONS = (
    Repetition(b""),
    Repetition(b"GET /health HTTP/1.1\r\nHost: x\r\n", b"\r\n"),
    Repetition(_CHUNKED_REQUEST, b"0\r\n\r\n"),
    Repetition(_CHUNKED_REQUEST + b"0\r\n", b"\r\n"),
    Repetition(_JSON_REQUEST % 500_000 + b'{"model":"m","a":['),
    Repetition(_FORM_REQUEST % (BOUNDARY, 500_000) + b"--" + BOUNDARY),
    Repetition(b"", by_engine=True),
    Repetition(b"HTTP/1.1 200 OK\r\n", b"\r\n", by_engine=True),
    Repetition(_CHUNKED_ANSWER, b"0\r\n\r\n", by_engine=True),
    Repetition(_CHUNKED_ANSWER + b"0\r\n", b"\r\n", by_engine=True),
)


def repeated(data: bytes) -> None:
    """A unit a great many times, for what costs too much in one turn of the loop. Two bytes say where and how often."""
    if len(data) < 3:
        return
    place, unit = REPETITIONS[data[0] % len(REPETITIONS)], data[2:]
    total = place.max_bytes >> (data[1] % 4 * 2)
    message = place.before + unit * (total // len(unit)) + place.after
    relay = Relay(LOOP, answer=b"" if place.by_engine else ANSWER)
    if place.by_engine:
        relay.receive([_PLAIN_REQUEST % b"1.1"])
        relay.receive_answer(reads(message))
    else:
        relay.receive(reads(message))
    statuses_of(relay.client_side)
    relay.finish()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "request": request,
    "chunked": chunked,
    "answer": answer,
    "model": model,
    "parsers": parsers,
    "repeated": repeated,
}
"""By the name that the command line knows."""
