"""Models whose engines are of different kinds behind one gateway: paths, fields of heads and bodies, keep-alive."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from llmux.access import Outcome
from llmux.errors import EngineDied
from llmux.gateway import GatewayOptions
from tests.support.access import FakeAccess
from tests.support.engine_rules import ENGINES, OWN
from tests.support.gateway import Bench, EngineSide, Message, echo, get, post, running_gateway

OPTIONS = GatewayOptions(engines=ENGINES, spool_bytes=2_000_000)
BODY = b'{"model":"m"}'


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


def serve_own(bench: Bench) -> None:
    """Let the model ``o`` serve too, as one of the kind with rules; the same program answers."""
    bench.access.awake["o"] = replace(bench.engine.upstream, removed_headers=OWN.rules.removed_headers)
    bench.access.asleep.append("cold-o")


def code(answer: Message) -> str:
    return str(json.loads(answer.body)["error"]["code"])


async def test_a_path_of_another_kind_wakes_nothing() -> None:
    async with running_gateway(options=OPTIONS) as bench:
        serve_own(bench)
        for request in (
            post(b'{"model":"cold"}', path="/infill"),
            post(b"{}", path="/upstream/cold/infill"),
            post(b"{}", "model-override: cold", path="/infill"),
            post(b'{"model":"cold-o"}', path="/v1/chat/completions"),
            get("/state?model=cold"),
        ):
            answer = await bench.ask(request)
            assert (answer.status, code(answer)) == (404, "unknown_path")
        assert bench.access.asked == []
        body = b'{"model":"cold-o"}'
        (await bench.client()).send(post(body, path="/infill"))
        await bench.access.until(lambda: len(bench.access.waiting) == 1)
        assert bench.access.asked[0].request.may_wake


async def test_a_get_reaches_the_model_in_the_query_if_it_serves() -> None:
    async with running_gateway(options=OPTIONS) as bench:
        serve_own(bench)
        assert (await bench.ask(get("/state?model=o"))).status == 200
        assert bench.engine.seen[-1].start == b"GET /state?model=o HTTP/1.1"
        answer = await bench.ask(get("/state?model=cold-o"))
        assert (answer.status, code(answer)) == (503, "model_not_loaded")
        answer = await bench.ask(get("/state"))
        assert (answer.status, code(answer)) == (400, "missing_model")
        assert not any(asked.request.may_wake for asked in bench.access.asked)


async def test_one_connection_may_alternate_between_kinds() -> None:
    """The head is always the same, so that it is parsed once; path, header and body are each engine's own."""
    async with running_gateway(options=OPTIONS) as bench:
        serve_own(bench)
        client = await bench.client()
        fields = ("X-Conversation-Id: c", "x-conversation-ID: d", "X-Other: x-conversation-id: e")
        for model, path, ids in (("m", "/v1", [b"c", b"d"]), ("o", "", []), ("o", "", []), ("m", "/v1", [b"c", b"d"])):
            client.send(post(b'{"model":"%b","id_slot":12}' % model.encode(), *fields, path="/embeddings"))
            answer = await client.answer()
            assert answer.body == (b'{"model":"m","id_slot":12}' if model == "m" else b'{"model":"o"}')
            seen = bench.engine.seen[-1]
            assert seen.start == f"POST {path}/embeddings HTTP/1.1".encode()
            assert seen.all("x-conversation-id") == ids
            assert seen.get("x-other") == b"x-conversation-id: e"
            assert seen.get("content-length") == b"%d" % len(answer.body)


@pytest.mark.parametrize("size", [40_000, 1_100_000, 2_100_000])
@pytest.mark.parametrize("field", [rb'"keep_alive":0', rb'"\u006beep_alive" : 0 , "keep_alive":1', b'"KEEP_ALIVE":0'])
async def test_fields_are_removed_from_large_bodies_too(size: int, field: bytes) -> None:
    kept = b'"model":"%b","x":"%b"'
    async with running_gateway(options=OPTIONS) as bench:
        serve_own(bench)
        for before, after in ((b"", b"," + field), (field + b",", b"")):
            body = b"{" + before + kept % (b"%b", b"y" * size) + after + b"}"
            answer = await bench.ask(post(body % b"o", path="/infill"))
            assert json.loads(answer.body) == {"model": "o", "x": "y" * size}
            assert bench.engine.seen[-1].get("content-length") == b"%d" % len(answer.body)
            answer = await bench.ask(post(body % b"m", path="/v1/embeddings"))
            assert answer.body == body % b"m"
        body = b'{"model":"other",%b,"x":"%b"}' % (field, b"y" * size)
        answer = await bench.ask(post(body, path="/upstream/o/infill"))
        assert json.loads(answer.body) == {"model": "o", "x": "y" * size}


