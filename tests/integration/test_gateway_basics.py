"""Relaying between real sockets, on both event loops."""

import asyncio
import json
import math
from typing import Any

import pytest

from llmux.access import Outcome, Upstream
from llmux.core.request import Priority
from llmux.gateway import GatewayOptions, LocalAnswer, LocalRoutes
from tests.support.access import DEADLINE_SECONDS
from tests.support.gateway import EngineSide, Message, get, post, running_gateway

BODY = b'{"model":"m","messages":[]}'


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


async def test_body_and_path_reach_the_engine_unchanged() -> None:
    async with running_gateway() as bench:
        answer = await bench.ask(post(BODY, path="/v1/chat/completions?a=b%20c"))
        assert (answer.status, answer.body) == (200, BODY)
        seen = bench.engine.seen[0]
        assert seen.start == b"POST /v1/chat/completions?a=b%20c HTTP/1.1"
        assert seen.body == BODY
        assert bench.access.ended == [(1, Outcome.COMPLETED)]


async def test_headers_of_one_hop_and_credentials_are_not_forwarded() -> None:
    removed = [
        "Connection: keep-alive, X-Secret",
        "X-Secret: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Authorization: a",
        "TE: trailers",
        "Trailer: x",
        "Authorization: Bearer key",
        "X-Api-Key: key",
        "Api-Key: key",
        "Cookie: a=b",
        "Expect: 100-continue",
    ]
    async with running_gateway() as bench:
        bench.access.awake["m"] = Upstream("127.0.0.1", bench.engine.port, api_key="engine-key")
        answer = await bench.ask(post(BODY, *removed, "X-Kept: 2", "model-override: m"))
        assert answer.status == 200
        seen = bench.engine.seen[0]
        names = sorted(name.decode() for name, _ in seen.fields)
        assert names == ["authorization", "content-length", "content-type", "host", "x-kept", "x-request-id"]
        assert seen.get("authorization") == b"Bearer engine-key"
        assert seen.get("host") == f"127.0.0.1:{bench.engine.port}".encode()


async def test_answer_is_relayed_unchanged_with_three_fields_added() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.send(b"HTTP/1.1 201 Fine So\r\nServer: uvicorn\r\nKeep-Alive: timeout=5\r\nX-Request-Id: theirs\r\n")
        engine.send(b"connection: keep-alive, x-hop\r\nx-hop: 1\r\ncontent-length: 2\r\nX-Odd:  a \r\n\r\nok")

    async with running_gateway(script) as bench:
        bench.access.queue_seconds, bench.access.switch_seconds = 1.5, 2.25
        bench.access.forecast_seconds = 1.25
        answer = await bench.ask(post(BODY, "X-Request-Id: mine-1"))
        assert answer.start == b"HTTP/1.1 201 Fine So"
        assert b"\r\nServer: uvicorn\r\n" in answer.raw_head
        assert b"\r\nX-Odd:  a \r\n" in answer.raw_head
        assert answer.get("x-request-id") == b"mine-1"
        assert answer.get("x-llmux-queue-ms") == b"1500"
        assert answer.get("x-llmux-switch-ms") == b"2250"
        assert answer.get("x-llmux-forecast-ms") == b"1250"
        for name in ("keep-alive", "connection", "x-hop"):
            assert answer.get(name) is None
        assert answer.body == b"ok"


async def test_a_request_carries_its_session_and_priority() -> None:
    async with running_gateway() as bench:
        await bench.ask(post(BODY, "X-Session-Id: talk-7", "x-llmux-priority: batch"))
        await bench.ask(post(BODY))
        request, without = (asked.request for asked in bench.access.asked)
        assert (request.model, request.session, request.priority) == ("m", "talk-7", Priority.BATCH)
        assert bench.engine.seen[0].get("x-session-id") == b"talk-7", "engines may use it too"
        assert without.session is None


async def test_a_request_says_how_long_its_model_stays() -> None:
    async with running_gateway() as bench:
        large = json.dumps({"text": "x" * 2_000_000, "model": "m", "keep_alive": "1h"}).encode()
        for body, fields in (
            (BODY, ("x-llmux-keep-alive: 10m",)),
            (b'{"model":"m","keep_alive":-1}', ()),
            (b'{"model":"m","keep_alive":5,"temperature":NaN}', ()),
            (large, ()),
            (BODY, ()),
        ):
            assert (await bench.ask(post(body, *fields))).status == 200
        asked = [asked.request.keep_alive_seconds for asked in bench.access.asked]
        assert asked == [600.0, math.inf, 5.0, 3600.0, None]
        assert [seen.get("x-llmux-keep-alive") for seen in bench.engine.seen] == [None] * 5
        assert bench.engine.seen[1].body == b'{"model":"m","keep_alive":-1}'


