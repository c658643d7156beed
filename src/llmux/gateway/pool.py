"""Connections to engines: kept while idle, newest first, and made when there is none."""

import asyncio
import time
from typing import Protocol

from llmux.access import Upstream
from llmux.gateway.engine_connection import EngineConnection
from llmux.gateway.options import GatewayOptions
from llmux.gateway.response_head import HeadReader
from llmux.gateway.statistics import GatewayStatistics


class ConnectionSeeker(Protocol):
    """Whoever asked for a connection that has first to be made."""

    def connected(self, engine: EngineConnection) -> bool:
        """Take the connection; False if it is not wanted any more."""

    def connect_failed(self, reason: str) -> None:
        """There will be none."""


class EnginePool:
    """The connections to one upstream."""

    __slots__ = (
        "_idle",
        "_max_idle",
        "_options",
        "_pools",
        "_statistics",
        "closed",
        "connecting",
        "fixed_headers",
        "heads",
        "open_count",
        "upstream",
    )

    def __init__(self, pools: "EnginePools", upstream: Upstream) -> None:
        options, statistics = pools.options, pools.statistics
        self.upstream = upstream
        self.heads = HeadReader()
        self._pools = pools
        self._max_idle = options.max_idle_per_engine
        self._options = options
        self._statistics = statistics
        self._idle: list[EngineConnection] = []
        self.closed = False
        self.connecting = 0
        self.open_count = 0
        """Connections that exist, idle or in use."""
        host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
        self.fixed_headers = f"host: {host}:{upstream.port}\r\n".encode()
        """The header lines that every request to this engine gets."""
        if upstream.api_key:
            self.fixed_headers += f"authorization: Bearer {upstream.api_key}\r\n".encode()

    @property
    def idle_count(self) -> int:
        """How many connections wait to be used again."""
        return len(self._idle)

    def take(self) -> EngineConnection | None:
        """The idle connection that was used last, if there is one."""
        return self._idle.pop() if self._idle else None

    def put(self, engine: EngineConnection) -> None:
        """Keep a connection whose answer is complete; it is discarded as soon as the engine closes it."""
        idle = self._idle
        if self.closed or len(idle) >= self._max_idle:
            engine.abort()
        else:
            engine.idle_since = self._pools.now
            idle.append(engine)

    def discard(self, engine: EngineConnection) -> None:
        """Forget an idle connection that was closed; nothing happens if it is not here."""
        if engine in self._idle:
            self._idle.remove(engine)

    async def connect(self, seeker: ConnectionSeeker) -> None:
        """Make a connection and give it to ``seeker``, or keep it if it is not wanted any more. Raises nothing."""
        loop = asyncio.get_running_loop()
        self.connecting += 1
        try:
            async with asyncio.timeout(self._options.connect_timeout_seconds):
                _, engine = await loop.create_connection(
                    lambda: EngineConnection(self), self.upstream.host, self.upstream.port
                )
        except TimeoutError:
            self._fail(seeker, "the engine did not accept a connection in time")
        except OSError:
            self._fail(seeker, "the engine does not accept connections")
        else:
            self._statistics.engine_connections_opened += 1
            if not engine.usable:
                self._fail(seeker, "the engine closed a new connection at once")
            elif not seeker.connected(engine):
                engine.become_idle()
        finally:
            self.connecting -= 1

    def _fail(self, seeker: ConnectionSeeker, reason: str) -> None:
        self._statistics.engine_connections_failed += 1
        seeker.connect_failed(reason)

    def expire(self, now: float) -> None:
        """Close connections that have been idle for too long; the oldest are in front."""
        limit = now - self._options.engine_keep_alive_seconds
        expired = 0
        for engine in self._idle:
            if engine.idle_since > limit:
                break
            expired += 1
        if expired:
            old, self._idle = self._idle[:expired], self._idle[expired:]
            for engine in old:
                engine.abort()

    def close(self) -> None:
        """Close all idle connections; those in use are closed when their answers are complete."""
        self.closed = True
        idle, self._idle = self._idle, []
        for engine in idle:
            engine.abort()


class EnginePools:
    """One pool per upstream that was asked for lately."""

    def __init__(self, options: GatewayOptions, statistics: GatewayStatistics) -> None:
        self.options = options
        self.statistics = statistics
        self.now = time.monotonic()
        """The time of the last sweep."""
        self._pools: dict[Upstream, EnginePool] = {}
        self._by_identity: dict[int, EnginePool] = {}
        """The same by ``id(pool.upstream)``: hashing an Upstream costs more than all the rest of finding its pool."""

    def of(self, upstream: Upstream) -> EnginePool:
        """The upstream's pool, made if there is none."""
        pool = self._by_identity.get(id(upstream))
        if pool is None:
            pool = self._pools.get(upstream)
        if pool is None:
            pool = self._pools[upstream] = self._by_identity[id(upstream)] = EnginePool(self, upstream)
        return pool

    def expire(self, now: float) -> None:
        """Close what has been idle for too long, and forget pools without connections."""
        for upstream, pool in list(self._pools.items()):
            pool.expire(now)
            if not pool.open_count and not pool.connecting:
                self._remove(upstream)

    def forget(self, upstream: Upstream) -> None:
        """Close the idle connections to an engine that is about to be stopped or frozen."""
        if upstream in self._pools:
            self._remove(upstream).close()

    def close(self) -> None:
        """Close every idle connection."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        self._by_identity.clear()

    def _remove(self, upstream: Upstream) -> EnginePool:
        pool = self._pools.pop(upstream)
        del self._by_identity[id(pool.upstream)]
        return pool
