"""One client's connection: reads requests one after the other, and writes their answers."""

import asyncio
import math
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import cast

from llmux.core.request import Priority, Request
from llmux.errors import ModelNotFound, QueueFull, RequestError
from llmux.gateway.answers import CONTINUE, error_answer, local_answer, shape_of
from llmux.gateway.errors import (
    HeadTooLarge,
    MalformedRequest,
    RequestStalled,
    RequestTooLarge,
    UnknownPath,
    UpgradeRefused,
)
from llmux.gateway.http.bodies import BodyReader
from llmux.gateway.http.chunks import FramingError
from llmux.gateway.http.request_head import HeadBuffer, RequestHead
from llmux.gateway.keys import requested_priority
from llmux.gateway.proxy.engine_connection import write_nowhere
from llmux.gateway.proxy.exchange import Exchange
from llmux.gateway.proxy.flow_control import FlowControl, PauseReason
from llmux.gateway.routing import Destination, Route, answer_locally, find_model
from llmux.gateway.state import GatewayState

_WITHOUT_WAKING = frozenset((b"GET", b"HEAD", b"OPTIONS"))
"""Methods of requests for something that an engine already has: an engine just woken would not have it."""
_WITHOUT_KEY = frozenset((Destination.HEALTH, Destination.READY))
_NEVER = math.inf


class _Phase(Enum):
    """What the connection does with the data that it receives."""

    HEAD = auto()
    BODY = auto()
    ANSWERING = auto()
    """A request is complete and its answer is not, or the client has not read enough of it: data is kept for later."""
    LINGERING = auto()
    """A request was refused before it was complete: the rest of it is discarded."""
    OVER = auto()
    """Closed, closing or handed over: data is discarded."""


# Bound once, for speed: see the docstring of llmux.gateway.
_HEAD, _BODY, _ANSWERING, _LINGERING, _OVER = _Phase
_TO_ENGINE = Destination.ENGINE


def _with_connection_close(head: bytes) -> bytes:
    """The head of a request, with its Connection fields replaced by ``Connection: close``."""
    lines = head[:-4].split(b"\r\n")
    kept = [line for line in lines if line[:11].lower() != b"connection:"]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""])