async def test_a_large_body_that_nobody_can_read_is_passed_on_only_where_no_field_is_removed() -> None:
    options = replace(OPTIONS, inference_paths=("/v1/own",))
    async with running_gateway(options=options) as bench:
        serve_own(bench)
        body = b'{"keep_alive":0}' + b"\0" * 2_000_000
        assert (await bench.ask(post(body, path="/upstream/m/v1/own"))).body == body
        answer = await bench.ask(post(body, path="/upstream/o/v1/own"))
        assert (answer.status, code(answer)) == (400, "invalid_json")


async def test_an_engine_that_closes_idle_connections_soon_costs_no_request() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.answer(request.body)
        asyncio.get_running_loop().call_later(0.1, engine.writer.close)

    async with running_gateway(script) as bench:
        client = await bench.client()
        for number in range(5):
            client.send(post(BODY))
            assert (await client.answer()).body == BODY
            # The end of the connection is on its way while the next request is written.
            await bench.engine.connections[number].closed.wait()
        assert bench.access.given_back == []
        assert [asked.request.attempts for asked in bench.access.asked] == [1] * 5


@pytest.mark.parametrize("announces", [True, False])
async def test_an_engine_that_closes_each_connection_after_some_requests_costs_no_request(announces: bool) -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        is_last = engine.requests == 3
        if engine.requests > 3:
            engine.reset()
            return
        engine.answer(request.body, fields=b"Connection: close\r\n" if is_last and announces else b"")

    async with running_gateway(script) as bench:
        client = await bench.client()
        for _ in range(12):
            client.send(post(BODY))
            assert (await client.answer()).body == BODY
        assert [asked.request.attempts for asked in bench.access.asked] == [1] * 12
        assert bench.access.given_back == []
        assert len(bench.engine.connections) == 4
        assert bench.gateway.statistics.engine_retries == (0 if announces else 3)


async def test_a_request_is_not_repeated_once_any_of_its_answer_has_come() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        if engine.requests == 1:
            engine.answer(request.body)
        else:
            engine.send(b"HTTP/1.1 2")
            engine.writer.close()

    async with running_gateway(script) as bench:
        bench.access.on_give_back = lambda access, number: access.reject(number, EngineDied("m"))
        client = await bench.client()
        client.send(post(BODY))
        await client.answer()
        client.send(post(BODY))
        assert (await client.answer()).status == 502
        assert len(bench.engine.seen) == 2
        assert bench.gateway.statistics.engine_retries == 0


async def test_every_connection_to_an_engine_that_is_to_be_stopped_is_closed() -> None:
    """One belongs to a request that is suspended with the engine: its client is told when the lease is revoked."""

    async def script(request: Message, engine: EngineSide) -> None:
        if request.body == BODY:
            engine.answer(request.body)
            return
        engine.begin_stream()
        engine.chunk(b"data: 1\n\n")
        await engine.until_closed()

    async with running_gateway(script) as bench:
        streaming, unsent = await bench.client(), await bench.client()
        streaming.send(post(b'{"model":"m","stream":true}'))
        await streaming.read_head()
        assert await streaming.chunk() == b"data: 1\n\n"
        await bench.ask(post(BODY))
        await bench.access.until(lambda: bench.access.ended == [(2, Outcome.COMPLETED)])
        bench.access.asked[0].holder.frozen()
        bench.gateway.forget_upstream(bench.engine.upstream)
        await bench.engine.connections[1].closed.wait()
        assert not bench.engine.connections[0].closed.is_set()
        bench.gateway.sever_upstream(bench.engine.upstream)
        await bench.engine.connections[0].closed.wait()
        assert bench.access.given_back == [] and 1 in bench.access.leases
        bench.access.revoke(1, EngineDied("m"))
        assert b'"code":"engine_died"' in await streaming.chunk()
        unsent.send(post(BODY))
        assert (await unsent.answer()).body == BODY


async def test_idle_connections_are_closed_before_a_hasty_engine_closes_them() -> None:
    access = FakeAccess()
    async with running_gateway(echo, access=access) as bench:
        access.awake["m"] = replace(bench.engine.upstream, keep_alive_seconds=0.05)
        for number in range(3):
            assert (await bench.ask(post(BODY))).body == BODY
            async with asyncio.timeout(5):
                await bench.engine.connections[number].closed.wait()
        assert bench.gateway._sweep_seconds < 0.05
