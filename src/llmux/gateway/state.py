"""What all connections of one gateway share, and the periodic check of their deadlines."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Protocol

from llmux.access import ModelAccess
from llmux.gateway.keys import ApiKeys
from llmux.gateway.options import GatewayOptions
from llmux.gateway.pages import PagePolicy
from llmux.gateway.proxy.pool import EnginePools
from llmux.gateway.proxy.turns import Turns
from llmux.gateway.routing import Router
from llmux.gateway.statistics import GatewayStatistics

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Runs a coroutine as a task that the server owns."""

RunInThread = Callable[..., asyncio.Future[Any]]
"""Runs a function with arguments in one of the server's few threads for work that would stall the event loop."""


class OpenConnection(Protocol):
    """A client's connection as the server sees it."""

    deadline: float
    """When (monotonic time) its current phase has lasted too long; infinity where it may last."""

    def time_out(self) -> None:
        """The deadline has passed."""

    def close_if_idle(self) -> None:
        """Close unless a request has begun."""

    def abort(self) -> None:
        """Close at once; a request in progress ends as if the client had left."""


class FrozenExchange(Protocol):
    """A request that is suspended with its engine."""

    def send_freeze_comment(self, now: float) -> None:
        """Send the client of an event stream a comment if one is due."""


class GatewayState:
    """The access, the options, the pools, the counters, and every open client connection."""

    __slots__ = (
        "_on_empty",
        "access",
        "connections",
        "frozen",
        "keys",
        "new_request_number",
        "now",
        "options",
        "pages",
        "pools",
        "receiving_bytes",
        "request_id_format",
        "router",
        "run_in_thread",
        "spawn",
        "statistics",
        "stopping",
        "turns",
    )

    def __init__(
        self,
        access: ModelAccess,
        options: GatewayOptions,
        spawn: Spawn,
        pools: EnginePools,
        statistics: GatewayStatistics,
        on_empty: Callable[[], None],
        turns: Turns,
        run_in_thread: RunInThread,
    ) -> None:
        """``on_empty`` is called whenever the last client connection has gone."""
        self.access = access
        self.options = options
        self.spawn = spawn
        self.pools = pools
        self.statistics = statistics
        self._on_empty = on_empty
        self.keys = ApiKeys(options.api_keys, options.batch_api_keys)
        pages = PagePolicy(options.cors_origins, None if self.keys else options.allowed_hosts)
        self.pages = pages if pages.does_anything else None
        self.router = Router(options.control_paths, lambda: access.names, options.inference_paths, options.engines)
        self.connections: set[OpenConnection] = set()
        self.frozen: set[FrozenExchange] = set()
        """The exchanges whose requests are suspended with their engine."""
        self.turns = turns
        self.run_in_thread = run_in_thread
        self.receiving_bytes = 0
        """How much has been received of bodies whose model is not known yet."""
        self.stopping = False
        self.now = time.monotonic()
        """The time of the last sweep: exact enough for deadlines of many seconds, and free."""
        self.new_request_number = count(1).__next__
        """The next ``Request.id``."""
        self.request_id_format = b"req-" + os.urandom(6).hex().encode() + b"-%x"
        """With a request's number filled in, its identifier, which is unique across this and other processes."""

    def new_request_id(self) -> bytes:
        """An identifier for what is answered without a ``Request``."""
        return self.request_id_format % self.new_request_number()

    def forget(self, connection: OpenConnection) -> None:
        """Drop a connection that is closed or was handed over."""
        self.connections.discard(connection)
        if not self.connections:
            self._on_empty()

    def sweep(self, now: float) -> None:
        """Enforce every deadline that has passed by ``now`` (monotonic time)."""
        self.now = now
        # Copies: both calls may change the set that is iterated over.
        for connection in [one for one in self.connections if one.deadline < now]:
            connection.time_out()
        for exchange in list(self.frozen):
            exchange.send_freeze_comment(now)
        if self.options.access_log is not None:
            self.options.access_log.flush()
        self.pools.expire(now)