class ClientConnection(asyncio.Protocol):
    """Reads requests with keep-alive and bounded pipelining; answers strictly in order."""

    __slots__ = (
        "_advancing",
        "_allowed_priority",
        "_backlog",
        "_body",
        "_exchange",
        "_flow",
        "_head_buffer",
        "_phase",
        "_repeatable",
        "_route",
        "_state",
        "_transport",
        "counts",
        "deadline",
        "head",
        "is_full",
        "request_line",
        "started_at",
        "write",
    )

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self.head = RequestHead()
        self._phase = _HEAD
        self._transport: asyncio.Transport | None = None
        self.write: Callable[[bytes], None] = write_nowhere
        """The transport's own ``write``."""
        self.is_full = False
        """Whether the client reads more slowly than it is written to."""
        self.deadline = _NEVER
        self._head_buffer = HeadBuffer()
        self._body: BodyReader | None = None
        self._backlog = bytearray()
        """What the client has sent ahead of its answers."""
        self._flow = FlowControl()
        self._advancing = False
        """Whether ``_advance`` is running: what it calls must not call it again."""
        self._exchange: Exchange | None = None
        self._route: Route | None = None
        self._allowed_priority = Priority.INTERACTIVE
        """The highest that the key of the current request allows."""
        self._repeatable = False
        """Whether a head that repeats the last one leads to the same route, with the same key."""
        self.request_line = b""
        self.counts = state.statistics.of(b"", "other")
        self.started_at = 0.0

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        state = self._state
        self._transport = cast("asyncio.Transport", transport)
        self._flow.attach(self._transport)
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
        repeated = (
            self._repeatable and self._phase is _HEAD and not self._head_buffer.pieces and self._take_repeated(data)
        )
        if not repeated:
            self._advance(data)

    def eof_received(self) -> None:
        # A half-close counts as leaving: clients that shut down only their sending side are not distinguishable from
        # those that are gone, and serving the latter would be wasted work.
        if self._exchange is not None:
            self.abort()
        else:
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_exchange()
        self._phase = _OVER
        self.write = write_nowhere
        self._state.forget(self)
        self.head.release()

    def pause_writing(self) -> None:
        self.is_full = True
        self.deadline = time.monotonic() + self._state.options.client_stall_timeout_seconds
        if self._exchange is not None:
            self._exchange.client_full()

    def resume_writing(self) -> None:
        self.is_full = False
        if self._exchange is not None:
            self.deadline = self._state.now  # The exchange says when its client is to be told that it waits.
            self._exchange.client_drained()
        elif self._phase is _ANSWERING:
            self._await_next_request()

    # Called by the exchange.

    def answered(self, *, keep_alive: bool) -> None:
        self._exchange = None
        if keep_alive and not self._state.stopping:
            self._await_next_request()
        else:
            self._close()

    def refused(self, error: RequestError, request_id: bytes) -> None:
        self._exchange = None
        keep_alive = self._may_keep_alive()
        self.write(error_answer(error, request_id, keep_alive=keep_alive, head_only=self.head.method == b"HEAD"))
        self.answered(keep_alive=keep_alive)

    def cut_off(self, final_event: bytes) -> None:
        self._exchange = None
        if final_event:
            self.write(final_event)
            self._close()
        else:
            self.abort()

    # Called by the server.

    def abort(self) -> None:
        self._end_exchange()
        self._phase = _OVER
        if self._transport is not None:
            self._transport.abort()

    def close_if_idle(self) -> None:
        if self._phase is _HEAD and not self._head_buffer.pieces:
            self._close()

    def time_out(self) -> None:
        options, phase = self._state.options, self._phase
        if phase is _HEAD and self._head_buffer.pieces:
            self._refuse_and_close(RequestStalled("head", options.head_timeout_seconds))
        elif phase is _HEAD:
            self._close()
        elif phase is _BODY:
            self._refuse_and_close(RequestStalled("body", options.body_idle_timeout_seconds))
        elif self._exchange is not None and not self.is_full:
            self.deadline = self._exchange.say_that_it_waits(self._state.now)
        else:
            self.abort()

    # Reading requests. Each _take_... returns the data that it did not consume.

    def _advance(self, data: bytes) -> None:
        self._advancing = True
        while data:
            phase = self._phase
            if phase is _HEAD:
                data = self._take_head(data)
            elif phase is _BODY:
                data = self._take_body(data)
            else:
                if phase is _ANSWERING:
                    self._backlog += data
                    if len(self._backlog) > self._state.options.max_pipelined_bytes:
                        self._flow.pause(PauseReason.BACKLOG_FULL)
                break
        self._advancing = False

    def _take_repeated(self, data: bytes) -> bool:
        """Fast path: the head repeats the previous one, and its whole body came in the same read.

        Returns False if that is not so; nothing has been consumed then.
        """
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return False
        head = self.head
        length = head.repeated.length_of(data[:end])
        if length != len(data) - end:
            return False
        if end > self._state.options.max_head_bytes or length > self._state.options.max_body_bytes:
            return False
        head.content_length = length
        self.started_at = time.monotonic()
        self._advancing = True
        self._take_request(data[end:])
        self._advancing = False
        return True

    def _take_head(self, data: bytes) -> bytes:
        limit, buffer = self._state.options.max_head_bytes, self._head_buffer
        if buffer.pieces or data.startswith(b"\r") or b"\r\n\r\n" not in data:
            begins = not buffer.pieces
            data = buffer.add(data, limit)
            if not data:
                if begins and buffer.pieces:
                    self.deadline = time.monotonic() + self._state.options.head_timeout_seconds
                return b""
        end = data.find(b"\r\n\r\n")
        if not 0 <= end <= limit:
            self._refuse_and_close(HeadTooLarge(limit))
            return b""
        head, rest = data[: end + 4], data[end + 4 :]
        self._repeatable = False
        self._route = None
        self.started_at = time.monotonic()
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

    def _open_request(self, head_bytes: bytes, rest: bytes) -> bytes:
        """Decide by the head alone how the request goes on; raises RequestError."""
        state, head = self._state, self.head
        route = self._route = state.router.find(head.path)
        self.counts = state.statistics.of(head.method, route.endpoint)
        self.request_line = b"%b %b%b HTTP/1.1\r\n" % (head.method, route.path, head.query)
        if route.destination is Destination.CONTROL:
            self._hand_over(head_bytes, rest)
            return b""
        if route.destination not in _WITHOUT_KEY:
            self._allowed_priority = state.keys.authenticate(head)
        length = head.content_length
        if not head.chunked and not length:
            self._take_request(b"")
            return rest
        self._body = BodyReader(None if head.chunked else length, state.options.max_body_bytes)
        self._phase = _BODY
        if head.expects_continue and not rest and not head.http10:
            self.write(CONTINUE)
        self.deadline = time.monotonic() + state.options.body_idle_timeout_seconds
        return rest

    def _take_body(self, data: bytes) -> bytes:
        reader = self._body
        assert reader is not None
        try:
            end = reader.feed(data)
        except FramingError as error:
            self._refuse_and_close(MalformedRequest(str(error)))
            return b""
        except RequestTooLarge as error:
            self._refuse_and_close(error)
            return b""
        if end < 0:
            self.deadline = time.monotonic() + self._state.options.body_idle_timeout_seconds
            return b""
        self._body = None
        self._take_request(reader.body)
        return data[end:]

    # Answering.

    def _take_request(self, body: bytes) -> None:
        """Answer a request that has arrived completely."""
        state, head, route = self._state, self.head, self._route
        assert route is not None
        head.finish(body)
        self._phase = _ANSWERING
        self.deadline = _NEVER
        try:
            if route.destination is not _TO_ENGINE:
                self._answer_locally(route)
                return
            model, body, streams = find_model(head, route, body)
            if not state.access.knows(model):
                raise ModelNotFound(model, state.access.models)
            priority = self._allowed_priority
            if head.priority is not None:
                priority = requested_priority(head.priority, priority)
        except RequestError as error:
            self._answer_error(error)
            return
        # A model named by the path may be removed from the configuration, which the router would have to notice.
        self._repeatable = route.model is None
        self.counts.pending += 1
        request = Request(
            state.new_request_number(),
            model,
            priority=priority,
            streams=streams,
            may_wake=head.method not in _WITHOUT_WAKING,
            size_bytes=len(body) + len(head.forwarded),
            session=head.session,
        )
        if streams:
            self.deadline = self.started_at + state.options.wait_comments_after_seconds
        exchange = self._exchange = Exchange(state, self, request, body)
        state.access.acquire(request, exchange)

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
        """Refuse a request that has not been read completely, and close once the client can have read the refusal."""
        transport = self._transport
        assert transport is not None
        if self._phase is _HEAD:
            self.started_at = time.monotonic()
        self._count(shape_of(error).status, 0)
        request_id = self._state.new_request_id()
        self.write(error_answer(error, request_id, keep_alive=False, head_only=False))
        self._head_buffer.clear()
        self._body = None
        # Closing with unread data would make the kernel send a reset, upon which the client may lose the refusal.
        self._phase = _LINGERING
        self.deadline = time.monotonic() + self._state.options.linger_seconds
        if not transport.is_closing() and transport.can_write_eof():
            transport.write_eof()

    def _count(self, status: int, body_bytes: int) -> None:
        endpoint = self._route.endpoint if self._route is not None else "other"
        counts = self._state.statistics.of(self.head.method, endpoint)
        counts.pending += 1
        counts.finish(status, time.monotonic() - self.started_at, body_bytes)

    def _hand_over(self, head_bytes: bytes, rest: bytes) -> None:
        """Give the connection to the control plane's HTTP server, beginning with the current request.

        Raises UnknownPath if there is none.
        """
        factory = self._state.options.control_protocol_factory
        if factory is None:
            raise UnknownPath(self.head.path.decode("latin-1"))
        transport = self._transport
        assert transport is not None
        self._phase = _OVER
        self.deadline = _NEVER
        self.write = write_nowhere
        self._state.forget(self)
        self.head.release()
        protocol = factory()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self.is_full:
            protocol.pause_writing()
        # Kept open, the connection could bring a request for a model to a server that has none.
        protocol.data_received(_with_connection_close(head_bytes) + rest)

    # Ends.

    def _may_keep_alive(self) -> bool:
        return self.head.keep_alive and not self._state.stopping

    def _await_next_request(self) -> None:
        if self.is_full:
            # The next request is not begun before the client has read its answers: they would pile up here.
            self._phase = _ANSWERING
            self.deadline = time.monotonic() + self._state.options.client_stall_timeout_seconds
            return
        self._phase = _HEAD
        self.deadline = self._state.now + self._state.options.keep_alive_seconds
        if self._backlog and not self._advancing:
            self._flow.resume(PauseReason.BACKLOG_FULL)
            data = bytes(self._backlog)
            self._backlog.clear()
            self._advance(data)

    def _close(self) -> None:
        """Close when everything written has been sent."""
        self._phase = _OVER
        self.deadline = time.monotonic() + self._state.options.client_stall_timeout_seconds
        if self._transport is not None:
            self._transport.close()

    def _end_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()
