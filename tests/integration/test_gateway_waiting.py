"""Streams that wait: the head and the comments that their clients get, and what becomes of the answer after them."""

import asyncio
import json
from typing import Any

import pytest

from llmux.access import Outcome
from llmux.core.forecast import Outlook
from llmux.errors import EngineDied, Evicted, QueueTimeout
from llmux.gateway import GatewayOptions
from llmux.gateway.proxy import begun_answer
from tests.support.access import FakeAccess
from tests.support.gateway import Bench, EngineSide, Message, RawClient, Script, post, running_gateway
from tests.support.skips import replaces_compiled_code

BODY = b'{"model":"cold","stream":true}'
WAITING = b": waiting\n\n"
OFTEN = GatewayOptions(keepalive_seconds=0.02, wait_comments_after_seconds=0.02)
EVENTS = b"data: one\n\ndata: [DONE]\n\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


async def streamed(request: Message, engine: EngineSide) -> None:
    engine.begin_stream()
    engine.chunk(b"data: one\n\n")
    engine.chunk(b"data: [DONE]\n\n")
    engine.end_stream()


def answering(head: bytes, body: bytes, *, close: bool = False) -> Script:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.send(b"HTTP/1.1 " + head + b"\r\n\r\n" + body)
        if close:
            engine.writer.close()

    return script


EVENT_STREAM = b"200 OK\r\ncontent-type: text/event-stream\r\n"


async def waiting(bench: Bench, request: bytes = b"") -> RawClient:
    """A client that waits for the model ``cold`` and has been told so twice."""
    client = await bench.client()
    client.send(request or post(BODY))
    head = await client.read_head()
    assert (head.status, head.get("content-type")) == (200, b"text/event-stream; charset=utf-8")
    assert head.get("x-request-id")
    for _ in range(2):
        assert await client.chunk() == WAITING
    return client


def awake(bench: Bench) -> None:
    """The model is on the GPU now, and what waits for it is admitted."""
    bench.access.awake["cold"] = bench.engine.upstream
    for number in list(bench.access.waiting):
        bench.access.admit(number)


async def rest_of(client: RawClient) -> bytes:
    """The rest of a chunked answer, comments left out; it has to end as it should."""
    body = b""
    while chunk := await client.chunk():
        body += chunk
    return body.replace(WAITING, b"")


def error_in(event: bytes) -> dict[str, Any]:
    (line,) = [line for line in event.split(b"\n") if line.startswith(b"data: ")]
    error = json.loads(line.removeprefix(b"data: "))["error"]
    assert isinstance(error, dict)
    return error


@pytest.mark.parametrize(
    "script",
    [
        streamed,
        answering(EVENT_STREAM + b"content-length: %d" % len(EVENTS), EVENTS),
        answering(EVENT_STREAM + b"connection: close", EVENTS, close=True),
    ],
    ids=["chunks", "length", "until close"],
)
async def test_an_answer_of_any_framing_follows_the_comments(script: Script) -> None:
    async with running_gateway(script, options=OFTEN) as bench:
        client = await waiting(bench)
        awake(bench)
        assert await rest_of(client) == EVENTS
        client.send(post(BODY))
        again = await client.answer()
        # On a busy machine also an engine that is awake may take as long as a comment waits.
        assert (again.status, again.body.replace(WAITING, b"")) == (200, EVENTS)
        assert bench.access.ended == [(1, Outcome.COMPLETED), (2, Outcome.COMPLETED)]


async def test_a_comment_tells_the_position_and_the_seconds_that_are_expected() -> None:
    async with running_gateway(streamed, options=OFTEN) as bench:
        bench.access.outlooks = iter([Outlook(4, 11.2), Outlook(2, None)])
        client = await bench.client()
        client.send(post(BODY))
        await client.read_head()
        assert await client.chunk() == b": waiting, position 4, about 12 s to go\n\n"
        assert await client.chunk() == b": waiting, position 2\n\n"
        assert await client.chunk() == WAITING
        awake(bench)
        assert await rest_of(client) == EVENTS


