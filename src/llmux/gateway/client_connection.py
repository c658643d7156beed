"""One client's connection: takes requests in, one after the other, and writes their answers."""

import asyncio
import math
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, cast

from llmux.errors import (
    HeadTooLarge,
    InvalidApiKey,
    MalformedRequest,
    ModelNotFound,
    QueueFull,
    RequestError,
    RequestStalled,
    RequestTooLarge,
    UnknownPath,
    UpgradeRefused,
)
from llmux.gateway.answers import CONTINUE, error_answer, local_answer
from llmux.gateway.api_keys import is_authorized
from llmux.gateway.chunks import ChunkReader, FramingError
from llmux.gateway.dispatch import answer_locally, find_model
from llmux.gateway.errors import shape_of
from llmux.gateway.exchange import Exchange
from llmux.gateway.handover import hand_over
from llmux.gateway.request_head import RequestHead
from llmux.gateway.routing import Destination, Route

if TYPE_CHECKING:
    from llmux.gateway.state import GatewayState

_WITHOUT_WAKING = frozenset((b"GET", b"HEAD", b"OPTIONS"))
_WITHOUT_KEY = frozenset((Destination.HEALTH, Destination.READY))
_NEVER = math.inf


class _Phase(Enum):
    HEAD = auto()
    BODY = auto()
    CHUNKS = auto()
    ANSWERING = auto()
    LINGERING = auto()
    """Refused in the middle of a request: the rest of it is read and thrown away."""
    OVER = auto()


def _nowhere(_data: bytes) -> None:
    """Where a connection writes that is not open."""


