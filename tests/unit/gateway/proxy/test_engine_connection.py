"""The order in which requests reach engines."""

import asyncio
import select
import socket

import pytest

from llmux.access import Upstream
from llmux.gateway.http.response_head import ResponseHead
from llmux.gateway.options import GatewayOptions
from llmux.gateway.proxy.engine_connection import EngineConnection
from llmux.gateway.proxy.pool import EnginePools
from llmux.gateway.statistics import GatewayStatistics

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


class Receiver:
    """Expects no answer."""

    def answer_began(self, head: ResponseHead) -> None:
        raise AssertionError

    def answer_ended(self) -> None:
        raise AssertionError

    def engine_lost(self, reason: str) -> None:
        raise AssertionError


async def test_each_request_reaches_its_engine_before_the_next_is_sent() -> None:
    pool = EnginePools(GatewayOptions(), GatewayStatistics()).of(Upstream("127.0.0.1", 1, None))
    loop = asyncio.get_running_loop()
    ours, engines = zip(*(socket.socketpair() for _ in range(8)), strict=True)
    connections = [(await loop.create_connection(lambda: EngineConnection(pool), sock=end))[1] for end in ours]
    arrived = []
    for connection, engine in zip(connections, engines, strict=True):
        connection.send(Receiver(), REQUEST, b"", to_head_request=False)
        arrived.append(select.select([engine], [], [], 0)[0] == [engine] and engine.recv(64) == REQUEST)
    for connection, engine in zip(connections, engines, strict=True):
        connection.abort()
        engine.close()
    assert all(arrived)
