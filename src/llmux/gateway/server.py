"""The gateway: its listeners, its sweep for deadlines, and its end."""

import asyncio
import contextlib
import time

from llmux.access import ModelAccess, Upstream
from llmux.gateway.client_connection import ClientConnection
from llmux.gateway.options import GatewayOptions
from llmux.gateway.pool import EnginePools
from llmux.gateway.state import GatewayState, Spawn
from llmux.gateway.statistics import GatewayStatistics

_BACKLOG = 4096
_MIN_SWEEP_SECONDS = 0.01
_MAX_SWEEP_SECONDS = 1.0
_ABORT_SECONDS = 1.0
"""How long the event loop may take to report aborted connections as closed."""


class Gateway:
    """Accepts clients on any number of listeners and serves them by leases of the access.

    ``spawn`` runs a coroutine as a task of the server's TaskGroup; the coroutines never raise. Make it inside a
    running event loop.
    """

    def __init__(self, access: ModelAccess, options: GatewayOptions, spawn: Spawn) -> None:
        self.statistics = GatewayStatistics()
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._pools = EnginePools(options, self.statistics)
        self._state = GatewayState(access, options, spawn, self._pools, self.statistics, self._emptied)
        self._servers: list[asyncio.Server] = []
        self._empty = asyncio.Event()
        shortest = min(
            options.head_timeout_seconds,
            options.body_idle_timeout_seconds,
            options.keep_alive_seconds,
            options.client_stall_timeout_seconds,
            options.linger_seconds,
            options.engine_keep_alive_seconds,
            options.keepalive_seconds,
        )
        self._sweep_seconds = min(_MAX_SWEEP_SECONDS, max(_MIN_SWEEP_SECONDS, shortest / 4))
        self._sweep_timer = self._loop.call_later(self._sweep_seconds, self._sweep)

    @property
    def connection_count(self) -> int:
        """How many clients are connected (those of the control plane not counted)."""
        return len(self._state.connections)

    async def listen(self, host: str, port: int) -> int:
        """Open a listener; port 0 chooses a free one. Returns the port; raises OSError."""
        server = await self._loop.create_server(self._accept, host, port, backlog=_BACKLOG)
        self._servers.append(server)
        bound_port: int = server.sockets[0].getsockname()[1]
        return bound_port

    def forget_upstream(self, upstream: Upstream) -> None:
        """Close the idle connections to an engine that is about to be frozen, dumped or stopped."""
        self._pools.forget(upstream)

    def stop_accepting(self) -> None:
        """Close the listeners and all idle connections; requests in progress go on, each the last on its connection."""
        self._state.stopping = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        for connection in list(self._state.connections):
            connection.close_if_idle()

    async def close(self, deadline_seconds: float) -> None:
        """Stop accepting, wait for the requests in progress, and after the deadline cut off those that are left."""
        self.stop_accepting()
        try:
            await self._until_empty(deadline_seconds)
        finally:
            for connection in list(self._state.connections):
                connection.abort()
            self._pools.close()
            self._sweep_timer.cancel()
        await self._until_empty(_ABORT_SECONDS)
        if self._options.access_log is not None:
            self._options.access_log.flush()

    async def _until_empty(self, limit_seconds: float) -> None:
        if self._state.connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_seconds):
                    await self._empty.wait()

    def _accept(self) -> ClientConnection:
        return ClientConnection(self._state)

    def _emptied(self) -> None:
        self._empty.set()

    def _sweep(self) -> None:
        now = self._state.now = self._pools.now = time.monotonic()
        for connection in [one for one in self._state.connections if one.deadline < now]:
            connection.time_out()
        for exchange in list(self._state.frozen):
            exchange.keep_alive(now)
        if self._options.access_log is not None:
            self._options.access_log.flush()
        self._pools.expire(now)
        self._sweep_timer = self._loop.call_later(self._sweep_seconds, self._sweep)