@pytest.mark.parametrize("script", [streamed, answering(EVENT_STREAM + b"content-length: %d" % len(EVENTS), EVENTS)])
async def test_a_client_of_http_1_0_gets_the_same_without_chunks(script: Script) -> None:
    async with running_gateway(script, options=OFTEN) as bench:
        client = await bench.client()
        client.send(post(BODY).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        head = await client.read_head()
        assert (head.get("transfer-encoding"), head.get("connection")) == (None, b"close")
        assert await client.reader.readexactly(len(WAITING)) == WAITING
        awake(bench)
        assert (await client.rest()).replace(WAITING, b"") == EVENTS


async def test_what_was_refused_ends_with_an_error_event_and_the_connection_goes_on() -> None:
    async with running_gateway(streamed, options=OFTEN) as bench:
        client = await waiting(bench)
        bench.access.reject(1, QueueTimeout("cold", 300.0))
        assert error_in(await rest_of(client))["code"] == "queue_timeout"
        awake(bench)
        client.send(post(BODY))
        assert (await client.answer()).body == EVENTS


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (b"400 Bad Request", b'{"error":{"message":"too long","code":400}}', {"message": "too long", "code": 400}),
        (b"400 Bad Request", b'{"object":"error","message":"too long"}', {"message": "too long", "code": 400}),
        (b"500 Oops", b"Internal Server Error", {"message": "Internal Server Error", "code": 500}),
        (b"503 Busy", b"", {"message": "the engine answered with status 503", "code": 503}),
        (b"200 OK", b'{"choices":[]}', {"code": "bad_gateway"}),
        (b"400 Bad Request", b"[" * 5_000, {"message": "[" * 5_000, "code": 400}),
    ],
    ids=str,
)
async def test_an_answer_that_is_no_stream_becomes_an_error_event(
    status: bytes, body: bytes, expected: dict[str, Any]
) -> None:
    head = status + b"\r\ncontent-type: application/json\r\ncontent-length: %d" % len(body)
    async with running_gateway(answering(head, body), options=OFTEN) as bench:
        client = await waiting(bench)
        awake(bench)
        error = error_in(await rest_of(client))
        assert {key: error[key] for key in expected} == expected
        assert bench.access.ended == [(1, Outcome.COMPLETED)]


@replaces_compiled_code
async def test_a_stream_that_cannot_be_ended_as_its_engine_ended_it_ends_with_an_internal_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_arguments: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(begun_answer, "engine_error_event", fail)
    async with running_gateway(answering(b"400 No\r\ncontent-length: 2", b"no"), options=OFTEN) as bench:
        client = await waiting(bench)
        awake(bench)
        assert error_in(await rest_of(client))["code"] == "internal_error"
        assert bench.access.ended == [(1, Outcome.BROKEN)]
        client.send(post(b'{"model":"m"}'))
        assert (await client.answer()).status == 400


async def test_an_engine_that_dies_before_a_byte_of_the_answer_is_replaced() -> None:
    """Also when its head has come, which the client does not need any more."""
    died: list[bytes] = []

    async def script(request: Message, engine: EngineSide) -> None:
        if len(died) < 2:
            engine.send(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                if died
                else b""
            )
            died.append(request.body)
            engine.writer.close()
        else:
            await streamed(request, engine)

    def again(access: FakeAccess, number: int) -> None:
        access.admit(number)

    async with running_gateway(script, options=OFTEN) as bench:
        bench.access.on_give_back = again
        client = await waiting(bench)
        awake(bench)
        assert await rest_of(client) == EVENTS
        assert [request.body for request in bench.engine.seen] == [BODY] * 3
        assert [number for number, _ in bench.access.given_back] == [1, 1]


async def test_an_engine_that_dies_in_an_answer_that_is_no_stream_is_replaced() -> None:
    """Nothing of it has been passed on, however long the client has been told to wait meanwhile."""
    dies = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        if len(bench.engine.seen) == 1:
            engine.send(b"HTTP/1.1 400 Bad\r\ncontent-length: 100\r\n\r\nhalf")
            await dies.wait()
            engine.writer.close()
        else:
            await streamed(request, engine)

    async with running_gateway(script, options=OFTEN) as bench:
        bench.access.on_give_back = lambda access, number: access.admit(number)
        client = await waiting(bench)
        awake(bench)
        while not bench.engine.seen:
            assert await client.chunk() == WAITING
        for _ in range(5):
            assert await client.chunk() == WAITING
        dies.set()
        assert await rest_of(client) == EVENTS
        assert [request.body for request in bench.engine.seen] == [BODY] * 2


@pytest.mark.parametrize("framing", [b"transfer-encoding: chunked", b"content-length: 1000"])
async def test_an_answer_that_breaks_off_has_an_error_event_and_no_clean_end(framing: bytes) -> None:
    go_on = asyncio.Event()
    piece = b"9\r\ndata: 1\n\n\r\n" if b"chunked" in framing else b"data: 1\n\n"

    async def script(request: Message, engine: EngineSide) -> None:
        engine.send(b"HTTP/1.1 " + EVENT_STREAM + framing + b"\r\n\r\n" + piece)
        await go_on.wait()
        engine.writer.close()

    async with running_gateway(script, options=OFTEN) as bench:
        bench.access.alive = False
        client = await waiting(bench)
        awake(bench)
        while (chunk := await client.chunk()) == WAITING:
            pass
        assert chunk == b"data: 1\n\n"
        go_on.set()
        assert error_in(await client.chunk())["code"] == "engine_died"
        assert await client.rest() == b""
        assert bench.access.ended == [(1, Outcome.BROKEN)]


