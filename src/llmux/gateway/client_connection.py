"""One client's connection: takes requests in, one after the other, and writes their answers."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

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
from llmux.gateway.api_keys import is_authorized, priority_of
from llmux.gateway.backlog import Backlog
from llmux.gateway.body_reader import BodyReader
from llmux.gateway.chunks import FramingError
from llmux.gateway.client_phase import ANSWERING, BODY, HEAD, LINGERING, OVER, ClientPhase
from llmux.gateway.dispatch import answer_locally, find_model
from llmux.gateway.errors import shape_of
from llmux.gateway.exchange import Exchange
from llmux.gateway.handover import hand_over
from llmux.gateway.partial_head import PartialHead
from llmux.gateway.request_head import RequestHead
from llmux.gateway.routing import Destination, Route

if TYPE_CHECKING:
    from llmux.gateway.state import GatewayState

_WITHOUT_WAKING = frozenset((b"GET", b"HEAD", b"OPTIONS"))
_WITHOUT_KEY = frozenset((Destination.HEALTH, Destination.READY))
_NEVER = math.inf
_TO_ENGINE: Final = Destination.ENGINE


def _nowhere(_data: bytes) -> None:
    """Where a connection writes that is not open."""


class ClientConnection(asyncio.Protocol):
    """Reads requests with keep-alive and (bounded) pipelining; answers strictly in order."""

    __slots__ = (
        "_advancing",
        "_backlog",
        "_body",
        "_exchange",
        "_partial_head",
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

    def __init__(self, state: "GatewayState") -> None:
        self._state = state
        self.head = RequestHead()
        self._phase: ClientPhase = HEAD
        self._transport: asyncio.Transport | None = None
        self.write: Callable[[bytes], None] = _nowhere
        """The transport's own ``write``."""
        self.is_full = False
        """Whether the client reads more slowly than it is written to."""
        self.deadline = _NEVER
        """When (monotonic time) the present phase has lasted too long."""
        self._partial_head = PartialHead()
        self._body: BodyReader | None = None
        self._backlog = Backlog(state.options.max_pipelined_bytes)
        self._advancing = False
        self._exchange: Exchange | None = None
        self._route: Route | None = None
        self._repeatable = False
        self.request_line = b""
        """The first line of the present request as an engine gets it."""
        self.counts = state.statistics.of(b"", "other")
        """Where the present request is counted."""
        self.started_at = 0.0
        """When (monotonic time) the head of the present request was complete."""

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
        repeated = self._repeatable and self._phase is HEAD and not self._partial_head and self._take_repeated(data)
        if not repeated:
            self._advance(data)

    def eof_received(self) -> None:
        if self._exchange is not None:
            self.abort()
        else:
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._phase = OVER
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
        if self._exchange is not None:
            self.deadline = _NEVER
            self._exchange.client_has_room()
        elif self._phase is ANSWERING:
            self._await_next_request()

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

    def cut_off(self, exit_report: bytes) -> None:
        """The answer cannot be completed: say so, if there are words for it, and make it visible by closing."""
        self._exchange = None
        if exit_report:
            self.write(exit_report)
            self._close()
        else:
            self.abort()

    # Called by the server.

    def abort(self) -> None:
        """Close at once; an exchange ends as if the client had left."""
        self._leave()
        self._phase = OVER
        if self._transport is not None:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """Close unless a request has begun."""
        if self._phase is HEAD and not self._partial_head:
            self._close()

    def time_out(self) -> None:
        """The deadline has passed."""
        options, phase = self._state.options, self._phase
        if phase is HEAD and self._partial_head:
            self._refuse_and_close(RequestStalled("head", options.head_timeout_seconds))
        elif phase is HEAD:
            self._close()
        elif phase is BODY:
            self._refuse_and_close(RequestStalled("body", options.body_idle_timeout_seconds))
        else:
            self.abort()

    # Taking requests in. Each _take_... returns what it leaves of the data.

    def _advance(self, data: bytes) -> None:
        self._advancing = True
        while data:
            phase = self._phase
            if phase is HEAD:
                data = self._take_head(data)
            elif phase is BODY:
                data = self._take_body(data)
            else:
                if phase is ANSWERING:
                    self._backlog.keep(data, self._transport)
                break
        self._advancing = False

    def _take_repeated(self, data: bytes) -> bool:
        """Take a request whose head is the last one's again and whose body came with it; False if it is none."""
        end = data.find(b"\r\n\r\n") + 4
        head = self.head
        if end < 4 or not head.repeat(data[:end]) or head.content_length != len(data) - end:
            return False
        if end > self._state.options.max_head_bytes or len(data) - end > self._state.options.max_body_bytes:
            return False
        self.started_at = time.monotonic()
        self._advancing = True
        self._take_request(data[end:])
        self._advancing = False
        return True

    def _take_head(self, data: bytes) -> bytes:
        limit, partial = self._state.options.max_head_bytes, self._partial_head
        if partial or data.startswith(b"\r") or b"\r\n\r\n" not in data:
            begins = not partial
            data = partial.join(data, limit)
            if not data:
                if begins and partial:
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
        """Decide by the head what becomes of the request; raises RequestError."""
        state, head = self._state, self.head
        route = self._route = state.router.find(head.path)
        self.counts = state.statistics.of(head.method, route.endpoint)
        self.request_line = b"%b %b%b HTTP/1.1\r\n" % (head.method, route.path, head.query)
        if route.destination is Destination.CONTROL:
            return self._hand_over(head_bytes, rest)
        if route.destination not in _WITHOUT_KEY and not is_authorized(
            head, state.options.api_keys, state.options.batch_api_keys
        ):
            raise InvalidApiKey
        length = head.content_length
        if not head.chunked and not length:
            self._take_request(b"")
            return rest
        self._body = BodyReader(None if head.chunked else length, state.options.max_body_bytes)
        self._phase = BODY
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
        """The request is here to its last byte."""
        state, head, route = self._state, self.head, self._route
        assert route is not None
        head.finish(body)
        self._phase = ANSWERING
        self.deadline = _NEVER
        try:
            if route.destination is not _TO_ENGINE:
                self._answer_locally(route)
                return
            model, body, streams = find_model(head, route, body)
            if not state.access.knows(model):
                raise ModelNotFound(model, state.access.models)
            priority = priority_of(head, state.options.batch_api_keys)
        except RequestError as error:
            self._answer_error(error)
            return
        self._repeatable = route.model is None
        self.counts.pending += 1
        exchange = self._exchange = Exchange(state, self, model, body)
        exchange.start(may_wake=head.method not in _WITHOUT_WAKING, priority=priority, streams=streams)

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
        if self._phase is HEAD:
            self.started_at = time.monotonic()
        self._count(shape_of(error).status, 0)
        request_id = self._state.new_request_id()
        self.write(error_answer(error, request_id, keep_alive=False, head_only=False))
        self._partial_head.clear()
        self._body = None
        self._phase = LINGERING
        self.deadline = time.monotonic() + self._state.options.linger_seconds
        if not transport.is_closing() and transport.can_write_eof():
            transport.write_eof()

    def _count(self, status: int, body_bytes: int) -> None:
        endpoint = self._route.endpoint if self._route is not None else "other"
        counts = self._state.statistics.of(self.head.method, endpoint)
        counts.pending += 1
        counts.finish(status, time.monotonic() - self.started_at, body_bytes)

    def _hand_over(self, head_bytes: bytes, rest: bytes) -> bytes:
        factory = self._state.options.control_protocol_factory
        if factory is None:
            raise UnknownPath(self.head.path.decode("latin-1"))
        assert self._transport is not None
        self._phase = OVER
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
        if self.is_full:
            # Until it has read its answers, a client gets no more of them: they would pile up here.
            self._phase = ANSWERING
            self.deadline = time.monotonic() + self._state.options.client_stall_timeout_seconds
            return
        self._phase = HEAD
        self.deadline = self._state.now + self._state.options.keep_alive_seconds
        if self._backlog.data and not self._advancing:
            self._advance(self._backlog.take(self._transport))

    def _close(self) -> None:
        """Close when everything written has been sent."""
        self._phase = OVER
        self.deadline = time.monotonic() + self._state.options.client_stall_timeout_seconds
        if self._transport is not None:
            self._transport.close()

    def _leave(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()
