"""The control API on real sockets, over the real scheduler and controller with scripted engines."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry

from llmux.control.server import ControlServer
from llmux.core.identifiers import GpuId
from llmux.core.need import Need
from llmux.core.settings import Limits, ModelSpec
from llmux.gateway.metrics import HttpMetrics
from llmux.gateway.options import GatewayOptions
from llmux.gateway.server import Gateway
from tests.support.scripted import Runtime, scripted_runtime

HOST = "127.0.0.1"
DEADLINE_SECONDS = 10.0


@dataclass(slots=True)
class Answer:
    """An HTTP answer that was read to its end; ``document`` is its JSON, if it is JSON."""

    status: int
    headers: Any
    text: str
    document: Any


@dataclass(slots=True)
class ControlApi:
    """The whole behind a gateway's port, and the two listeners that control and metrics may have."""

    runtime: Runtime
    server: ControlServer
    session: aiohttp.ClientSession
    port: int
    admin_port: int
    metrics_port: int

    @property
    def url(self) -> str:
        """Where the gateway listens."""
        return f"http://{HOST}:{self.port}"

    async def call(self, method: str, path: str, *, port: int | None = None, **more: Any) -> Answer:
        """One request, on the gateway's port unless told otherwise."""
        url = f"http://{HOST}:{port or self.port}{path}"
        async with asyncio.timeout(DEADLINE_SECONDS), self.session.request(method, url, **more) as answer:
            text = await answer.text()
            document = await answer.json() if answer.content_type == "application/json" else None
            return Answer(answer.status, answer.headers, text, document)

    async def post(self, path: str, **body: Any) -> Answer:
        """A command that has to be given in a JSON object."""
        return await self.call("POST", f"/control/{path}", json=body)

    async def status(self) -> Any:
        """The status document."""
        answer = await self.call("GET", "/control/status")
        assert answer.status == 200
        return answer.document

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the event loop run until something in this process has become true."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not condition():
                await asyncio.sleep(0)


@asynccontextmanager
async def control_api(
    *specs: ModelSpec,
    admin_key: str | None = None,
    limits: Limits | None = None,
    need_of: Callable[[str, GpuId], Need] | None = None,
    is_loaded: bool = True,
) -> AsyncIterator[ControlApi]:
    """Everything listening on ports of its own; closed at the end. Without ``is_loaded``, nothing is answered yet."""
    async with (
        scripted_runtime(*specs, limits=limits, need_of=need_of) as runtime,
        asyncio.TaskGroup() as tasks,
        aiohttp.ClientSession() as session,
    ):
        registry = CollectorRegistry()
        registry.register(runtime.metrics)
        server = ControlServer(runtime.operations, runtime.gpu_leases, lambda: registry, admin_key)
        if is_loaded:
            await server.load()
        options = GatewayOptions(control_protocol_factory=server.protocol_factory)
        gateway = Gateway(runtime.access, options, tasks.create_task)
        registry.register(HttpMetrics(gateway.statistics))
        try:
            yield ControlApi(
                runtime,
                server,
                session,
                await gateway.listen(HOST, 0),
                await server.listen_admin(HOST, 0),
                await server.listen_metrics(HOST, 0),
            )
        finally:
            await gateway.close(DEADLINE_SECONDS)
            await server.close()
