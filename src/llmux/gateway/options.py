"""What the gateway is told when it is built: limits, keys, and the answers that are not an engine's."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from llmux.observability.access_log import AccessLog


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """An answer of llmux's own."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"


def _healthy() -> LocalAnswer:
    return LocalAnswer(b'{"status":"ok"}')


@dataclass(frozen=True, slots=True)
class LocalRoutes:
    """Call-backs for the paths that llmux answers itself; they must be quick and must not raise."""

    health: Callable[[], LocalAnswer] = _healthy
    ready: Callable[[], LocalAnswer] = _healthy
    models: Callable[[], LocalAnswer] = lambda: LocalAnswer(b'{"object":"list","data":[]}')
    model: Callable[[str], LocalAnswer | None] | None = None
    """``GET /v1/models/NAME``; None (or an answer of None) makes it a 404 ``model_not_found``."""


DEFAULT_CONTROL_PATHS = ("/control", "/metrics", "/")


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Limits and attachments of a gateway; times are in seconds, sizes in bytes."""

    local_routes: LocalRoutes = field(default_factory=LocalRoutes)
    control_protocol_factory: Callable[[], asyncio.Protocol] | None = None
    """Makes the protocol that takes over a connection whose request has a control path; None: such paths are 404."""
    control_paths: tuple[str, ...] = DEFAULT_CONTROL_PATHS
    """Each stands for itself and everything below it, ``/`` only for itself."""
    api_keys: frozenset[str] = frozenset()
    """Empty: any Authorization header is accepted and ignored."""
    batch_api_keys: frozenset[str] = frozenset()
    """Further keys, whose requests are batch."""
    max_head_bytes: int = 64 * 1024
    max_body_bytes: int = 64 * 1024 * 1024
    max_pipelined_bytes: int = 256 * 1024
    """What a client may send ahead of its answers before it is no longer read from."""
    max_connections: int = 20_000
    head_timeout_seconds: float = 10.0
    body_idle_timeout_seconds: float = 30.0
    keep_alive_seconds: float = 75.0
    client_stall_timeout_seconds: float = 300.0
    """How long a client may leave its answer unread while buffers are full."""
    linger_seconds: float = 2.0
    """How long the rest of a refused request is read and thrown away, so that the client sees the refusal."""
    connect_timeout_seconds: float = 5.0
    engine_keep_alive_seconds: float = 4.0
    """Idle connections to engines are closed after this; keep it below the engine's own keep-alive (vLLM: 5 s)."""
    keepalive_seconds: float = 15.0
    """How often the client of a frozen event stream gets a comment."""
    access_log: AccessLog | None = None
    max_idle_per_engine: int = 512
