"""What all connections of one gateway share."""

import os
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from llmux.access import ModelAccess
from llmux.gateway.options import GatewayOptions
from llmux.gateway.routing import Router
from llmux.gateway.statistics import GatewayStatistics

if TYPE_CHECKING:
    from llmux.gateway.client_connection import ClientConnection
    from llmux.gateway.exchange import Exchange
    from llmux.gateway.pool import EnginePools

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Runs a coroutine as a task that the server owns."""


class GatewayState:
    """The access, the options, the pools, the counters, and every open client connection."""

    __slots__ = (
        "_emptied",
        "_identifier_prefix",
        "_requests",
        "access",
        "connections",
        "frozen",
        "now",
        "options",
        "pools",
        "router",
        "spawn",
        "statistics",
        "stopping",
    )

    def __init__(
        self,
        access: ModelAccess,
        options: GatewayOptions,
        spawn: Spawn,
        pools: "EnginePools",
        statistics: GatewayStatistics,
        emptied: Callable[[], None],
    ) -> None:
        self.access = access
        self.options = options
        self.spawn = spawn
        self.pools = pools
        self.statistics = statistics
        self._emptied = emptied
        self.router = Router(options.control_paths, access.knows, lambda: access.models)
        self.connections: set[ClientConnection] = set()
        self.frozen: set[Exchange] = set()
        """Those whose requests are suspended with their engine."""
        self.stopping = False
        self.now = time.monotonic()
        """The time of the last sweep: good enough for deadlines of many seconds, and free."""
        self._identifier_prefix = b"req-" + os.urandom(6).hex().encode() + b"-%x"
        self._requests = 0

    def new_request_id(self) -> bytes:
        """An identifier that no other request of this or another process has."""
        self._requests += 1
        return self._identifier_prefix % self._requests

    def forget(self, connection: "ClientConnection") -> None:
        """The connection is closed, or not the gateway's any more."""
        self.connections.discard(connection)
        if not self.connections:
            self._emptied()
