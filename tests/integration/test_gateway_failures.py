"""Engines that fail, leases that are revoked, clients that leave."""

import asyncio
import json
import math
from typing import Any

import pytest

from llmux.access import Outcome, Upstream
from llmux.errors import EngineDied, Evicted, QueueTimeout, RequestError, ShuttingDown
from tests.support.access import FakeAccess
from tests.support.bench import eventually
from tests.support.gateway import EngineSide, Message, RawClient, get, post, running_gateway

BODY = b'{"model":"m"}'


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


def grant_again(access: FakeAccess, number: int) -> None:
    access.admit(number)


def refuse_second(access: FakeAccess, number: int) -> None:
    if len(access.given_back) < 2:
        access.admit(number)
    else:
        access.reject(number, EngineDied("m"))


def code(answer: Message) -> str:
    assert answer.get("x-llmux-error") == b"1"
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["code"])


async def cut_off(client: RawClient) -> bytes:
    """What is received before the connection ends, cleanly or not."""
    try:
        return await client.rest()
    except ConnectionError:
        return b""


async def test_request_is_given_back_if_its_engine_dies_without_an_answer() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        if len(bench.engine.seen) == 1:
            engine.reset()
        else:
            engine.answer(b"at last")

    async with running_gateway(script) as bench:
        bench.access.on_give_back = grant_again
        assert (await bench.ask(post(BODY))).body == b"at last"
        assert [request for request, _ in bench.access.given_back] == [1]
        assert bench.engine.seen[1].body == BODY
        assert bench.access.ended == [(1, Outcome.COMPLETED)]


@pytest.mark.parametrize(
    "partial", [b"", b"HTTP/1.1 200 OK\r\nconte", b"HTTP/1.1 100 Continue\r\n\r\n", b"SSH-2.0\r\n\r\n"]
)
async def test_engine_that_dies_twice_is_an_error(partial: bytes) -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.send(partial)
        engine.writer.close()

    async with running_gateway(script) as bench:
        bench.access.on_give_back = refuse_second
        answer = await bench.ask(post(BODY))
        assert (answer.status, code(answer)) == (502, "engine_died")
        assert len(bench.engine.seen) == 2


async def test_request_is_given_back_if_its_engine_cannot_be_reached() -> None:
    async with running_gateway() as bench:
        bench.engine.stop()
        bench.access.on_give_back = refuse_second
        answer = await bench.ask(post(BODY))
        assert answer.status == 502
        assert "Errno" not in answer.body.decode()
        assert "Errno" not in str(bench.access.given_back)
        assert bench.gateway.statistics.engine_connections_failed == 2


async def test_stale_pooled_connection_is_retried_once_under_the_same_lease() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        if engine.requests == 2:
            engine.reset()
        else:
            engine.answer(request.body)

    async with running_gateway(script) as bench:
        client = await bench.client()
        for _ in range(2):
            client.send(post(BODY))
            assert (await client.answer()).body == BODY
        assert len(bench.engine.seen) == 3
        assert bench.access.given_back == []
        assert bench.gateway.statistics.engine_retries == 1


async def test_connection_closed_while_idle_is_not_reused() -> None:
    async with running_gateway() as bench:
        await bench.ask(post(BODY))
        await bench.ask(post(BODY))
        assert len(bench.engine.connections) == 1
        bench.engine.connections[0].writer.close()
        await bench.engine.connections[0].closed.wait()
        assert (await bench.ask(post(BODY))).body == BODY
        assert bench.access.given_back == []


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize(("alive", "expected"), [(True, "bad_gateway"), (False, "engine_died")])
async def test_broken_stream_ends_with_an_error_event_and_not_cleanly(reset: bool, alive: bool, expected: str) -> None:
    go_on = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        engine.chunk(b"data: 1\n\n")
        await go_on.wait()
        if reset:
            engine.reset()
        else:
            engine.writer.close()

    async with running_gateway(script) as bench:
        bench.access.alive = alive
        client = await bench.client()
        client.send(post(BODY))
        await client.read_head()
        assert await client.chunk() == b"data: 1\n\n"
        go_on.set()
        event = (await client.chunk()).strip()
        assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == expected
        assert await client.rest() == b""
        assert bench.access.ended == [(1, Outcome.BROKEN)]