@pytest.mark.parametrize(
    ("body", "field"), [(BODY, "x-llmux-keep-alive: soon"), (b'{"model":"m","keep_alive":[]}', "")]
)
async def test_a_wrong_wish_is_refused_before_anything_is_woken(body: bytes, field: str) -> None:
    async with running_gateway() as bench:
        answer = await bench.ask(post(body, *filter(None, [field])))
        assert answer.status == 400
        assert b"must be a number of seconds or a duration as 10m" in answer.body
        assert not bench.access.asked


@pytest.mark.parametrize(
    ("field", "pieces"),
    [
        (b"transfer-encoding: chunked", [b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n"]),
        (b"content-length: 6", [b"one", b"two"]),
        (b"connection: close", [b"one", b"two"]),
    ],
)
async def test_the_start_of_the_body_is_reported_once(field: bytes, pieces: list[bytes]) -> None:
    goes_on = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        engine.send(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n\r\n")
        await goes_on.wait()
        for piece in pieces:
            engine.send(piece)
        if field == b"connection: close":
            engine.writer.close()

    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(post(b'{"model":"m","stream":true}'))
        await client.read_head()
        assert bench.access.asked[0].request.streams
        assert bench.access.first_tokens == []
        goes_on.set()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await client.reader.readuntil(b"one")
        assert bench.access.first_tokens == [1]
        await bench.access.until(lambda: bool(bench.access.ended))
        assert bench.access.first_tokens == [1]


async def test_an_error_does_not_count_as_a_first_token() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.answer(b'{"error":{}}', status="400 Bad Request")

    async with running_gateway(script) as bench:
        assert (await bench.ask(post(b'{"model":"m","stream":true}'))).status == 400
        assert (bench.access.first_tokens, bench.access.ended) == ([], [(1, Outcome.COMPLETED)])


async def test_request_ids_are_generated_forwarded_and_returned() -> None:
    async with running_gateway() as bench:
        first = await bench.ask(post(BODY))
        second = await bench.ask(post(BODY, "X-Request-Id: not sane \u0020{}"))
        ids = [first.get("x-request-id"), second.get("x-request-id")]
        assert ids[0] != ids[1]
        assert None not in ids
        assert [seen.get("x-request-id") for seen in bench.engine.seen] == ids


async def test_connections_are_kept_alive_on_both_sides() -> None:
    async with running_gateway() as bench:
        client = await bench.client()
        for _ in range(3):
            client.send(post(BODY))
            assert (await client.answer()).body == BODY
        assert len(bench.engine.connections) == 1
        assert bench.engine.connections[0].requests == 3
        assert bench.gateway.statistics.engine_connections_opened == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running_gateway() as bench:
        client = await bench.client()
        bodies = [b'{"model":"m","n":%d}' % number for number in range(5)]
        client.send(b"".join(post(body) + get("/health") for body in bodies))
        for body in bodies:
            assert (await client.answer()).body == body
            assert (await client.answer()).body == b'{"status":"ok"}'


async def test_stream_reaches_the_client_chunk_by_chunk() -> None:
    go_on = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        engine.chunk(b"data: 1\n\n")
        await go_on.wait()
        engine.chunk(b"data: [DONE]\n\n")
        engine.end_stream()

    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(post(BODY))
        head = await client.read_head()
        assert head.get("transfer-encoding") == b"chunked"
        assert await client.chunk() == b"data: 1\n\n"
        assert bench.access.ended == []
        go_on.set()
        assert await client.chunk() == b"data: [DONE]\n\n"
        assert await client.chunk() == b""
        client.send(get("/health"))
        assert (await client.answer()).status == 200


async def test_chunked_request_is_forwarded_with_its_length() -> None:
    async with running_gateway() as bench:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        client = await bench.client()
        for _ in range(2):
            client.send(head + b'9;x=y\r\n{"model":\r\n4\r\n"m"}\r\n0\r\nTrailer: 1\r\n\r\n')
            assert (await client.answer()).body == b'{"model":"m"}'
        assert bench.engine.seen[0].get("content-length") == b"13"
        assert bench.engine.seen[0].get("transfer-encoding") is None


async def test_large_bodies_in_both_directions() -> None:
    body = json.dumps({"model": "m", "x": "y" * 5_000_000}).encode()
    async with running_gateway() as bench:
        answer = await bench.ask(post(body))
        assert answer.body == body
        assert bench.engine.seen[0].body == body


async def test_http10_client_gets_a_decoded_answer_that_ends_with_the_connection() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        engine.chunk(b"data: 1\n\n")
        engine.chunk(b"data: [DONE]\n\n")
        engine.end_stream()

    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(
            b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(BODY), BODY)
        )
        answer = await client.answer()
        assert answer.get("transfer-encoding") is None
        assert answer.get("connection") == b"close"
        assert answer.body == b"data: 1\n\ndata: [DONE]\n\n"
        assert len(bench.engine.connections) == 1


async def test_interim_answers_are_skipped_and_answers_without_body_end_at_once() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        engine.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with running_gateway(script) as bench:
        client = await bench.client()
        for _ in range(2):
            client.send(post(BODY))
            answer = await client.answer()
            assert answer.status == 204
            assert answer.get("link") is None
        assert len(bench.engine.connections) == 1


async def test_answer_to_a_head_request_has_no_body() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.send(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 31\r\n\r\n")

    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(get("/v1/something", "model-override: m", method="HEAD"))
        answer = await client.answer(to_head=True)
        assert (answer.status, answer.get("content-length")) == (405, b"31")
        client.send(get("/health", method="HEAD"))
        answer = await client.answer(to_head=True)
        assert (answer.status, answer.get("content-length")) == (200, b"15")
        client.send(get("/nowhere", method="HEAD"))
        assert (await client.answer(to_head=True)).status == 404
        client.send(get("/health"))
        assert (await client.answer()).body == b'{"status":"ok"}'


async def test_answer_without_framing_ends_with_the_connection() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.send(b"HTTP/1.0 200 OK\r\n\r\nall ", b"of it")
        engine.writer.close()

    async with running_gateway(script) as bench:
        answer = await bench.ask(post(BODY))
        assert answer.start == b"HTTP/1.1 200 OK"
        assert answer.get("connection") == b"close"
        assert answer.body == b"all of it"
        assert bench.access.ended == [(1, Outcome.COMPLETED)]


async def test_expect_continue_is_answered() -> None:
    async with running_gateway() as bench:
        client = await bench.client()
        request = post(BODY, "Expect: 100-continue")
        client.send(request.removesuffix(BODY))
        assert (await client.read_head()).start == b"HTTP/1.1 100 Continue"
        client.send(BODY)
        assert (await client.answer()).body == BODY


async def test_connection_close_is_honoured() -> None:
    async with running_gateway() as bench:
        client = await bench.client()
        client.send(post(BODY, "Connection: close"))
        answer = await client.answer()
        assert answer.get("connection") == b"close"
        assert await client.rest() == b""


async def test_waiting_request_is_served_when_its_model_is_awake() -> None:
    async with running_gateway() as bench:
        client = await bench.client()
        body = b'{"model":"cold"}'
        client.send(post(body))
        await bench.access.until(lambda: len(bench.access.waiting) == 1)
        assert bench.access.asked[0].request.size_bytes >= len(body)
        bench.access.awake["cold"] = bench.engine.upstream
        bench.access.queue_seconds, bench.access.switch_seconds = 3.0, 2.0
        bench.access.admit(1)
        answer = await client.answer()
        assert (answer.body, answer.get("x-llmux-switch-ms")) == (body, b"2000")


async def test_get_does_not_wake() -> None:
    async with running_gateway() as bench:
        answer = await bench.ask(get("/v1/responses/1", "model-override: cold"))
        assert answer.status == 503
        assert json.loads(answer.body)["error"]["code"] == "model_not_loaded"
        assert bench.access.asked[0].request.may_wake is False
        assert (await bench.ask(get("/v1/responses/1", "model-override: m"))).status == 200


async def test_local_answers() -> None:
    routes = LocalRoutes(
        ready=lambda: LocalAnswer(b"not yet", status=503, content_type="text/plain"),
        models=lambda: LocalAnswer(b"[1]"),
        model=lambda name: LocalAnswer(name.encode()) if name == "org/m" else None,
    )
    async with running_gateway(options=GatewayOptions(local_routes=routes)) as bench:
        client = await bench.client()
        expected = [
            ("/ready", 503, b"not yet"),
            ("/v1/models", 200, b"[1]"),
            ("/models?x=1", 200, b"[1]"),
            ("/v1/models/org/m", 200, b"org/m"),
            ("/v1/models/org/n", 404, None),
            ("/health", 200, b'{"status":"ok"}'),
        ]
        for path, status, body in expected:
            client.send(get(path))
            answer = await client.answer()
            assert answer.status == status
            assert body is None or answer.body == body
        client.send(post(b"{}", path="/v1/models"))
        answer = await client.answer()
        assert (answer.status, answer.get("allow")) == (405, b"GET, HEAD")
