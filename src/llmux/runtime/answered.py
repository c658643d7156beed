"""Requests of one model that have been answered, but on whose work the engine may still be: a queue of images, say."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from llmux.core.request import Request

POLL_SECONDS = 1.0
"""Between two questions to an engine whether it still works."""


class AnsweredRequests:
    """They stay in flight until the engine has no work, so that drains and the status know of it.

    Which work belongs to which request it does not tell: as long as there is any, all that were answered before stay.
    """

    def __init__(self, has_work: Callable[[], Awaitable[bool]], done: Callable[[Request, bool], None]) -> None:
        """``done`` ends a request, with whether it was completed."""
        self._has_work = has_work
        self._done = done
        self._requests: dict[Request, bool] = {}
        self._is_watching = False
        self._emptied = asyncio.Event()

    def add(self, request: Request, completed: bool) -> bool:
        """Keep a request; returns whether ``watch`` must be begun."""
        self._requests[request] = completed
        is_new, self._is_watching = not self._is_watching, True
        return is_new

    def drop(self, request: Request) -> None:
        """Forget a request that has ended otherwise: its engine has died, or a drain was over."""
        if self._requests.pop(request, None) is not None and not self._requests:
            self._emptied.set()

    async def watch(self) -> None:
        """Ask the engine, and end the requests when it has no work; returns when none is left."""
        try:
            while self._requests:
                before = tuple(self._requests)
                if not await self._has_work():
                    for request in before:
                        if (completed := self._requests.pop(request, None)) is not None:
                            self._done(request, completed)
                if self._requests:
                    self._emptied.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._emptied.wait(), POLL_SECONDS)
        finally:
            self._is_watching = False
