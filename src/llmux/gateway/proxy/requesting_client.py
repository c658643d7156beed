"""The port between an exchange and the client's connection."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from llmux.errors import RequestError
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.statistics import EndpointCounts


class RequestingClient(asyncio.Protocol, ABC):
    """The connection whose request an exchange carries. Each exchange ends with one call of one of these methods.

    No ``typing.Protocol``, like ``ConnectionOwner``: where it is compiled, attributes of those are looked up by name.
    """

    __slots__ = ("cors_fields", "counts", "head", "is_full", "request_line", "started_at", "write")

    head: RequestHead
    request_line: bytes
    """The request line that the engine gets."""
    started_at: float
    """When (monotonic time) the request's head was complete."""
    counts: EndpointCounts
    cors_fields: bytes
    """Header lines about CORS for the answer's head, if the request comes from a web page."""
    write: Callable[[bytes], None]
    is_full: bool
    """Whether the client reads more slowly than it is written to."""

    @abstractmethod
    def answered(self, keep_alive: bool) -> None:
        """The whole answer has been written."""

    @abstractmethod
    def explained(self, error: RequestError) -> RequestError:
        """The error as this request's client is to be told it."""

    @abstractmethod
    def refused(self, error: RequestError, request_id: bytes) -> None:
        """The request is to be answered with an error; nothing has been written yet."""

    @abstractmethod
    def cut_off(self, final_event: bytes) -> None:
        """The answer cannot be completed; ``final_event`` is to be written before closing, unless it is empty."""
