"""Connections to engines: an idle one is reused, the most recently used first; without one, a new one is made."""

import asyncio
import errno
import math
import time
from collections.abc import Coroutine
from typing import Protocol

from llmux.access import Remote, Upstream
from llmux.gateway.http.engine_addresses import EngineAddress, RemoteAddress
from llmux.gateway.http.response_head import ResponseHeadReader
from llmux.gateway.options import GatewayOptions
from llmux.gateway.proxy.engine_connection import ConnectionOwner, EngineConnection, SievingConnection
from llmux.gateway.proxy.remote_connection import RemoteConnection
from llmux.gateway.proxy.turns import Turns
from llmux.gateway.statistics import GatewayStatistics
from llmux.os_errors import explain_unreachable, is_own_shortage, reason_of

_FIRST_RETRY_SECONDS = 0.05
_LONGEST_RETRY_SECONDS = 0.5
"""Descriptors may be freed at any moment, but many requests that wait for one must not keep the loop busy."""


class ConnectionSeeker(Protocol):
    """Asked for a connection that had to be made first; ``attempt`` tells it whether it still wants that one."""

    def connected(self, engine: EngineConnection, attempt: int) -> bool:
        """Use the connection made for ``attempt``; returns False if it is not wanted any more."""

    def connect_failed(self, reason: str, attempt: int) -> None:
        """No connection could be made for ``attempt``, which is the engine's fault."""

    def connect_shortage(self, reason: str, attempt: int) -> None:
        """No connection could be made for ``attempt``, because llmux itself lacked the means for too long."""


