"""Serves the control applications on connections that the gateway hands over, and on listeners of their own."""

import asyncio
from collections.abc import Collection

from aiohttp import web
from prometheus_client import CollectorRegistry

from llmux.control.application import add_control, add_metrics, add_page, new_application
from llmux.errors import ListenFailed
from llmux.gateway.pages import PagePolicy
from llmux.runtime.gpu_leases import GpuLeases
from llmux.runtime.operations import Operations

CLOSE_SECONDS = 2.0
"""How long responses under way may take to be written when the server closes."""
KEEP_ALIVE_SECONDS = 75.0
"""nginx's default: longer than a scraper's interval of a minute, so that it keeps its connection."""


class ControlServer:
    """Status page, control routes and metrics. ``start`` must come first and ``close`` last."""

    def __init__(
        self,
        operations: Operations,
        leases: GpuLeases,
        registry: CollectorRegistry,
        admin_key: str | None,
        api_keys: Collection[str] = (),
        pages: PagePolicy | None = None,
    ) -> None:
        """``api_keys`` are those of the data plane, and ``pages`` says which web pages may read the metrics port.

        Where there are such keys, the main port's metrics need one, too; the metrics port never does.
        """
        metrics_keys = [*api_keys, *([admin_key] if admin_key is not None else [])] if api_keys else []
        everything = new_application(admin_key, metrics_keys)
        admin, metrics = new_application(admin_key), new_application(None, pages=pages)
        add_control(everything, operations, leases)
        add_metrics(everything, registry)
        add_page(everything)
        add_control(admin, operations, leases)
        add_metrics(metrics, registry)
        self._everything, self._admin, self._metrics = _runner(everything), _runner(admin), _runner(metrics)

    async def start(self) -> None:
        """Get ready for connections that are handed over."""
        await self._everything.setup()

    def protocol_factory(self) -> asyncio.Protocol:
        """A protocol for one connection. The gateway may install it on a connection that it has read a request from."""
        server = self._everything.server
        assert server is not None, "the control server is started before and closed after the gateway"
        return server()

    async def listen_admin(self, host: str, port: int) -> int:
        """Open a listener that serves only ``/control/*``; port 0 picks one. Returns the port. Raises ListenFailed."""
        return await _listen(self._admin, "admin_port", host, port)

    async def listen_metrics(self, host: str, port: int) -> int:
        """Open a listener that serves only ``/metrics``; port 0 picks one. Returns the port. Raises ListenFailed."""
        return await _listen(self._metrics, "metrics_port", host, port)

    async def close(self) -> None:
        """Close all listeners and connections. Commands under way continue; their responses are lost."""
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


async def _listen(runner: web.AppRunner, key: str, host: str, port: int) -> int:
    if runner.server is None:
        await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise ListenFailed(key, host, port, error) from error
    bound_port: int = runner.addresses[-1][1]
    return bound_port
