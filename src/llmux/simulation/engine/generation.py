"""One request inside the engine, from its arrival to its last token."""

import asyncio
from collections.abc import Iterator

from llmux.simulation.engine import text


class Generation:
    """What the engine knows of one request; the engine's methods move it on."""

    __slots__ = (
        "_signal",
        "_source",
        "aborted",
        "admitted",
        "due_at",
        "finish_reason",
        "limit",
        "produced",
        "prompt_tokens",
        "unread",
    )

    def __init__(self, source: Iterator[str], prompt_tokens: int, limit: int, finish_reason: str) -> None:
        """``finish_reason`` is what it ends with when ``limit`` tokens are out and nothing intervened."""
        self._source = source
        self._signal: asyncio.Future[None] | None = None
        self.prompt_tokens = prompt_tokens
        self.limit = limit
        self.finish_reason = finish_reason
        self.produced = 0
        self.unread: int | None = prompt_tokens
        """How many tokens have to be read before the next one can be written; None once that is done."""
        self.due_at = 0.0
        """When the latest token was to come."""
        self.admitted = False
        self.aborted = False

    def next_token(self, weights_valid: bool) -> str:
        """The next token, garbage while the weights are."""
        token = next(self._source)
        self.produced += 1
        return token if weights_valid else text.GARBAGE

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until ``interrupt`` is called, at most so long."""
        loop = asyncio.get_running_loop()
        self._signal = loop.create_future()
        timer = loop.call_later(seconds, self.interrupt) if seconds is not None else None
        try:
            await self._signal
        finally:
            self._signal = None
            if timer is not None:
                timer.cancel()

    def interrupt(self) -> None:
        """End the current wait, if there is one: the engine's state has changed."""
        if self._signal is not None and not self._signal.done():
            self._signal.set_result(None)