class ClientConnection(asyncio.Protocol):
    """Reads requests with keep-alive and (bounded) pipelining; answers strictly in order."""

    __slots__ = (
        "_advancing",
        "_chunks",
        "_exchange",
        "_missing_bytes",
        "_partial_head",
        "_parts",
        "_pending",
        "_phase",
        "_reading_paused",
        "_route",
        "_started_at",
        "_state",
        "_transport",
        "deadline",
        "head",
        "is_full",
        "write",
    )

    def __init__(self, state: "GatewayState") -> None:
        self._state = state
        self.head = RequestHead()
        self._phase = _Phase.HEAD
        self._transport: asyncio.Transport | None = None
        self.write: Callable[[bytes], None] = _nowhere
        """The transport's own ``write``."""
        self.is_full = False
        """Whether the client reads more slowly than it is written to."""
        self.deadline = _NEVER
        """When (monotonic time) the present phase has lasted too long."""
        self._partial_head = bytearray()
        self._parts: list[bytes] = []
        self._missing_bytes = 0
        self._chunks: ChunkReader | None = None
        self._pending = bytearray()
        self._advancing = False
        self._reading_paused = False
        self._exchange: Exchange | None = None
        self._route: Route | None = None
        self._started_at = 0.0

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        state = self._state
        self._transport = cast("asyncio.Transport", transport)
        self.write = self._transport.write
        if len(state.connections) >= state.options.max_connections:
            state.statistics.connections_refused += 1
            state.connections.add(self)
            self._refuse_and_close(QueueFull("max_connections"))
            return
        state.statistics.connections_accepted += 1
        state.connections.add(self)
        self.deadline = time.monotonic() + state.options.head_timeout_seconds

    def data_received(self, data: bytes) -> None:
        self._advance(data)

    def eof_received(self) -> None:
        if self._exchange is not None:
            self.abort()
        else:
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._phase = _Phase.OVER
        self.write = _nowhere
        self._state.forget(self)
        self.head.release()

    def pause_writing(self) -> None:
        self.is_full = True
        self.deadline = time.monotonic() + self._state.options.client_stall_timeout_seconds
        if self._exchange is not None:
            self._exchange.client_is_full()

    def resume_writing(self) -> None:
        self.is_full = False
        if self._phase is _Phase.ANSWERING:
            self.deadline = _NEVER
        if self._exchange is not None:
            self._exchange.client_has_room()

    # Called by the exchange.

    def answered(self, *, keep_alive: bool) -> None:
        """The answer was written to its end."""
        self._exchange = None
        if keep_alive and not self._state.stopping:
            self._await_next_request()
        else:
            self._close()

    def refused(self, error: RequestError, request_id: bytes) -> None:
        """Instead of an answer there is an error."""
        self._exchange = None
        keep_alive = self._may_keep_alive()
        self.write(error_answer(error, request_id, keep_alive=keep_alive, head_only=self.head.method == b"HEAD"))
        self.answered(keep_alive=keep_alive)

    def cut_off(self, last_words: bytes) -> None:
        """The answer cannot be completed: say so, if there are words for it, and make it visible by closing."""
        self._exchange = None
        if last_words:
            self.write(last_words)
            self._close()
        else:
            self.abort()

    # Called by the server.

    def abort(self) -> None:
        """Close at once; an exchange ends as if the client had left."""
        self._leave()
        self._phase = _Phase.OVER
        if self._transport is not None:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """Close unless a request has begun."""
        if self._phase is _Phase.HEAD and not self._partial_head:
            self._close()

    def time_out(self) -> None:
        """The deadline has passed."""
        options = self._state.options
        match self._phase:
            case _Phase.HEAD if self._partial_head:
                self._refuse_and_close(RequestStalled("head", options.head_timeout_seconds))
            case _Phase.HEAD:
                self._close()
            case _Phase.BODY | _Phase.CHUNKS:
                self._refuse_and_close(RequestStalled("body", options.body_idle_timeout_seconds))
            case _Phase.ANSWERING | _Phase.LINGERING | _Phase.OVER:
                self.abort()

    # Taking requests in. Each _take_... returns what it leaves of the data.

    def _advance(self, data: bytes) -> None:
        self._advancing = True
        while data:
            match self._phase:
                case _Phase.HEAD:
                    data = self._take_head(data)
                case _Phase.BODY:
                    data = self._take_body(data)
                case _Phase.CHUNKS:
                    data = self._take_chunks(data)
                case _Phase.ANSWERING:
                    self._keep_for_later(data)
                    break
                case _Phase.LINGERING | _Phase.OVER:
                    break
        self._advancing = False

    def _take_head(self, data: bytes) -> bytes:
        limit = self._state.options.max_head_bytes
        if self._partial_head or data.startswith(b"\r"):
            data = self._join_head(data)
            if not data:
                return b""
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > limit:
            if len(data) > limit:
                self._refuse_and_close(HeadTooLarge(limit))
                return b""
            self._partial_head += data
            self.deadline = time.monotonic() + self._state.options.head_timeout_seconds
            return b""
        head, rest = data[: end + 4], data[end + 4 :]
        self._started_at = time.monotonic()
        try:
            self.head.parse(head)
            return self._open_request(head, rest)
        except FramingError as error:
            self._refuse_and_close(MalformedRequest(str(error)))
        except RequestError as error:
            if self.head.chunked or self.head.content_length or isinstance(error, UpgradeRefused):
                self._refuse_and_close(error)
            else:
                self._answer_error(error)
                return rest
        return b""

    def _join_head(self, data: bytes) -> bytes:
        """Add to a head that came in pieces; returns nothing while it is incomplete."""
        partial = self._partial_head
        searched = max(0, len(partial) - 3)
        begins = not partial
        partial += data
        while partial.startswith(b"\r\n"):
            del partial[:2]
            searched = 0
        if partial.find(b"\r\n\r\n", searched) < 0 and len(partial) <= self._state.options.max_head_bytes:
            if begins and partial:
                self.deadline = time.monotonic() + self._state.options.head_timeout_seconds
            return b""
        data = bytes(partial)
        partial.clear()
        return data

    def _open_request(self, head_bytes: bytes, rest: bytes) -> bytes:
        """Decide by the head what becomes of the request; raises RequestError."""
        state, head = self._state, self.head
        route = self._route = state.router.find(head.path)
        if route.destination is Destination.CONTROL:
            return self._hand_over(head_bytes, rest)
        if route.destination not in _WITHOUT_KEY and not is_authorized(head, state.options.api_keys):
            raise InvalidApiKey
        length = head.content_length
        if head.chunked:
            self._phase = _Phase.CHUNKS
            self._chunks = ChunkReader(collect=True)
        elif not length:
            self._take_request(b"")
            return rest
        elif length > state.options.max_body_bytes:
            raise RequestTooLarge(state.options.max_body_bytes)
        elif length == len(rest):
            self._take_request(rest)
            return b""
        else:
            self._phase = _Phase.BODY
            self._missing_bytes = length
        self.deadline = time.monotonic() + state.options.body_idle_timeout_seconds
        if head.expects_continue and not rest and not head.http10:
            self.write(CONTINUE)
        return rest

    def _take_body(self, data: bytes) -> bytes:
        missing = self._missing_bytes
        if len(data) < missing:
            self._parts.append(data)
            self._missing_bytes = missing - len(data)
            self.deadline = time.monotonic() + self._state.options.body_idle_timeout_seconds
            return b""
        self._parts.append(data[:missing])
        body = b"".join(self._parts)
        self._parts.clear()
        self._take_request(body)
        return data[missing:]

    def _take_chunks(self, data: bytes) -> bytes:
        chunks = self._chunks
        assert chunks is not None
        assert chunks.payload is not None
        limit = self._state.options.max_body_bytes
        self.deadline = time.monotonic() + self._state.options.body_idle_timeout_seconds
        try:
            end = chunks.feed(data)
        except FramingError as error:
            self._refuse_and_close(MalformedRequest(str(error)))
            return b""
        if chunks.collected_bytes > limit:
            self._refuse_and_close(RequestTooLarge(limit))
            return b""
        if end < 0:
            return b""
        self._chunks = None
        self._take_request(b"".join(chunks.payload))
        return data[end:]

    def _keep_for_later(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) > self._state.options.max_pipelined_bytes and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    # Answering.

    def _take_request(self, body: bytes) -> None:
        """The request is here to its last byte."""
        state, head, route = self._state, self.head, self._route
        assert route is not None
        head.finish(body)
        self._phase = _Phase.ANSWERING
        self.deadline = _NEVER
        try:
            if route.destination is not Destination.ENGINE:
                self._answer_locally(route)
                return
            model, body = find_model(head, route, body)
            if not state.desk.knows(model):
                raise ModelNotFound(model, state.desk.models)
        except RequestError as error:
            self._answer_error(error)
            return
        counts = state.statistics.of(head.method, route.endpoint)
        target = route.path + head.query
        exchange = self._exchange = Exchange(state, self, counts, model, target, body, self._started_at)
        exchange.start(may_wake=head.method not in _WITHOUT_WAKING)

    def _answer_locally(self, route: Route) -> None:
        head = self.head
        answer = answer_locally(head.method, route, self._state.options.local_routes)
        keep_alive = self._may_keep_alive()
        request_id = head.request_id or self._state.new_request_id()
        head_only = head.method == b"HEAD"
        self.write(local_answer(answer, request_id, keep_alive=keep_alive, head_only=head_only))
        self._count(answer.status, len(answer.body))
        self.answered(keep_alive=keep_alive)

    def _answer_error(self, error: RequestError) -> None:
        """Refuse a request that has been read completely."""
        self._count(shape_of(error).status, 0)
        self.refused(error, self.head.request_id or self._state.new_request_id())

    def _refuse_and_close(self, error: RequestError) -> None:
        """Refuse a request in the middle, and see that the client can read why before the connection is gone."""
        transport = self._transport
        assert transport is not None
        if self._phase is _Phase.HEAD:
            self._started_at = time.monotonic()
        self._count(shape_of(error).status, 0)
        request_id = self._state.new_request_id()
        self.write(error_answer(error, request_id, keep_alive=False, head_only=False))
        self._parts.clear()
        self._partial_head.clear()
        self._chunks = None
        self._phase = _Phase.LINGERING
        self.deadline = time.monotonic() + self._state.options.linger_seconds
        if not transport.is_closing() and transport.can_write_eof():
            transport.write_eof()

    def _count(self, status: int, body_bytes: int) -> None:
        endpoint = self._route.endpoint if self._route is not None else "other"
        counts = self._state.statistics.of(self.head.method, endpoint)
        counts.pending += 1
        counts.finish(status, time.monotonic() - self._started_at, body_bytes)

    def _hand_over(self, head_bytes: bytes, rest: bytes) -> bytes:
        factory = self._state.options.control_protocol_factory
        if factory is None:
            raise UnknownPath(self.head.path.decode("latin-1"))
        assert self._transport is not None
        self._phase = _Phase.OVER
        self.deadline = _NEVER
        self.write = _nowhere
        self._state.forget(self)
        self.head.release()
        hand_over(self._transport, factory(), head_bytes, rest, is_full=self.is_full)
        return b""

    # Ends.

    def _may_keep_alive(self) -> bool:
        return self.head.keep_alive and not self._state.stopping

    def _await_next_request(self) -> None:
        self._phase = _Phase.HEAD
        self._route = None
        self.deadline = time.monotonic() + self._state.options.keep_alive_seconds
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._pending and not self._advancing:
            data = bytes(self._pending)
            self._pending.clear()
            self._advance(data)

    def _close(self) -> None:
        """Close when everything written has been sent."""
        self._phase = _Phase.OVER
        self.deadline = time.monotonic() + self._state.options.client_stall_timeout_seconds
        if self._transport is not None:
            self._transport.close()

    def _leave(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()