async def test_anthropics_clients_get_errors_in_their_shape() -> None:
    go_on = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        engine.chunk(b"event: ping\ndata: {}\n\n")
        await go_on.wait()
        engine.reset()

    async with running_gateway(script) as bench:
        for request, status, kind in (
            (post(b"{}", path="/v1/messages"), 400, "invalid_request_error"),
            (post(b'{"model":"nobody"}', path="/messages"), 404, "not_found_error"),
            (post(b"{}", path="/upstream/nobody/v1/messages/"), 404, "not_found_error"),
            (get("/v1/messages"), 405, "invalid_request_error"),
        ):
            answer = await bench.ask(request)
            document = json.loads(answer.body)
            assert (answer.status, document["type"], document["error"]["type"]) == (status, "error", kind)
            assert document["request_id"].encode() == answer.get("x-request-id")
        client = await bench.client()
        client.send(post(BODY, path="/v1/messages"))
        head = await client.read_head()
        await client.chunk()
        go_on.set()
        name, data = (await client.chunk()).strip().split(b"\n")
        assert name == b"event: error"
        document = json.loads(data.removeprefix(b"data: "))
        assert (document["error"]["type"], document["request_id"].encode()) == ("api_error", head.get("x-request-id"))


async def test_stream_broken_within_a_chunk_gets_no_error_event() -> None:
    go_on = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        engine.send(b"20\r\ndata: half")
        await go_on.wait()
        engine.writer.close()

    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(post(BODY))
        await client.read_head()
        await client.reader.readexactly(14)
        go_on.set()
        assert await cut_off(client) == b""
        assert bench.access.ended == [(1, Outcome.BROKEN)]


async def test_any_other_broken_answer_is_cut_off() -> None:
    go_on = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        engine.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await go_on.wait()
        engine.writer.close()

    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(post(BODY))
        await client.read_head()
        await client.reader.readexactly(4)
        go_on.set()
        assert await cut_off(client) == b""
        assert bench.access.ended == [(1, Outcome.BROKEN)]


@pytest.mark.parametrize("garbage", [b"zz\r\n", b"+5\r\nhello\r\n", b"5\r\nhelloXX", b"0x5\r\nhello\r\n"])
async def test_malformed_chunk_breaks_the_answer(garbage: bytes) -> None:
    go_on = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        engine.chunk(b"data: 1\n\n")
        await go_on.wait()
        engine.send(garbage)
        await engine.until_closed()

    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(post(BODY))
        await client.read_head()
        assert await client.chunk() == b"data: 1\n\n"
        go_on.set()
        assert b"[DONE]" not in await cut_off(client)
        assert bench.access.ended == [(1, Outcome.BROKEN)]


async def test_server_error_of_a_healthy_engine_is_relayed_unchanged() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.answer(b'{"error":"busy"}', status="503 Service Unavailable")

    async with running_gateway(script) as bench:
        bench.access.alive = None
        client = await bench.client()
        client.send(post(BODY))
        await bench.access.until(lambda: len(bench.access.reports) == 1)
        assert bench.access.ended == []
        bench.access.reports[0](True)
        answer = await client.answer()
        assert (answer.status, answer.body) == (503, b'{"error":"busy"}')
        assert answer.get("x-llmux-error") is None
        client.send(post(BODY))
        await bench.access.until(lambda: len(bench.access.reports) == 2)
        bench.access.reports[1](True)
        assert (await client.answer()).status == 503
        assert len(bench.engine.connections) == 1


async def test_request_is_given_back_after_a_server_error_of_a_dead_engine() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        if len(bench.engine.seen) == 1:
            engine.answer(b"dying", status="500 Internal Server Error")
        else:
            engine.answer(b"at last")

    async with running_gateway(script) as bench:
        bench.access.alive = False
        bench.access.on_give_back = grant_again
        assert (await bench.ask(post(BODY))).body == b"at last"
        assert len(bench.access.given_back) == 1


