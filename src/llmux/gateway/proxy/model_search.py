"""Finding the model of a complete request: at once, or, in a large body, in a thread."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from llmux.gateway.body_model import TooLong
from llmux.gateway.form import LARGE_FORM_BYTES
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


class ModelSearch:
    """The search for one connection, whose requests come one after the other."""

    __slots__ = ("_state", "_unread")

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._unread: UnreadBody | None = None
        """The large body in which a thread looks for the model."""

    @property
    def is_under_way(self) -> bool:
        """Whether a thread is looking, or is going to."""
        return self._unread is not None

    def begin(self, searcher: Searcher, route: Route, body: bytes, received: ReceivedBody | None) -> EngineCall | None:
        """What is found at once; None if ``search_ended`` is going to be called, unless the search is given up.

        In the latter case it is for the search to release what was ``received``. Raises RequestError.
        """
        head = searcher.head
        if len(body) < LARGE_FORM_BYTES or not is_large(head, len(body)):
            try:
                return find_model(head, route, body, self._state.access.names)
            except TooLong:
                pass
        self._unread = unread = UnreadBody(body, received.release if received is not None else None)
        names, spool_bytes = self._state.access.names, self._state.options.spool_bytes
        reading = self._state.run_in_thread(read_large, head, route, unread, names, spool_bytes)
        reading.add_done_callback(partial(self._end, searcher, route, unread))
        return None

    def give_up(self) -> None:
        """The request is over: its body is not read, unless a thread has begun to."""
        if self._unread is not None:
            self._unread.body = None
            self._unread = None

    def _end(self, searcher: Searcher, route: Route, unread: UnreadBody, reading: asyncio.Future[EngineCall]) -> None:
        unread.release()
        if self._unread is not unread:
            _ = reading.cancelled() or reading.exception()  # Else asyncio complains that nobody has asked for it.
            return
        self._unread = None
        try:
            searcher.search_ended(route, reading.result)
        finally:
            del reading  # Its error's traceback has this frame: the future would keep itself and the body alive.