class EnginePool(ConnectionOwner):
    """The connections to one upstream.

    ``heads`` serves all of them: the heads of one engine's answers repeat each other across its connections.
    """

    __slots__ = (
        "_connecting",
        "_connections",
        "_is_closed",
        "_is_severed",
        "_now",
        "_options",
        "_statistics",
        "address",
        "fixed_headers",
        "idle",
        "upstream",
    )

    def __init__(
        self, upstream: Upstream, options: GatewayOptions, statistics: GatewayStatistics, turns: Turns, now: float
    ) -> None:
        self.upstream = upstream
        self.turns = turns
        self.heads = ResponseHeadReader()
        self._options = options
        self._statistics = statistics
        self.idle: list[EngineConnection] = []
        """The one that was used last stands last, and is to be taken first."""
        self._is_closed = False
        self._is_severed = False
        self._connecting = 0
        self._connections: set[EngineConnection] = set()
        self._now = now
        """The time of the last ``expire``: exact enough for idle times of seconds, and free."""
        host_header = upstream.authority.encode()
        self.address: EngineAddress | RemoteAddress
        if upstream.remote is None:
            self.address = EngineAddress(host_header.lower(), upstream.port if upstream.socket_path is None else None)
        else:
            self.address = RemoteAddress(upstream.host, upstream.port, upstream.remote)
        self.fixed_headers = b"host: %b\r\n" % host_header
        """The header lines that every request to this engine gets."""
        if upstream.api_key and upstream.remote is None:
            self.fixed_headers += f"authorization: Bearer {upstream.api_key}\r\n".encode()

    @property
    def is_unused(self) -> bool:
        """Whether no connection exists, idle or in use, and none is being made."""
        return not self._connections and not self._connecting

    def take(self) -> EngineConnection | None:
        """The idle connection that was used last, or None."""
        return self.idle.pop() if self.idle else None

    def connect(self, seeker: ConnectionSeeker, attempt: int) -> Coroutine[object, object, None]:
        """Make a connection for ``attempt`` and give it to ``seeker``, or keep it if it is not wanted any more.

        Raises nothing: a failure is reported to ``seeker``. The pool is in use from this call on, not only from the
        coroutine's first step: a sweep in between would drop it, and then nobody could close the connection.
        """
        self._connecting += 1
        return self._connect(seeker, attempt)

    async def _connect(self, seeker: ConnectionSeeker, attempt: int) -> None:
        try:
            engine = await self._find()
        except TimeoutError:
            self._fail(seeker, attempt, "the engine did not accept a connection in time")
        except OSError as error:
            if is_own_shortage(error):
                seeker.connect_shortage(reason_of(error), attempt)
            elif self.upstream.remote is None:
                self._fail(seeker, attempt, "the engine does not accept connections")
            else:
                self._fail(seeker, attempt, "; ".join(explain_unreachable(error)))
        else:
            if not engine.usable:
                self._fail(seeker, attempt, "the engine closed a new connection at once")
            elif not seeker.connected(engine, attempt):
                engine.become_idle()
        finally:
            self._connecting -= 1

    async def _find(self) -> EngineConnection:
        """Open a connection, or, while that fails for the moment, take one that has become idle.

        Raises OSError, or TimeoutError if the engine does not accept it in time.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._options.connect_timeout_seconds
        wait_seconds = _FIRST_RETRY_SECONDS
        while True:
            try:
                async with asyncio.timeout(self._options.connect_timeout_seconds):
                    engine = await self._open(loop)
            except OSError as error:
                is_shortage = is_own_shortage(error)
                self._statistics.engine_connection_shortages += is_shortage
                # A Unix socket, other than a port, refuses at once while the engine's queue of connections is full.
                if not (is_shortage or error.errno == errno.EAGAIN) or loop.time() >= give_up_at:
                    raise
            else:
                self._statistics.engine_connections_opened += 1
                return engine
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, _LONGEST_RETRY_SECONDS)
            idle = self.take()
            if idle is not None and idle.usable:
                return idle

    async def _open(self, loop: asyncio.AbstractEventLoop) -> EngineConnection:
        upstream = self.upstream
        if upstream.remote is not None:
            return await self._open_remote(loop, upstream.remote)
        if upstream.socket_path is None:
            _, engine = await loop.create_connection(self._new_connection, upstream.host, upstream.port)
        else:
            _, engine = await loop.create_unix_connection(self._new_connection, upstream.socket_path)
        return engine

    def _new_connection(self) -> EngineConnection:
        removed = self.upstream.removed_headers
        return SievingConnection(self, removed) if removed else EngineConnection(self)

    async def _open_remote(self, loop: asyncio.AbstractEventLoop, remote: Remote) -> EngineConnection:
        upstream = self.upstream
        _, engine = await loop.create_connection(
            lambda: RemoteConnection(self, remote, upstream.api_key),
            upstream.host,
            upstream.port,
            ssl=remote.tls,
            # The server's name, by which it chooses its certificate, and which that is verified for.
            server_hostname=None if remote.tls is None else upstream.host,
        )
        return engine

    def _fail(self, seeker: ConnectionSeeker, attempt: int, reason: str) -> None:
        self._statistics.engine_connections_failed += 1
        seeker.connect_failed(reason, attempt)

    def expire(self, now: float) -> None:
        """Close connections that have been idle for too long."""
        self._now = now
        limit = now - self.upstream.keep_alive_seconds
        expired = 0
        # Ordered by the start of their idleness: each is appended when it becomes idle.
        for engine in self.idle:
            if engine.idle_since > limit:
                break
            expired += 1
        if expired:
            old, self.idle = self.idle[:expired], self.idle[expired:]
            for engine in old:
                engine.abort()

    def close(self) -> None:
        """Close all idle connections, and from now on each of the others when its answer is complete."""
        self._is_closed = True
        idle, self.idle = self.idle, []
        for engine in idle:
            engine.abort()

    def sever(self) -> None:
        """Close all connections, those in use and those still being made too; their users are not told."""
        self._is_severed = True
        self.close()
        for engine in list(self._connections):
            engine.abort()

    # Called by the connections.

    def opened(self, engine: EngineConnection) -> None:
        self._connections.add(engine)
        if self._is_severed:
            engine.abort()

    def closed(self, engine: EngineConnection) -> None:
        self._connections.discard(engine)

    def put(self, engine: EngineConnection) -> None:
        idle = self.idle
        if self._is_closed or len(idle) >= self._options.max_idle_per_engine:
            engine.abort()
        else:
            engine.idle_since = self._now
            idle.append(engine)

    def discard(self, engine: EngineConnection) -> None:
        # Not found where it was closed before the event loop reported its end.
        if engine in self.idle:
            self.idle.remove(engine)


class EnginePools:
    """The pools of all engines, made when first asked for.

    Pools are found by the identity of the ``Upstream`` object (an instance keeps one, and changes it when it changes
    its port): hashing an ``Upstream`` by value costs 0.45 µs, its ``id`` 0.17 µs (Python 3.11), once per request. An
    equal object would merely get a pool of its own.
    """

    def __init__(self, options: GatewayOptions, statistics: GatewayStatistics, turns: Turns) -> None:
        self._options = options
        self._statistics = statistics
        self._turns = turns
        self._now = time.monotonic()
        self._pools: dict[int, EnginePool] = {}
        """By ``id(pool.upstream)``, which stays unique because the pool keeps that object alive."""
        self._forgotten: list[EnginePool] = []
        """Those of engines that have left, as long as requests that are suspended with them have connections."""
        self.shortest_keep_alive_seconds = math.inf
        """Of all engines that have been spoken to."""

    def of(self, upstream: Upstream) -> EnginePool:
        """The upstream's pool, made if there is none."""
        pool = self._pools.get(id(upstream))
        if pool is None:
            pool = EnginePool(upstream, self._options, self._statistics, self._turns, self._now)
            self._pools[id(upstream)] = pool
            self.shortest_keep_alive_seconds = min(self.shortest_keep_alive_seconds, upstream.keep_alive_seconds)
        return pool

    def expire(self, now: float) -> None:
        """Close connections that have been idle for too long, and drop pools without any."""
        self._now = now
        for key, pool in list(self._pools.items()):
            pool.expire(now)
            if pool.is_unused:
                del self._pools[key]
        if self._forgotten:
            self._forgotten = [pool for pool in self._forgotten if not pool.is_unused]

    def forget(self, upstream: Upstream) -> None:
        """Close the idle connections to an engine that is about to be frozen."""
        for key, pool in list(self._pools.items()):
            if pool.upstream == upstream:
                del self._pools[key]
                pool.close()
                self._forgotten.append(pool)

    def sever(self, upstream: Upstream) -> None:
        """Close all connections to an engine that is about to be stopped."""
        self.forget(upstream)
        for pool in self._forgotten:
            if pool.upstream == upstream:
                pool.sever()

    def close(self) -> None:
        """Close every idle connection."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
