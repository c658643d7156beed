"""Frozen requests: what is relayed, what is withheld, and the comments that a stream's client gets meanwhile."""

import asyncio
from typing import Any

import pytest

from llmux.access import Outcome, RequestHolder
from llmux.errors import EngineDied, Evicted, FailureReason
from llmux.gateway import GatewayOptions
from tests.support.gateway import Bench, EngineSide, Message, RawClient, post, running_gateway

BODY = b'{"model":"m"}'
COMMENT = b": keep-alive\n\n"
OFTEN = GatewayOptions(keepalive_seconds=0.02)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


class Streaming:
    """An engine that begins a stream and then waits for the test."""

    def __init__(self, first: bytes) -> None:
        self.first = first
        self.side: EngineSide | None = None
        self.asked = asyncio.Event()

    async def __call__(self, request: Message, engine: EngineSide) -> None:
        self.side = engine
        if self.first:
            engine.begin_stream()
            engine.chunk(self.first)
        self.asked.set()
        await engine.until_closed()


async def begun(bench: Bench, script: Streaming) -> tuple[RawClient, RequestHolder]:
    """A client in the middle of a stream, and the holder of its lease."""
    client = await bench.client()
    client.send(post(BODY))
    assert (await client.read_head()).status == 200
    assert await client.chunk() == script.first
    return client, bench.access.asked[0].holder


async def nothing_comes(client: RawClient) -> bool:
    """Whether the client gets nothing while the gateway sweeps several times."""
    try:
        async with asyncio.timeout(0.1):
            await client.reader.read(1)
    except TimeoutError:
        return True
    return False


async def test_the_client_of_a_frozen_stream_gets_comments_until_the_thaw() -> None:
    script = Streaming(b"data: one\n\n")
    async with running_gateway(script, options=OFTEN) as bench:
        client, holder = await begun(bench, script)
        holder.frozen()
        assert await client.chunk() == COMMENT
        assert await client.chunk() == COMMENT
        assert script.side is not None
        script.side.chunk(b"data: two\n\n")
        while (piece := await client.chunk()) == COMMENT:
            pass
        assert piece == b"data: two\n\n", "what the engine sends before the wake is relayed"
        holder.held()
        holder.thawed()
        script.side.chunk(b"data: [DONE]\n\n")
        script.side.end_stream()
        while (piece := await client.chunk()) == COMMENT:
            pass
        assert piece == b"data: [DONE]\n\n"
        assert await client.chunk() == b""
        assert bench.access.ended == [(1, Outcome.COMPLETED)]


async def test_no_comment_in_the_middle_of_an_event() -> None:
    script = Streaming(b"data: half an ev")
    async with running_gateway(script, options=OFTEN) as bench:
        client, holder = await begun(bench, script)
        holder.frozen()
        assert await nothing_comes(client)
        assert script.side is not None
        script.side.chunk(b"ent\n\n")
        assert await client.chunk() == b"ent\n\n"
        assert await client.chunk() == COMMENT
        await client.close()
        await bench.access.until(lambda: bench.access.ended == [(1, Outcome.CLIENT_GONE)])


async def test_nothing_is_relayed_between_the_wake_and_the_thaw() -> None:
    script = Streaming(b"data: one\n\n")
    async with running_gateway(script) as bench:
        client, holder = await begun(bench, script)
        holder.frozen()
        holder.held()
        assert script.side is not None
        script.side.chunk(b"data: garbage?\n\n")
        assert await nothing_comes(client)
        holder.revoked(EngineDied("m", FailureReason("it answers differently")))
        bench.access.leases.clear()
        rest = await client.rest()
        assert b"garbage" not in rest
        assert b'"code":"engine_died"' in rest and b"[DONE]" not in rest


async def test_a_whole_answer_is_withheld_until_the_thaw() -> None:
    script = Streaming(b"")
    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(post(BODY))
        await script.asked.wait()
        holder = bench.access.asked[0].holder
        holder.frozen()
        holder.held()
        assert script.side is not None
        script.side.answer(b"whole")
        assert await nothing_comes(client)
        holder.thawed()
        assert (await client.answer()).body == b"whole"


async def test_a_server_error_is_withheld_until_the_thaw() -> None:
    script = Streaming(b"")
    async with running_gateway(script) as bench:
        bench.access.alive = None
        client = await bench.client()
        client.send(post(BODY))
        await script.asked.wait()
        assert script.side is not None
        script.side.answer(b"busy", status="503 Service Unavailable")
        await bench.access.until(lambda: bool(bench.access.reports))
        holder = bench.access.asked[0].holder
        holder.frozen()
        holder.held()
        bench.access.reports[0](True)
        assert await nothing_comes(client)
        holder.thawed()
        answer = await client.answer()
        assert (answer.status, answer.body) == (503, b"busy")


async def test_a_request_not_sent_before_the_freeze_is_sent_after_the_thaw() -> None:
    async def answer(request: Message, engine: EngineSide) -> None:
        engine.answer(b"after the thaw")

    async with running_gateway(answer) as bench:
        client = await bench.client()
        bench.access.on_acquire = lambda access, number: freeze_at_once(bench, number)
        client.send(post(BODY))
        await bench.access.until(lambda: bool(bench.access.leases))
        assert await nothing_comes(client)
        assert bench.engine.seen == [], "a request was sent to an engine that sleeps"
        bench.access.asked[0].holder.thawed()
        assert (await client.answer()).body == b"after the thaw"


def freeze_at_once(bench: Bench, number: int) -> bool:
    bench.access.waiting[number] = bench.access.asked[number - 1]
    bench.access.admit(number)
    bench.access.asked[number - 1].holder.frozen()
    return True


async def test_a_request_that_has_ended_gets_no_comments() -> None:
    script = Streaming(b"data: one\n\n")
    async with running_gateway(script, options=OFTEN) as bench:
        _, holder = await begun(bench, script)
        holder.frozen()
        holder.revoked(Evicted("m"))
        bench.access.leases.clear()
        holder.thawed()
        assert not bench.gateway._state.frozen, "a request that has ended is not kept alive"


async def test_a_request_that_is_given_back_while_frozen_starts_anew() -> None:
    """A dying engine answers 500; the request is frozen during the health check, which then finds the engine dead."""

    async def script(request: Message, engine: EngineSide) -> None:
        if len(bench.engine.seen) == 1:
            engine.answer(b"dying", status="500 Internal Server Error")
        else:
            engine.answer(b"from the next engine")

    async with running_gateway(script) as bench:
        bench.access.alive = None
        bench.access.on_give_back = lambda access, number: access.admit(number)
        client = await bench.client()
        client.send(post(BODY))
        await bench.access.until(lambda: bool(bench.access.reports))
        bench.access.asked[0].holder.frozen()
        bench.access.asked[0].holder.held()
        bench.access.reports[0](False)
        assert (await client.answer()).body == b"from the next engine"


async def test_a_request_whose_connection_fails_while_frozen_starts_anew() -> None:
    async def answer(request: Message, engine: EngineSide) -> None:
        engine.answer(b"at last")

    async with running_gateway(answer) as bench:
        bench.engine.stop()
        client = await bench.client()
        bench.access.on_acquire = lambda access, number: freeze_at_once(bench, number)
        client.send(post(BODY))
        await bench.access.until(lambda: bool(bench.access.given_back))
        await bench.engine.start()
        bench.access.admit(1)
        assert (await client.answer()).body == b"at last"
