"""A frozen request as the gateway sees it: what is held back, and the signs of life that its client gets."""

from typing import TYPE_CHECKING

from llmux.gateway.response_head import ResponseHead

if TYPE_CHECKING:
    from llmux.gateway.engine_connection import EngineConnection

_COMMENT = b": keep-alive\n\n"


class Suspension:
    """Exists while a request is suspended with its engine. ``held``: nothing may be relayed until the thaw."""

    __slots__ = ("_commented_at", "head", "held")

    def __init__(self, now: float) -> None:
        self.held = False
        self.head: ResponseHead | None = None
        """The head of an answer that came while everything was held."""
        self._commented_at = now

    def comment_due(self, engine: "EngineConnection", now: float, interval_seconds: float) -> bytes:
        """The comment, framed, that an event stream's client is to get now, which it passes over; usually empty."""
        if now - self._commented_at < interval_seconds:
            return b""
        self._commented_at = now
        return engine.frame_comment(_COMMENT)
