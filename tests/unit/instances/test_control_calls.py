import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llmux.errors import ControlCallFailed
from llmux.instances.control_calls import BODY_SHOWN_BYTES, EngineEndpoints


@pytest.mark.parametrize(("length", "shown"), [(BODY_SHOWN_BYTES, ""), (5000, "... [5000 bytes]")])
async def test_what_an_engine_says_in_an_error_is_shown_up_to_2000_bytes(length: int, shown: str) -> None:
    async def fail(_: web.Request) -> web.Response:
        return web.Response(status=500, text="x" * length)

    application = web.Application()
    application.router.add_post("/sleep", fail)
    async with TestServer(application) as server, aiohttp.ClientSession() as session:
        assert server.port is not None
        with pytest.raises(ControlCallFailed) as failure:
            await EngineEndpoints(session, server.port).post("/sleep", 5.0)
    assert str(failure.value) == f"POST /sleep: status 500: {'x' * BODY_SHOWN_BYTES}{shown}"
