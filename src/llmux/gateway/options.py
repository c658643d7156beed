"""The gateway's options: limits, API keys, and callbacks for the paths that llmux answers itself."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llmux.engines.paths import RequestRules
from llmux.observability.access_log import AccessLog


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """An answer that does not come from an engine."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"


def _healthy() -> LocalAnswer:
    return LocalAnswer(b'{"status":"ok"}')


@dataclass(frozen=True, slots=True)
class LocalRoutes:
    """Callbacks for the paths that llmux answers itself; they run on the event loop, and must not block or raise."""

    health: Callable[[], LocalAnswer] = _healthy
    ready: Callable[[], LocalAnswer] = _healthy
    models: Callable[[], LocalAnswer] = lambda: LocalAnswer(b'{"object":"list","data":[]}')
    model: Callable[[str], LocalAnswer | None] | None = None
    """``GET /v1/models/NAME``; without it, or where it returns None, the answer is 404 ``model_not_found``."""


DEFAULT_CONTROL_PATHS = ("/control", "/metrics", "/")


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Limits and callbacks of a gateway."""

    local_routes: LocalRoutes = field(default_factory=LocalRoutes)
    control_protocol_factory: Callable[[], asyncio.Protocol] | None = None
    """Makes the protocol that takes over a connection with a request for a control path; None: these are 404."""
    control_paths: tuple[str, ...] = DEFAULT_CONTROL_PATHS
    """Each stands for itself and everything below it, except ``/``, which stands for itself only."""
    inference_paths: tuple[str, ...] = ()
    """Further paths of engines, for which a POST wakes its model."""
    rules: Mapping[str, RequestRules] = field(default_factory=dict)
    """What the engine of each model takes; of models that are not named here, what the usual engines do."""
    api_keys: frozenset[str] = frozenset()
    """If no key of either set is configured, any Authorization header is accepted and ignored."""
    batch_api_keys: frozenset[str] = frozenset()
    """Further keys, whose requests have batch priority."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may use the data plane; ``*``: all."""
    allowed_hosts: tuple[str, ...] | None = None
    """Names of this machine. Without keys, requests to loopback by other names, or from foreign pages, are refused.
    None: they are not."""
    max_head_bytes: int = 64 * 1024
    max_body_bytes: int = 128 * 1024 * 1024
    max_receiving_bytes: int = 1 << 30
    """How much may have been received, over all connections, of bodies whose model is not known yet."""
    spool_bytes: int = 8 * 1024 * 1024
    """Bodies from this size on wait in a temporary file."""
    max_pipelined_bytes: int = 256 * 1024
    """How much a client may send ahead of its answers before reading from it is paused."""
    max_connections: int = 20_000
    max_refusals: int = 64
    """How many connections beyond the limit are told why they are refused. Each takes a descriptor until the client has
    read it, and the descriptors of engine connections must not go to them."""
    head_timeout_seconds: float = 10.0
    body_idle_timeout_seconds: float = 30.0
    min_body_bytes_per_second: float = 1024.0
    """The least average rate of a body that takes longer than ``body_idle_timeout_seconds``."""
    client_keep_alive_seconds: float = 75.0
    """Connections of clients without a request are closed after this."""
    client_stall_timeout_seconds: float = 300.0
    """How long a client may leave its answer unread while the write buffer is full."""
    linger_seconds: float = 2.0
    """How long the rest of a refused request is read and discarded: closing earlier could destroy the refusal."""
    connect_timeout_seconds: float = 5.0
    """How long an engine may take to accept a connection, and how long llmux may lack what it takes to open one."""
    engine_keep_alive_seconds: float = 4.0
    """Idle connections to engines are closed after this; keep it below the engine's own keep-alive, often 5 s."""
    keepalive_seconds: float = 15.0
    """How often the client of an event stream that waits or is frozen is sent a comment."""
    wait_comments_after_seconds: float = math.inf
    """How long a stream waits for its engine until its head and the first comment are sent; infinity: for ever."""
    access_log: AccessLog | None = None
    max_idle_per_engine: int = 512
