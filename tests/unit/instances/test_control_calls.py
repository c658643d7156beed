import asyncio
from contextlib import suppress

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llmux.errors import ControlCallFailed
from llmux.instances.control_calls import BODY_SHOWN_BYTES, ControlSession, EngineEndpoints


@pytest.mark.parametrize(("length", "shown"), [(BODY_SHOWN_BYTES, ""), (5000, "... [5000 bytes]")])
async def test_what_an_engine_says_in_an_error_is_shown_up_to_2000_bytes(length: int, shown: str) -> None:
    async def fail(_: web.Request) -> web.Response:
        return web.Response(status=500, text="x" * length)

    application = web.Application()
    application.router.add_post("/sleep", fail)
    async with TestServer(application) as server, ControlSession() as session:
        assert server.port is not None
        with pytest.raises(ControlCallFailed) as failure:
            await EngineEndpoints(session, server.port).post("/sleep", 5.0)
    assert str(failure.value) == f"POST /sleep: status 500: {'x' * BODY_SHOWN_BYTES}{shown}"


async def test_a_connection_is_kept_while_the_engine_runs_and_closed_before_it_leaves() -> None:
    peers: list[object] = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.append(request.transport)
        return web.json_response({})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(application) as server, ControlSession() as session:
        assert server.port is not None
        endpoints = EngineEndpoints(session, server.port)
        await endpoints.get("/health", 5.0)
        await endpoints.get("/health", 5.0)
        assert peers[0] is not peers[1], "an engine that is not known to run yet"
        endpoints.keep_connections()
        peers.clear()
        await endpoints.post("/sleep", 5.0)
        await endpoints.get("/is_sleeping", 5.0)
        await endpoints.get_apart("/health", 5.0)
        endpoints.keep_connections()
        await endpoints.post("/wake_up", 5.0)
        first, second, health, third = peers
        assert first is second is third and health is not first
        await endpoints.close_connections()
        await endpoints.post("/wake_up", 5.0)
        assert peers[-1] is not first
        assert isinstance(first, asyncio.Transport) and first.is_closing()


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "reset"])
async def test_a_call_on_a_kept_connection_that_the_engine_closes_is_made_again(closes: bool) -> None:
    calls: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        with suppress(asyncio.IncompleteReadError):  # the client has closed it
            calls.append(await reader.readuntil(b"\r\n\r\n"))
        if closes:
            writer.close()
        else:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, ControlSession() as session:
        endpoints = EngineEndpoints(session, server.sockets[0].getsockname()[1])
        endpoints.keep_connections()
        assert await endpoints.post("/wake_up", 5.0) == {}
        assert await endpoints.post("/sleep", 5.0) == {}
        assert [call.split()[1] for call in calls] == [b"/wake_up", b"/sleep", b"/sleep"]
        await endpoints.close_connections()


async def test_a_call_whose_own_connection_the_engine_closes_fails() -> None:
    calls = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, ControlSession() as session:
        endpoints = EngineEndpoints(session, server.sockets[0].getsockname()[1])
        endpoints.keep_connections()
        with pytest.raises(ControlCallFailed, match="ServerDisconnectedError"):
            await endpoints.post("/sleep", 5.0)
        assert calls == 2, "once more on a connection of its own, and no more often"
        await endpoints.close_connections()
