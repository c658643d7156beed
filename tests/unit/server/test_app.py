"""The server's start, in this process."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from llmux.config.load import loads
from llmux.control.server import ControlServer
from llmux.instances.control_calls import ControlSession
from llmux.server import app
from llmux.server.app import Server

DEADLINE_SECONDS = 30.0
CONFIGURATION = """
models: {{m: {{model_path: simulated/m, eviction: retain+stop}}}}
port: 0
metrics_port: 0
share_gpus: false
cache_dir: {cache}
"""


async def test_it_serves_and_is_not_ready_while_the_control_plane_is_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    may_load = asyncio.Event()
    load = ControlServer.load

    async def load_late(control: ControlServer) -> None:
        await may_load.wait()
        await load(control)

    monkeypatch.setattr(ControlServer, "load", load_late)
    # It would change how the process of all tests collects its garbage.
    monkeypatch.setattr(app, "_collect_garbage_rarely", lambda: None)
    settings = loads(CONFIGURATION.format(cache=tmp_path)).settings
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as tasks, ControlSession() as session:
        server = Server(settings, tasks.create_task, session)
        start = tasks.create_task(server.start())
        while not server.port:
            await asyncio.sleep(0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:

            async def status(path: str) -> int:
                async with client.get(path) as answer:
                    return answer.status

            assert [await status(path) for path in ("/health", "/v1/models", "/ready")] == [200, 200, 503]
            assert not start.done()
            metrics = asyncio.ensure_future(status("/metrics"))  # noqa: TID251 - a client of its own
            may_load.set()
            await start
            assert [await metrics, await status("/ready"), await status("/control/status")] == [200] * 3
        server.begin_shutdown(0.0)
        await server.controller.wait_stopped()
        await server.close()
