"""Serves the control applications on connections that the gateway hands over, and on listeners of their own."""

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from llmux.control.early import EarlyConnection, Port
from llmux.errors import ListenFailed
from llmux.gateway.pages import PagePolicy
from llmux.runtime.gpu_leases import GpuLeases
from llmux.runtime.operations import Operations

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from llmux.control.runners import ControlRunners

LISTEN_BACKLOG = 128
"""aiohttp's own: operators and scrapers are few."""


class ControlServer:
    """Status page, control routes and metrics.

    It listens, and takes connections from the gateway, as soon as it is told to; they are answered from ``load`` on,
    which imports the HTTP server: that takes as long as a fifth of all other imports, and no model's client needs it.
    """

    def __init__(
        self,
        operations: Operations,
        leases: GpuLeases,
        new_registry: "Callable[[], CollectorRegistry]",
        admin_key: str | None,
        api_keys: Collection[str] = (),
        pages: PagePolicy | None = None,
    ) -> None:
        """``new_registry`` is called by ``load``, and makes what ``/metrics`` shows.

        ``api_keys`` are those of the data plane, and ``pages`` says which web pages may read the metrics port.

        Where there are such keys, the main port's metrics need one, too; the metrics port never does.
        """

        def make(made: "type[ControlRunners]") -> "ControlRunners":
            return made(operations, leases, new_registry(), admin_key, api_keys, pages)

        self._make: Callable[[type[ControlRunners]], ControlRunners] = make
        self._runners: ControlRunners | None = None
        self._early: list[EarlyConnection] = []
        self._listeners: list[asyncio.Server] = []

    @property
    def waiting_count(self) -> int:
        """How many connections wait for ``load``."""
        return len(self._early)

    async def load(self) -> None:
        """Answer requests, those that have come already first. The import is done in a thread. Raises OSError."""
        runners = self._make(await asyncio.to_thread(_import_runners))
        await runners.start()
        self._runners = runners
        early, self._early = self._early, []
        for connection in early:
            connection.begin(runners.protocol(connection.port))

    def protocol_factory(self) -> asyncio.Protocol:
        """A protocol for one connection. The gateway may install it on a connection that it has read a request from."""
        return self._protocol(Port.MAIN)

    async def listen_admin(self, host: str, port: int) -> int:
        """Open a listener that serves only ``/control/*``; port 0 picks one. Returns the port. Raises ListenFailed."""
        return await self._listen(Port.ADMIN, "admin_port", host, port)

    async def listen_metrics(self, host: str, port: int) -> int:
        """Open a listener that serves only ``/metrics``; port 0 picks one. Returns the port. Raises ListenFailed."""
        return await self._listen(Port.METRICS, "metrics_port", host, port)

    async def close(self) -> None:
        """Close all listeners and connections. Commands under way continue; their responses are lost."""
        for listener in self._listeners:
            listener.close()
        early, self._early = self._early, []
        for connection in early:
            connection.abort()
        if self._runners is not None:
            await self._runners.close()

    def _protocol(self, port: Port) -> asyncio.Protocol:
        if self._runners is not None:
            return self._runners.protocol(port)
        connection = EarlyConnection(port)
        self._early.append(connection)
        return connection

    async def _listen(self, which: Port, key: str, host: str, port: int) -> int:
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(partial(self._protocol, which), host, port, backlog=LISTEN_BACKLOG)
        except OSError as error:
            raise ListenFailed(key, host, port, error) from error
        self._listeners.append(listener)
        bound_port: int = listener.sockets[-1].getsockname()[1]
        return bound_port


def _import_runners() -> "type[ControlRunners]":
    from llmux.control.runners import ControlRunners

    return ControlRunners