async def test_late_health_report_is_ignored_after_the_client_left() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.answer(b"dying", status="500 Internal Server Error")

    async with running_gateway(script) as bench:
        bench.access.alive = None
        client = await bench.client()
        client.send(post(BODY))
        await bench.access.until(lambda: len(bench.access.reports) == 1)
        await client.close()
        await bench.access.until(lambda: bench.access.ended == [(1, Outcome.CLIENT_GONE)])
        bench.access.reports[0](False)
        assert bench.access.given_back == []


async def until_sent(request: Message, engine: EngineSide) -> None:
    await engine.until_closed()


@pytest.mark.parametrize(
    ("error", "status"), [(Evicted("m"), 503), (ShuttingDown(), 503), (QueueTimeout("m", 1.0), 504)]
)
async def test_lease_revoked_before_the_answer_ends_in_an_error(error: RequestError, status: int) -> None:
    async with running_gateway(until_sent) as bench:
        client = await bench.client()
        client.send(post(BODY))
        await bench.access.until(lambda: len(bench.access.leases) == 1)
        bench.access.revoke(1, error)
        answer = await client.answer()
        assert answer.status == status
        assert code(answer)
        assert bench.access.ended == []
        client.send(get("/health"))
        assert (await client.answer()).status == 200


async def test_lease_revoked_by_the_engines_death_before_the_answer_is_given_back() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        arrived.set()
        if len(bench.engine.seen) == 1:
            await engine.until_closed()
        else:
            engine.answer(b"at last")

    arrived = asyncio.Event()
    async with running_gateway(script) as bench:
        bench.access.on_give_back = grant_again
        client = await bench.client()
        client.send(post(BODY))
        await arrived.wait()
        bench.access.revoke(1, EngineDied("m"))
        assert (await client.answer()).body == b"at last"


async def test_lease_revoked_within_a_stream_ends_it_with_an_error_event() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        engine.chunk(b"data: 1\n\n")
        await engine.until_closed()
        closed.set()

    closed = asyncio.Event()
    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(post(BODY))
        await client.read_head()
        await client.chunk()
        bench.access.revoke(1, Evicted("m"))
        event = (await client.chunk()).strip()
        assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "evicted"
        assert await client.rest() == b""
        async with asyncio.timeout(5):
            await closed.wait()
        assert bench.access.ended == []


async def leave(client: RawClient, how: str) -> None:
    if how == "reset":
        client.writer.transport.abort()
    else:
        client.writer.close()


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_client_that_leaves_while_queued_cancels_its_request(how: str) -> None:
    async with running_gateway() as bench:
        client = await bench.client()
        client.send(post(b'{"model":"cold"}'))
        await bench.access.until(lambda: len(bench.access.waiting) == 1)
        await leave(client, how)
        await bench.access.until(lambda: bench.access.cancelled == [1])


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("begun", [False, True], ids=["before", "within"])
async def test_client_that_leaves_cancels_the_engines_work(how: str, begun: bool) -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        arrived.set()
        if begun:
            engine.begin_stream()
            engine.chunk(b"data: 1\n\n")
        await engine.until_closed()
        cancelled.set()

    arrived, cancelled = asyncio.Event(), asyncio.Event()
    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(post(BODY))
        await arrived.wait()
        if begun:
            await client.read_head()
            await client.chunk()
        await leave(client, how)
        async with asyncio.timeout(5):
            await cancelled.wait()
        await bench.access.until(lambda: bench.access.ended == [(1, Outcome.CLIENT_GONE)])


