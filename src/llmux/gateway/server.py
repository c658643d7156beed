"""The gateway: its listeners, its periodic sweep for deadlines, and its shutdown."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llmux.access import ModelAccess, Upstream
from llmux.gateway.options import GatewayOptions
from llmux.gateway.pieces import TakingTurns
from llmux.gateway.proxy.client_connection import ClientConnection
from llmux.gateway.proxy.pool import EnginePools
from llmux.gateway.proxy.turns import Turns
from llmux.gateway.state import GatewayState, Spawn
from llmux.gateway.statistics import GatewayStatistics

_LISTEN_BACKLOG = 4096
"""Clients that connect at once must not be refused; the kernel caps it at net.core.somaxconn (4096 by default)."""
_THREADS_AT_ONCE = 2
"""Large bodies are read by so many at a time; more would only take turns on the interpreter's lock."""
_THREADS = 16
"""So many take turns, so that nobody waits for the end of the largest: by default 8 of these may be under way."""
_SWEEPS_PER_LIMIT = 4
"""A deadline is then noticed at most a quarter of the shortest limit late."""
_MIN_SWEEP_SECONDS = 0.01
_MAX_SWEEP_SECONDS = 1.0
_PAUSE_SECONDS = 2.0
"""A sweep that comes so much too late shows that llmux itself was stopped (SIGSTOP, a paused virtual machine)."""
_ABORT_SECONDS = 1.0
"""How long to wait for the event loop to report aborted connections as closed."""


class Gateway:
    """Accepts clients on any number of listeners and serves each request under a lease of ``access``.

    ``spawn`` runs a coroutine as a task of the server's TaskGroup; these coroutines never raise. To be constructed
    inside a running event loop.
    """

    def __init__(self, access: ModelAccess, options: GatewayOptions, spawn: Spawn) -> None:
        self.statistics = GatewayStatistics()
        self._loop = asyncio.get_running_loop()
        turns = Turns(self._loop.call_soon)
        self._pools = EnginePools(options, self.statistics, turns)
        self._empty = asyncio.Event()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="llmux-gateway")
        self._thread_turns = TakingTurns(_THREADS_AT_ONCE)
        self._state = GatewayState(
            access, options, spawn, self._pools, self.statistics, self._empty.set, turns, self._run_in_thread
        )
        self._servers: list[asyncio.Server] = []
        shortest = min(
            options.head_timeout_seconds,
            options.body_idle_timeout_seconds,
            options.client_keep_alive_seconds,
            options.client_stall_timeout_seconds,
            options.linger_seconds,
            options.keepalive_seconds,
            options.wait_comments_after_seconds,
        )
        self._shortest_limit = shortest
        self._sweep_seconds = self._next_sweep_seconds()
        self._swept_at = time.monotonic()
        self._sweep_timer = self._loop.call_later(self._sweep_seconds, self._sweep)

    @property
    def connection_count(self) -> int:
        """How many clients are connected, without those handed over to the control plane."""
        return len(self._state.connections)

    async def listen(self, host: str, port: int) -> int:
        """Open a listener; port 0 picks a free port. Returns the port; raises OSError."""
        server = await self._loop.create_server(self._accept, host, port, backlog=_LISTEN_BACKLOG)
        self._servers.append(server)
        bound_port: int = server.sockets[0].getsockname()[1]
        return bound_port

    def forget_upstream(self, upstream: Upstream) -> None:
        """Close the idle connections to an engine that is about to be dumped; suspended requests keep theirs."""
        self._pools.forget(upstream)

    def sever_upstream(self, upstream: Upstream) -> None:
        """Close all connections to an engine that is about to be stopped: some do not end before.

        A request that has one left is suspended with the engine, and its lease is revoked when that has ended.
        """
        self._pools.sever(upstream)

    def stop_accepting(self) -> None:
        """Close the listeners and all idle connections; each request in progress is the last on its connection."""
        self._state.stopping = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        for connection in list(self._state.connections):
            connection.close_if_idle()

    async def close(self, deadline_seconds: float) -> None:
        """Stop accepting, let requests in progress end, and after the deadline abort those that remain."""
        self.stop_accepting()
        try:
            await self._until_empty(deadline_seconds)
        finally:
            for connection in list(self._state.connections):
                connection.abort()
            self._pools.close()
            self._sweep_timer.cancel()
            self._threads.shutdown(wait=False, cancel_futures=True)
        await self._until_empty(_ABORT_SECONDS)

    async def _until_empty(self, limit_seconds: float) -> None:
        if self._state.connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_seconds):
                    await self._empty.wait()

    def _run_in_thread(self, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return self._loop.run_in_executor(self._threads, self._thread_turns.run, work, *arguments)

    def _accept(self) -> ClientConnection:
        return ClientConnection(self._state)

    def _next_sweep_seconds(self) -> float:
        shortest = min(self._shortest_limit, self._pools.shortest_keep_alive_seconds)
        return min(_MAX_SWEEP_SECONDS, max(_MIN_SWEEP_SECONDS, shortest / _SWEEPS_PER_LIMIT))

    def _sweep(self) -> None:
        now = time.monotonic()
        # After a pause the event loop runs timers first. What clients have sent meanwhile is to be read before their
        # deadlines count, so this sweep is left out.
        is_late = now - self._swept_at >= self._sweep_seconds + _PAUSE_SECONDS
        self._swept_at = now
        self._sweep_seconds = self._next_sweep_seconds()
        # First, so that an error in a sweep does not end all of them.
        self._sweep_timer = self._loop.call_later(self._sweep_seconds, self._sweep)
        if not is_late:
            self._state.sweep(now)
