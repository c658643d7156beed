"""One request's body while it is being received: its limits in size, time, and together with all others."""

import time

from llmux.errors import QueueFull
from llmux.gateway.errors import RequestStalled
from llmux.gateway.http.bodies import BodyReader
from llmux.gateway.proxy.inbox import Inbox
from llmux.gateway.state import GatewayState

_MAX_OWN_BYTES = 1024 * 1024
"""Of a body for llmux itself, whose HTTP server for the control plane takes it in one piece."""
_EMPTY = BodyReader(0, 0)


class ReceivedBody:
    """Counts against ``GatewayState.receiving_bytes`` until it is released."""

    __slots__ = ("_began_at", "_counted_bytes", "_reader", "_state")

    def __init__(self, state: GatewayState, length: int | None, *, to_engine: bool) -> None:
        """``length`` None: the body is chunked. Raises RequestTooLarge."""
        self._state = state
        limit_bytes = state.options.max_body_bytes
        self._reader = BodyReader(length, limit_bytes if to_engine else min(limit_bytes, _MAX_OWN_BYTES))
        self._began_at = time.monotonic()
        self._counted_bytes = 0

    @property
    def size_bytes(self) -> int:
        """How much has been received, decoded."""
        return self._reader.size_bytes

    @property
    def finished(self) -> bool:
        """Whether the body is complete."""
        return self._reader.finished

    @property
    def deadline(self) -> float:
        """When (monotonic time) more of it must have been received."""
        options = self._state.options
        idle_seconds = options.body_idle_timeout_seconds
        slowest = self._began_at + idle_seconds + self.size_bytes / options.min_body_bytes_per_second
        return min(time.monotonic() + idle_seconds, slowest)

    def read(self, inbox: Inbox, limit: int) -> int:
        """Read on for about ``limit`` steps; returns how many were taken.

        Raises FramingError, RequestTooLarge or QueueFull.
        """
        state = self._state
        inbox.position, steps = self._reader.read(inbox.data, inbox.position, limit)
        state.receiving_bytes += self.size_bytes - self._counted_bytes
        self._counted_bytes = self.size_bytes
        if state.receiving_bytes > state.options.max_receiving_bytes and not self.finished:
            raise QueueFull("max_receiving_bytes")
        return steps

    def take(self) -> bytes:
        """The complete body, which is kept no longer; this object is of no other use than to be released."""
        reader, self._reader = self._reader, _EMPTY
        return reader.take_body()

    def release(self) -> None:
        """End the counting."""
        self._state.receiving_bytes -= self._counted_bytes
        self._counted_bytes = 0

    def stalled(self) -> RequestStalled:
        """Why the body is refused when its deadline has passed."""
        idle, rate = self._state.options.body_idle_timeout_seconds, self._state.options.min_body_bytes_per_second
        return RequestStalled(f"nothing of its body arrived for {idle:g} s, or less than {rate:g} bytes/s of it")
