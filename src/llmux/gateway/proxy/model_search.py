"""Finding the model of a complete request: at once, or, in a large body, in a thread."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from llmux.core.names import Register
from llmux.gateway.body_model import TooLong
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.large_bodies import UnreadBody, is_large, read_large
from llmux.gateway.proxy.receiving import ReceivedBody
from llmux.gateway.routing import EngineCall, Route, find_model
from llmux.gateway.state import GatewayState


class Searcher(Protocol):
    """The connection whose request it is. It is passed to each call: a reference would be a cycle."""

    head: RequestHead

    def search_ended(self, route: Route, result: Callable[[], EngineCall]) -> None:
        """The thread is done: ``result`` returns what it has found, or raises its error."""


def find_at_once(head: RequestHead, route: Route, body: bytes, names: Register) -> EngineCall:
    """What is found without a ``ModelSearch``. Raises RequestError, or TooLong if there has to be one."""
    if is_large(head, len(body)):
        raise TooLong
    return find_model(head, route, body, names)


class ModelSearch:
    """The search of a thread in one large body."""

    __slots__ = ("_is_given_up", "_state", "_unread")

    def __init__(self, state: GatewayState, body: bytes, received: ReceivedBody | None) -> None:
        """It is for the search, once it has begun, to release what was ``received``."""
        self._state = state
        self._unread = UnreadBody(body, received.release if received is not None else None)
        self._is_given_up = False

    def begin(self, searcher: Searcher, route: Route) -> None:
        """Have a thread look; ``search_ended`` is going to be called, unless the search is given up."""
        unread = self._unread
        names, spool_bytes = self._state.access.names, self._state.options.spool_bytes
        reading = self._state.run_in_thread(read_large, searcher.head, route, unread, names, spool_bytes)
        reading.add_done_callback(partial(self._end, searcher, route))

    def give_up(self) -> None:
        """The request is over: its body is not read, unless a thread has begun to."""
        self._is_given_up = True
        self._unread.body = None

    def _end(self, searcher: Searcher, route: Route, reading: asyncio.Future[EngineCall]) -> None:
        self._unread.release()
        if self._is_given_up:
            _ = reading.cancelled() or reading.exception()  # Else asyncio complains that nobody has asked for it.
            return
        try:
            searcher.search_ended(route, reading.result)
        finally:
            del reading  # Its error's traceback has this frame: the future would keep itself and the body alive.
