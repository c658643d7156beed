"""Engines that die after the head of their answer and before the first byte of its body, as vLLM does in a prefill."""

import asyncio
import json
import socket
import struct
from typing import Any

import pytest

from llmux.access import Outcome
from llmux.errors import EngineDied, Evicted
from tests.support.access import FakeAccess
from tests.support.gateway import Bench, EngineSide, Message, RawClient, Script, post, running_gateway

BODY = b'{"model":"m","stream":true}'
EVENTS = b"data: one\n\ndata: [DONE]\n\n"
EVENT_STREAM = b"content-type: text/event-stream\r\n"
JSON = b"content-type: application/json\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
CLOSE = b"connection: close\r\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


def answer(fields: bytes, body: bytes, *, status: bytes = b"200 OK") -> bytes:
    """A whole answer, in the framing that its fields name."""
    if CHUNKED in fields:
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:11], body[11:])) + b"0\r\n\r\n"
    elif CLOSE not in fields:
        fields += b"content-length: %d\r\n" % len(body)
    return b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n" + body


def dying(first_head: bytes, second: bytes) -> Script:
    """The first engine sends a head and dies once its client has it, the second answers."""
    requests: list[bytes] = []

    async def script(request: Message, engine: EngineSide) -> None:
        requests.append(request.body)
        if len(requests) == 1:
            engine.send(b"HTTP/1.1 200 OK\r\n" + first_head + b"\r\n")
            await engine.until_closed()
        else:
            engine.send(second)
            if CLOSE in second:
                engine.writer.close()

    return script


def kill(engine: EngineSide, *, reset: bool = True) -> None:
    """End the connection as the kernel does for a process that was killed: with a reset if anything was left unread."""
    if reset:
        linger = struct.pack("ii", 1, 0)
        engine.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    engine.reset()


async def client_of_a_dead_engine(bench: Bench, request: bytes, *, reset: bool = True) -> tuple[RawClient, Message]:
    """A client that has the head of an engine that is dead now."""
    bench.access.on_give_back = FakeAccess.admit
    client = await bench.client()
    client.send(request)
    head = await client.read_head()
    kill(bench.engine.connections[0], reset=reset)
    return client, head


async def body_of(client: RawClient, head: Message) -> tuple[bytes, bool]:
    """The rest of an answer, and whether it ends as its head says."""
    if head.get("transfer-encoding") is None:
        return await client.rest(), True
    body = b""
    try:
        while chunk := await client.chunk():
            body += chunk
    except (asyncio.IncompleteReadError, ConnectionError):
        return body, False
    return body, True


def error_in(body: bytes) -> dict[str, Any]:
    (line,) = [line for line in body.split(b"\n") if line.startswith(b"data: ")]
    error = json.loads(line.removeprefix(b"data: "))["error"]
    assert isinstance(error, dict)
    return error


FRAMINGS = [CHUNKED, CLOSE, b""]


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("second", FRAMINGS)
@pytest.mark.parametrize("first", [CHUNKED, CLOSE])
@pytest.mark.parametrize("kind", [EVENT_STREAM, JSON])
async def test_another_engine_answers_behind_the_head(kind: bytes, first: bytes, second: bytes, version: bytes) -> None:
    async with running_gateway(dying(kind + first, answer(kind + second, EVENTS))) as bench:
        client, head = await client_of_a_dead_engine(bench, post(BODY).replace(b"HTTP/1.1", version, 1))
        assert await body_of(client, head) == (EVENTS, True)
        assert [number for number, _ in bench.access.given_back] == [1]
        await bench.access.until(lambda: bench.access.ended == [(1, Outcome.COMPLETED)])
        assert [request.body for request in bench.engine.seen] == [BODY, BODY]


@pytest.mark.parametrize("first", [CHUNKED, CLOSE])
async def test_an_engine_whose_stream_ends_before_it_begins_is_replaced(first: bytes) -> None:
    second = answer(EVENT_STREAM + CHUNKED, EVENTS)
    async with running_gateway(dying(EVENT_STREAM + first, second)) as bench:
        client, head = await client_of_a_dead_engine(bench, post(BODY), reset=False)
        assert await body_of(client, head) == (EVENTS, True)


