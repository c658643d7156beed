"""Where the control API is reached: on connections that the gateway hands over, and on listeners of its own."""

import asyncio

from aiohttp import web
from prometheus_client import CollectorRegistry

from llmux.control.application import add_control, add_metrics, add_page, new_application
from llmux.errors import ListenFailed
from llmux.runtime.operations import Operations

CLOSE_SECONDS = 2.0
"""How long answers may take to be written once everything else has ended."""
KEEP_ALIVE_SECONDS = 75.0


class ControlServer:
    """Serves status page, control routes and metrics. ``start`` first, ``close`` last."""

    def __init__(self, operations: Operations, registry: CollectorRegistry, admin_key: str | None) -> None:
        everything, admin, metrics = (new_application(admin_key) for _ in range(3))
        add_control(everything, operations)
        add_metrics(everything, registry)
        add_page(everything)
        add_control(admin, operations)
        add_metrics(metrics, registry)
        self._everything, self._admin, self._metrics = _runner(everything), _runner(admin), _runner(metrics)

    async def start(self) -> None:
        """Make ready for connections that are handed over."""
        await self._everything.setup()

    def protocol_factory(self) -> asyncio.Protocol:
        """A protocol that serves one connection, which may have been another protocol's before."""
        server = self._everything.server
        assert server is not None, "the control server is started before and closed after the gateway"
        return server()

    async def listen_admin(self, host: str, port: int) -> int:
        """Open a listener for ``/control/*`` alone; 0 chooses a port. Returns the port, raises ListenFailed."""
        return await _listen(self._admin, host, port)

    async def listen_metrics(self, host: str, port: int) -> int:
        """Open a listener for ``/metrics`` alone; 0 chooses a port. Returns the port, raises ListenFailed."""
        return await _listen(self._metrics, host, port)

    async def close(self) -> None:
        """Close all listeners and connections; commands under way go on, their answers do not."""
        for runner in (self._admin, self._metrics, self._everything):
            await runner.cleanup()


def _runner(application: web.Application) -> web.AppRunner:
    return web.AppRunner(
        application,
        handle_signals=False,
        access_log=None,
        shutdown_timeout=CLOSE_SECONDS,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
    )


async def _listen(runner: web.AppRunner, host: str, port: int) -> int:
    if runner.server is None:
        await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise ListenFailed(f"{host}:{port}", error.strerror or str(error)) from error
    bound_port: int = runner.addresses[-1][1]
    return bound_port
