"""The control applications, each on a server of aiohttp's. ``ControlServer`` imports this module when llmux listens."""

import asyncio
from collections.abc import Collection

from aiohttp import web
from prometheus_client import CollectorRegistry

from llmux.control.application import add_control, add_metrics, add_page, new_application
from llmux.control.early import Port
from llmux.gateway.pages import PagePolicy
from llmux.runtime.gpu_leases import GpuLeases
from llmux.runtime.operations import Operations

CLOSE_SECONDS = 2.0
"""How long responses under way may take to be written when the server closes."""
KEEP_ALIVE_SECONDS = 75.0
"""nginx's default: longer than a scraper's interval of a minute, so that it keeps its connection."""


class ControlRunners:
    """What answers on each port. ``start`` must come first and ``close`` last."""

    def __init__(
        self,
        operations: Operations,
        leases: GpuLeases,
        registry: CollectorRegistry,
        admin_key: str | None,
        api_keys: Collection[str],
        pages: PagePolicy | None,
    ) -> None:
        metrics_keys = [*api_keys, *([admin_key] if admin_key is not None else [])] if api_keys else []
        everything = new_application(admin_key, metrics_keys)
        admin, metrics = new_application(admin_key), new_application(None, pages=pages)
        add_control(everything, operations, leases)
        add_metrics(everything, registry)
        add_page(everything)
        add_control(admin, operations, leases)
        add_metrics(metrics, registry)
        self._runners = {
            Port.MAIN: _runner(everything),
            Port.ADMIN: _runner(admin),
            Port.METRICS: _runner(metrics),
        }

    async def start(self) -> None:
        """Get ready for connections."""
        for runner in self._runners.values():
            await runner.setup()

    def protocol(self, port: Port) -> asyncio.Protocol:
        """A protocol for one connection to a port."""
        server = self._runners[port].server
        assert server is not None, "started before and closed after the listeners"
        return server()

    async def close(self) -> None:
        """Close all connections. Commands under way continue; their responses are lost."""
        for runner in self._runners.values():
            await runner.cleanup()


def _runner(application: web.Application) -> web.AppRunner:
    return web.AppRunner(
        application,
        handle_signals=False,
        access_log=None,
        shutdown_timeout=CLOSE_SECONDS,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
    )