@pytest.mark.parametrize("error", [Evicted("cold"), EngineDied("cold")])
async def test_a_lease_that_is_revoked_before_the_answer(error: Evicted | EngineDied) -> None:
    """After an eviction the client is told so; after an engine's death the request waits for the next one."""
    answers = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        await answers.wait()
        await streamed(request, engine)

    async with running_gateway(script, options=OFTEN) as bench:
        client = await waiting(bench)
        awake(bench)
        await bench.access.until(lambda: bool(bench.access.leases))
        bench.access.revoke(1, error)
        if isinstance(error, Evicted):
            assert error_in(await rest_of(client))["code"] == "evicted"
        else:
            assert [number for number, _ in bench.access.given_back] == [1]
            answers.set()
            awake(bench)
            assert await rest_of(client) == EVENTS


async def test_a_stream_whose_engine_has_sent_only_the_head_gets_comments_too() -> None:
    """As during a long prefill, after which vLLM sends the first byte."""
    first_token = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        await first_token.wait()
        engine.chunk(b"data: one\n\n")
        engine.chunk(b"data: [DONE]\n\n")
        engine.end_stream()

    # The engine's head must come before the gateway would send one of its own.
    options = GatewayOptions(keepalive_seconds=0.02, wait_comments_after_seconds=1.0)
    async with running_gateway(script, options=options) as bench:
        client = await bench.client()
        client.send(post(BODY.replace(b"cold", b"m")))
        assert (await client.read_head()).get("x-llmux-queue-ms") == b"0"
        for _ in range(2):
            assert await client.chunk() == b": keep-alive\n\n"
        first_token.set()
        assert (await rest_of(client)).replace(b": keep-alive\n\n", b"") == EVENTS


async def test_errors_of_anthropics_endpoint_have_its_shape() -> None:
    async with running_gateway(streamed, options=OFTEN) as bench:
        client = await waiting(bench, post(BODY, path="/v1/messages"))
        bench.access.reject(1, EngineDied("cold"))
        event = await rest_of(client)
        assert event.startswith(b"\n\nevent: error\ndata: ")
        document = json.loads(event.partition(b"data: ")[2])
        assert (document["type"], document["error"]["type"]) == ("error", "api_error")
        assert "the engine of 'cold' died" in document["error"]["message"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b'{"model":"cold"}'),
        post(b'{"model":"cold","stream":false}'),
        post(BODY, path="/v1/embeddings"),
        post(BODY, "Accept: text/html"),
        post(BODY, "Accept: */*, text/event-stream;q=0"),
    ],
)
async def test_who_is_not_waiting_for_an_event_stream_gets_a_status(request_bytes: bytes) -> None:
    async with running_gateway(streamed, options=OFTEN) as bench:
        client = await bench.client()
        client.send(request_bytes)
        other = await waiting(bench)
        bench.access.reject(1, QueueTimeout("cold", 300.0))
        assert (await client.answer()).status == 504
        other.writer.close()
        await bench.access.until(lambda: bench.access.cancelled == [2])


@pytest.mark.parametrize(
    "accept", ["*/*", "text/event-stream", "application/json", "text/html, text/event-stream;q=0.5"]
)
async def test_who_accepts_an_event_stream_or_says_nothing_about_it_is_told(accept: str) -> None:
    async with running_gateway(streamed, options=OFTEN) as bench:
        await waiting(bench, post(BODY, f"Accept: {accept}"))
        bench.access.reject(1, QueueTimeout("cold", 300.0))


async def test_a_client_that_leaves_while_it_waits() -> None:
    async with running_gateway(streamed, options=OFTEN) as bench:
        client = await waiting(bench)
        await client.close()
        await bench.access.until(lambda: bench.access.cancelled == [1])


async def test_without_the_option_nothing_is_sent_before_the_answer() -> None:
    async with running_gateway(streamed, options=GatewayOptions(keepalive_seconds=0.02)) as bench:
        client = await bench.client()
        client.send(post(BODY))
        await bench.access.until(lambda: bool(bench.access.waiting))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.reader.read(1)
        awake(bench)
        answer = await client.answer()
        assert (answer.body, answer.get("x-llmux-queue-ms")) == (EVENTS, b"0")
