"""A machine that refuses llmux file descriptors: no engine is blamed for it, and none is asked how it is."""

import asyncio
import errno
import json
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from llmux.access import Outcome
from llmux.errors import ControlCallFailed, EngineDied
from llmux.gateway import GatewayOptions
from llmux.instances.control_calls import ControlSession, EngineEndpoints
from llmux.instances.health import Health, check_health
from tests.support.gateway import Bench, Message, RawClient, post, running_gateway
from tests.support.skips import replaces_compiled_code

BODY = b'{"model":"m"}'


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@contextmanager
def no_descriptors() -> Iterator[None]:
    """No file can be opened in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def until_short(bench: Bench, count: int = 1) -> None:
    async with asyncio.timeout(10.0):
        while bench.gateway.statistics.engine_connection_shortages < count:
            await asyncio.sleep(0)


@asynccontextmanager
async def connected(options: GatewayOptions | None = None) -> AsyncIterator[tuple[Bench, RawClient]]:
    """A gateway and a client that has its connection already."""
    async with running_gateway(options=options) as bench:
        client = await bench.client()
        client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer()).status == 200
        yield bench, client
        assert bench.access.given_back == [] and bench.access.reports == []
        assert bench.gateway.statistics.engine_connections_failed == 0


def code(answer: Message) -> str:
    return str(json.loads(answer.body)["error"]["code"])


async def test_a_request_waits_until_there_are_descriptors_again() -> None:
    async with connected() as (bench, client):
        with no_descriptors():
            client.send(post(BODY))
            await until_short(bench, 2)
        assert (await client.answer()).body == BODY
        assert bench.access.asked[0].request.attempts == 1
        assert bench.access.ended == [(1, Outcome.COMPLETED)]


async def test_a_request_takes_a_connection_that_becomes_idle_meanwhile() -> None:
    release = asyncio.Event()

    async def script(request: Message, engine: Any) -> None:
        if len(bench.engine.seen) == 1:
            await release.wait()
        engine.answer(request.body)

    async with running_gateway(script) as bench:
        first, second = await bench.client(), await bench.client()
        for client in (first, second):
            client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            await client.answer()
        first.send(post(BODY))
        await bench.access.until(lambda: len(bench.access.leases) == 1)
        async with asyncio.timeout(10.0):
            while not bench.engine.seen:
                await asyncio.sleep(0)
        with no_descriptors():
            second.send(post(BODY))
            await until_short(bench)
            release.set()
            assert (await second.answer()).body == BODY
        assert len(bench.engine.connections) == 1


async def test_a_lack_that_lasts_is_llmuxs_own_error() -> None:
    async with connected(GatewayOptions(connect_timeout_seconds=0.05)) as (bench, client):
        with no_descriptors():
            client.send(post(BODY))
            answer = await client.answer()
        assert (answer.status, code(answer), answer.get("retry-after")) == (503, "out_of_descriptors", b"1")
        assert "too many open files" in answer.body.decode()
        assert b"ulimit -n" in answer.body and b"max_connections" not in answer.body, "there is no such key"
        assert bench.access.ended == [(1, Outcome.BROKEN)]
        client.send(post(BODY))
        assert (await client.answer()).body == BODY, "the connection goes on"


async def test_a_client_that_leaves_while_descriptors_are_lacking_is_forgotten() -> None:
    async with connected() as (bench, client):
        with no_descriptors():
            client.send(post(BODY))
            await until_short(bench)
            client.writer.close()
            await bench.access.until(lambda: bool(bench.access.ended))
        assert bench.access.ended == [(1, Outcome.CLIENT_GONE)]


@replaces_compiled_code
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL])
async def test_every_kind_of_lack_is_tried_again(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 2
    async with connected() as (bench, client):
        pool = bench.gateway._state.pools.of(bench.engine.upstream)
        open_really = type(pool)._open

        async def open_at_last(self: Any, loop: asyncio.AbstractEventLoop) -> Any:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(number, "lacking")
            return await open_really(self, loop)

        monkeypatch.setattr(type(pool), "_open", open_at_last)
        client.send(post(BODY))
        assert (await client.answer()).body == BODY
        assert bench.gateway.statistics.engine_connection_shortages == 2


@replaces_compiled_code
@pytest.mark.parametrize("times", [2, 1000])
async def test_a_full_queue_of_connections_is_waited_for_and_is_the_engines_fault(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Unix socket refuses at once what a port would let wait."""
    async with running_gateway(options=GatewayOptions(connect_timeout_seconds=0.2)) as bench:
        pool = bench.gateway._state.pools.of(bench.engine.upstream)
        open_really = type(pool)._open

        async def open_at_last(self: Any, loop: asyncio.AbstractEventLoop) -> Any:
            nonlocal times
            times -= 1
            if times >= 0:
                raise BlockingIOError(errno.EAGAIN, "full")
            return await open_really(self, loop)

        monkeypatch.setattr(type(pool), "_open", open_at_last)
        bench.access.on_give_back = lambda access, number: access.reject(number, EngineDied("m"))
        expected = 200 if times < 10 else 502
        assert (await bench.ask(post(BODY))).status == expected
        assert bench.gateway.statistics.engine_connection_shortages == 0
        assert len(bench.access.given_back) == (expected == 502)


async def test_control_calls_are_tried_again_too() -> None:
    async with running_gateway() as bench, ControlSession() as session:
        with no_descriptors():
            assert await check_health(EngineEndpoints(session, bench.engine.port), 0.05) is Health.SILENT
        await session.load()
        endpoints = EngineEndpoints(session, bench.engine.port)
        async with asyncio.TaskGroup() as tasks:
            with no_descriptors():
                call = tasks.create_task(endpoints.get("/is_sleeping", 10.0))
                assert await check_health(endpoints, 0.05) is Health.SILENT
                with pytest.raises(ControlCallFailed, match="Too many open files"):
                    await endpoints.get("/is_sleeping", 0.05)
                assert not call.done() and not bench.engine.seen
        assert len(bench.engine.seen) == 1