async def test_an_engine_that_was_reported_dead_first_is_replaced_too() -> None:
    second = answer(EVENT_STREAM + CHUNKED, EVENTS)
    async with running_gateway(dying(EVENT_STREAM + CHUNKED, second)) as bench:
        bench.access.on_give_back = FakeAccess.admit
        client = await bench.client()
        client.send(post(BODY))
        head = await client.read_head()
        bench.access.revoke(1, EngineDied("m"))
        assert await body_of(client, head) == (EVENTS, True)
        client.send(post(BODY))
        assert (await client.answer()).body == EVENTS


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (answer(JSON, b'{"error":{"message":"no","code":400}}', status=b"400 No"), {"message": "no", "code": 400}),
        (answer(JSON, b"{}"), {"code": "bad_gateway"}),
        (answer(EVENT_STREAM + b"content-encoding: gzip\r\n" + CHUNKED, EVENTS), {"code": "bad_gateway"}),
    ],
    ids=["refused", "no stream", "another coding"],
)
async def test_an_answer_that_does_not_fit_the_head_of_a_stream_is_an_error_event(
    second: bytes, expected: dict[str, Any]
) -> None:
    async with running_gateway(dying(EVENT_STREAM + CHUNKED, second)) as bench:
        client, head = await client_of_a_dead_engine(bench, post(BODY))
        body, is_whole = await body_of(client, head)
        assert is_whole
        assert {key: error_in(body)[key] for key in expected} == expected
        assert bench.access.ended == [(1, Outcome.COMPLETED)]


@pytest.mark.parametrize("error", [EngineDied("m"), Evicted("m")])
async def test_a_stream_that_no_engine_answers_ends_with_an_error_event(error: EngineDied | Evicted) -> None:
    async with running_gateway(dying(EVENT_STREAM + CHUNKED, b"")) as bench:
        client = await bench.client()
        client.send(post(BODY))
        head = await client.read_head()
        if isinstance(error, Evicted):
            bench.access.revoke(1, error)
        else:
            bench.access.on_give_back = lambda access, number: access.reject(number, error)
            bench.engine.connections[0].reset()
        body, _ = await body_of(client, head)
        assert error_in(body)["code"] == ("engine_died" if isinstance(error, EngineDied) else "evicted")


@pytest.mark.parametrize(
    "second",
    [
        answer(b"content-type: text/plain\r\n", b"no"),
        answer(JSON, b"no", status=b"400 No"),
        answer(EVENT_STREAM, b"no"),
    ],
)
async def test_an_answer_that_does_not_fit_any_other_head_is_cut_off(second: bytes) -> None:
    async with running_gateway(dying(JSON + CHUNKED, second)) as bench:
        client, head = await client_of_a_dead_engine(bench, post(BODY))
        assert await body_of(client, head) == (b"", False)
        assert bench.access.ended == [(1, Outcome.BROKEN)]


async def test_an_answer_of_a_known_length_is_not_another_engines() -> None:
    async with running_gateway(dying(JSON + b"content-length: 2\r\n", answer(JSON, b"ok"))) as bench:
        client, _ = await client_of_a_dead_engine(bench, post(BODY))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.reader.readexactly(1)
        assert bench.access.given_back == []
        assert bench.access.ended == [(1, Outcome.BROKEN)]


async def test_a_large_request_is_repeated_whole_after_a_head() -> None:
    body = b'{"model":"m","stream":true,"prompt":"%b"}' % (b"x" * 2_000_000)
    second = answer(EVENT_STREAM + CHUNKED, EVENTS)
    async with running_gateway(dying(EVENT_STREAM + CHUNKED, second)) as bench:
        client, head = await client_of_a_dead_engine(bench, post(body))
        assert await body_of(client, head) == (EVENTS, True)
        assert [request.body for request in bench.engine.seen] == [body, body]