async def test_client_that_only_sends_no_more_gets_its_answer() -> None:
    go_on = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        engine.chunk(b"data: 1\n\n")
        await go_on.wait()
        engine.chunk(b"data: [DONE]\n\n")
        engine.end_stream()

    async with running_gateway(script) as bench:
        queued, streaming = await bench.client(), await bench.client()
        queued.send(post(b'{"model":"cold"}'))
        await bench.access.until(lambda: len(bench.access.waiting) == 1)
        streaming.send(post(BODY), get("/health"))
        await streaming.read_head()
        assert await streaming.chunk() == b"data: 1\n\n"
        for client in (queued, streaming):
            client.writer.write_eof()
        assert (await queued.read_head()).status == 100
        assert await streaming.chunk() == b": keep-alive\n\n"
        connections = bench.gateway._state.connections
        await eventually(lambda: all(one.deadline == math.inf for one in connections), "both are taken for alive")
        assert bench.access.cancelled == [] and bench.access.ended == []
        bench.access.awake["cold"] = bench.engine.upstream
        go_on.set()
        bench.access.admit(1)
        assert (await queued.answer()).body == b"data: 1\n\ndata: [DONE]\n\n"
        assert await streaming.chunk() == b"data: [DONE]\n\n"
        assert await streaming.chunk() == b""
        assert (await streaming.answer()).body == b'{"status":"ok"}'
        for client in (queued, streaming):
            assert await client.rest() == b""
        assert [outcome for _, outcome in bench.access.ended] == [Outcome.COMPLETED] * 2


async def test_a_client_of_http10_that_sends_no_more_has_left() -> None:
    """nginx speaks HTTP/1.0 with its servers and closes when its own client has left; no interim answer is possible."""
    async with running_gateway() as bench:
        client = await bench.client()
        client.send(post(b'{"model":"cold"}').replace(b"HTTP/1.1", b"HTTP/1.0"))
        await bench.access.until(lambda: len(bench.access.waiting) == 1)
        client.writer.write_eof()
        await bench.access.until(lambda: bench.access.cancelled == [1])


@pytest.mark.parametrize("sent", [b"", b"GET /hea", post(BODY)[:-3]], ids=["nothing", "a head", "a body"])
async def test_a_request_that_ends_in_its_middle_closes_the_connection(sent: bytes) -> None:
    async with running_gateway() as bench:
        client = await bench.client()
        client.send(sent)
        client.writer.write_eof()
        assert await client.rest() == b""
        assert bench.gateway.connection_count == 0


async def test_client_that_leaves_after_a_give_back_cancels_its_request() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.reset()

    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(post(BODY))
        await bench.access.until(lambda: len(bench.access.given_back) == 1)
        await client.close()
        await bench.access.until(lambda: bench.access.cancelled == [1])
        assert bench.access.ended == []


async def test_idle_connections_can_be_closed_before_an_engine_is_frozen() -> None:
    async with running_gateway() as bench:
        await bench.ask(post(BODY))
        await bench.access.until(lambda: len(bench.access.ended) == 1)
        bench.gateway.forget_upstream(Upstream("127.0.0.1", bench.engine.port))
        await bench.engine.connections[0].closed.wait()
        assert (await bench.ask(post(BODY))).body == BODY
        assert len(bench.engine.connections) == 2


async def test_slow_client_pauses_its_own_stream_only() -> None:
    sent = 0
    stalled = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        nonlocal sent
        if b"quick" in request.body:
            engine.answer(b"quick")
            return
        engine.begin_stream()
        piece = b"x" * 65536
        for _ in range(800):
            engine.chunk(piece)
            sent += len(piece)
            try:
                async with asyncio.timeout(0.5):
                    await engine.writer.drain()
            except TimeoutError:
                stalled.set()
                await engine.writer.drain()
        engine.end_stream()

    async with running_gateway(script) as bench:
        client = await bench.client(buffer_bytes=2**16)
        client.send(post(BODY))
        async with asyncio.timeout(20):
            await stalled.wait()
        assert sent < 40_000_000
        assert (await bench.ask(post(b'{"model":"m","quick":1}'))).body == b"quick"
        await client.read_head()
        received, end = 0, b""
        while not end.endswith(b"\r\n0\r\n\r\n"):
            piece = await client.reader.read(2**18)
            assert piece
            received, end = received + len(piece), (end + piece)[-9:]
        assert received == 800 * (65536 + len(b"10000\r\n\r\n")) + len(b"0\r\n\r\n")
        assert bench.access.ended[-1] == (1, Outcome.COMPLETED)
