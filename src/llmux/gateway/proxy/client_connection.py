"""One client's connection: reads requests one after the other, and writes their answers."""

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import cast

import structlog

from llmux.core.request import Priority, Request
from llmux.errors import QueueFull, RequestError
from llmux.gateway.answers import CONTINUE, error_answer, local_answer, preflight_answer, shape_of
from llmux.gateway.body_model import TooLong
from llmux.gateway.errors import (
    HeadTooLarge,
    InternalError,
    MalformedRequest,
    RequestStalled,
    RequestTooLarge,
    TooManyHeaders,
    UpgradeRefused,
)
from llmux.gateway.form import LARGE_FORM_BYTES
from llmux.gateway.http.chunks import FramingError
from llmux.gateway.http.head_buffer import HeadBuffer
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.keys import requested_priority
from llmux.gateway.large_bodies import UnreadBody, is_large, read_large
from llmux.gateway.proxy import turns
from llmux.gateway.proxy.client_phase import Phase
from llmux.gateway.proxy.departure import Departure
from llmux.gateway.proxy.engine_connection import write_nowhere
from llmux.gateway.proxy.exchange import Exchange
from llmux.gateway.proxy.flow_control import FlowControl, PauseReason
from llmux.gateway.proxy.handover import hand_over
from llmux.gateway.proxy.inbox import Inbox
from llmux.gateway.proxy.receiving import ReceivedBody
from llmux.gateway.refusals import check_head, find_route
from llmux.gateway.routing import Destination, EngineCall, Route, answer_locally, explain, find_model, request_line
from llmux.gateway.state import GatewayState

log = structlog.get_logger("llmux.gateway")

_NEVER = math.inf

# Bound once, for speed: see the docstring of llmux.gateway.
_HEAD, _BODY, _ANSWERING, _LINGERING, _OVER = Phase
_TO_ENGINE = Destination.ENGINE


class ClientConnection(asyncio.Protocol):
    """Reads requests with keep-alive and bounded pipelining; answers strictly in order."""

    __slots__ = (
        "_advancing",
        "_allowed_priority",
        "_body",
        "_control_head",
        "_departure",
        "_exchange",
        "_flow",
        "_head_buffer",
        "_inbox",
        "_phase",
        "_reading",
        "_repeatable",
        "_route",
        "_state",
        "_steps_left",
        "_transport",
        "cors_fields",
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
        self._body: ReceivedBody | None = None
        """That of the current request, until the model in it is known."""
        self._reading: UnreadBody | None = None
        """A large body, in which a thread looks for the model."""
        self._control_head = b""
        """The head of a request for the control plane, as it came."""
        self._inbox = Inbox()
        self._steps_left = turns.STEPS_PER_TURN
        self._flow = FlowControl()
        self._advancing = False
        """Whether ``_advance`` is running: what it calls must not call it again."""
        self._departure = Departure()
        self._exchange: Exchange | None = None
        self._route: Route | None = None
        self._allowed_priority = Priority.INTERACTIVE
        """The highest that the key of the current request allows."""
        self._repeatable = False
        """Whether a head that repeats the last one leads to the same route, with the same key."""
        self.request_line = b""
        self.cors_fields = b""
        """Header lines about CORS for the answer to the current request."""
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
            if len(state.connections) >= state.options.max_connections + state.options.max_refusals:
                self.abort()
                return
            state.connections.add(self)
            self._refuse_and_close(QueueFull("open connections, which ulimit -n limits"))
            return
        state.statistics.connections_accepted += 1
        state.connections.add(self)
        self.deadline = time.monotonic() + state.options.head_timeout_seconds

    def data_received(self, data: bytes) -> None:
        try:
            repeated = (
                self._repeatable and self._phase is _HEAD and not self._head_buffer.pieces and self._take_repeated(data)
            )
            if not repeated:
                self._receive(data)
        except Exception as error:
            self._fail(error)

    def eof_received(self) -> bool:
        if self._phase is _ANSWERING and not self.head.http10:
            self._departure.half_closed = True
            self._probe()
            return True
        if self._exchange is not None:
            # An HTTP/1.0 client could not be probed: it knows of no interim answers.
            self.abort()
        else:
            self._close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_exchange()
        self._phase = _OVER
        self._discard_received()
        self.write = write_nowhere
        self._state.forget(self)

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

    def explained(self, error: RequestError) -> RequestError:
        return explain(error, self.head, self._route) if self._route is not None else error

    def refused(self, error: RequestError, request_id: bytes) -> None:
        self._exchange = None
        # Only requests that wait for an engine may skip the budget of steps.
        self._repeatable = False
        keep_alive, head_only = self._may_keep_alive(), self.head.method == b"HEAD"
        self.write(self._error_answer(error, request_id, keep_alive=keep_alive, head_only=head_only))
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
        if self._phase is _HEAD and not self._head_buffer.pieces and not self._inbox.pending_bytes:
            self._close()

    def time_out(self) -> None:
        options, phase = self._state.options, self._phase
        if PauseReason.OTHERS_TURN in self._flow.reasons:
            # The client has done its part.
            self.deadline = time.monotonic() + options.head_timeout_seconds
        elif phase is _HEAD and self._head_buffer.pieces:
            self._refuse_and_close(RequestStalled(f"its head took longer than {options.head_timeout_seconds:g} s"))
        elif phase is _HEAD:
            self._close()
        elif phase is _ANSWERING and self._departure.in_doubt() and not self.is_full:
            self._look()
        elif phase is _BODY and self._body is not None:
            self._refuse_and_close(self._body.stalled())
        elif self._exchange is not None and not self.is_full:
            # A client that cannot take the comment has got another deadline meanwhile.
            self.deadline = max(self._exchange.send_wait_comment(self._state.now), self.deadline)
        else:
            self.abort()

    def _probe(self) -> None:
        if self._phase is _ANSWERING and not self.is_full:
            self.write(self._exchange.probe() if self._exchange is not None else CONTINUE)
            self._departure.probed()
            self._state.turns.put_off(self._look)

    def _look(self) -> None:
        if self._phase is not _ANSWERING or self._transport is None or self.is_full or not self._departure.in_doubt():
            return
        if self._departure.look(self._transport):
            self.abort()
        else:
            # The next look, or the exchange's next comment.
            self.deadline = self._state.now if self._departure.in_doubt() or self._exchange else _NEVER

    # Reading requests.

    def _receive(self, data: bytes) -> None:
        if self._phase is _LINGERING or self._phase is _OVER:
            return
        must_wait = self._inbox.pending_bytes
        self._inbox.add(data)
        if must_wait:
            self._limit_inbox()
        else:
            self._advance()

    def _advance(self) -> None:
        """Work off what has been received until something must be waited for, be it the other connections' turn."""
        self._advancing = True
        shared, steps_before = self._state.turns, self._steps_left
        while self._inbox.has_more():
            phase = self._phase
            if phase is not _HEAD and phase is not _BODY:
                break
            if self._steps_left <= 0 or shared.steps_left <= 0:
                self._flow.pause(PauseReason.OTHERS_TURN)
                shared.put_off(self._take_turn)
                break
            if phase is _HEAD:
                self._take_head()
            else:
                self._take_body()
        shared.spend(steps_before - self._steps_left)
        self._advancing = False
        self._limit_inbox()
        if self._departure.half_closed and not self._inbox.pending_bytes and self._phase in (_HEAD, _BODY):
            self._close()

    def _limit_inbox(self) -> None:
        is_full = self._inbox.pending_bytes > self._state.options.max_pipelined_bytes
        self._flow.pause_while(is_full, PauseReason.BACKLOG_FULL)

    def _take_turn(self) -> None:
        self._flow.resume(PauseReason.OTHERS_TURN)
        self._steps_left = turns.STEPS_PER_TURN
        self._go_on()

    def _go_on(self) -> None:
        """Continue with what has been received, outside ``data_received``."""
        try:
            self._advance()
        except Exception as error:
            self._fail(error)

    def _discard_received(self) -> None:
        if self._reading is not None:
            self._reading.body = None
            self._reading = None
        self._inbox.clear()
        self._head_buffer.clear()
        self._drop_body()
        self._limit_inbox()

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body.release()
            self._body = None

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

    def _take_head(self) -> None:
        options, buffer, inbox = self._state.options, self._head_buffer, self._inbox
        begins = not buffer.pieces
        pending_bytes = inbox.pending_bytes
        try:
            head, inbox.data, inbox.position = buffer.take(inbox.data, inbox.position, options.max_head_bytes)
        except FramingError as error:
            self._refuse_and_close(MalformedRequest(str(error)))
            return
        except HeadTooLarge as error:
            self._refuse_and_close(error)
            return
        read_bytes = max(0, pending_bytes - inbox.pending_bytes)
        self._steps_left -= turns.STEPS_OF_A_PIECE + read_bytes // turns.HEAD_BYTES_PER_STEP
        if head:
            self._repeatable = False
            self._route = None
            self.cors_fields = b""
            self.started_at = time.monotonic()
            self._parse_head(head)
        elif begins and buffer.pieces:
            self.deadline = time.monotonic() + options.head_timeout_seconds

    def _parse_head(self, head_bytes: bytes) -> None:
        head = self.head
        self._steps_left -= turns.STEPS_OF_A_HEAD
        try:
            head.parse(head_bytes)
            self._open_request(head_bytes)
        except FramingError as error:
            self._refuse_and_close(MalformedRequest(str(error)))
        except RequestError as error:
            if head.chunked or head.content_length or isinstance(error, UpgradeRefused | TooManyHeaders):
                self._refuse_and_close(error)
            else:
                self._answer_error(error)

    def _open_request(self, head_bytes: bytes) -> None:
        """Decide by the head alone how the request goes on; raises RequestError."""
        state, head, transport = self._state, self.head, self._transport
        assert transport is not None
        if state.pages is not None:
            self.cors_fields = state.pages.fields_for(head.origin)
            preflight = state.pages.preflight_fields(head)
            if preflight is not None and not state.router.is_control(head.path):
                self._answer_preflight(preflight)
                return
        route = self._route = find_route(state, head, transport)
        self.counts = state.statistics.of(head.method, route.endpoint)
        self.request_line = request_line(head, route)
        self._allowed_priority = check_head(state, head, route, transport)
        if route.destination is Destination.CONTROL:
            self._control_head = head_bytes
        length = head.content_length
        if not head.chunked and not length:
            self._take_request(b"")
            return
        self._body = ReceivedBody(state, None if head.chunked else length, to_engine=route.destination is _TO_ENGINE)
        self._phase = _BODY
        if head.expects_continue and not self._inbox.pending_bytes and not head.http10:
            self.write(CONTINUE)
        self.deadline = self._body.deadline

    def _take_body(self) -> None:
        body = self._body
        assert body is not None
        try:
            self._steps_left -= body.read(self._inbox, self._steps_left)
        except FramingError as error:
            self._refuse_and_close(MalformedRequest(str(error)))
            return
        except (RequestTooLarge, QueueFull) as error:
            self._refuse_and_close(error)
            return
        if not body.finished:
            self.deadline = body.deadline
            return
        self._steps_left -= turns.steps_of_reading(body.size_bytes, is_form=self.head.is_form)
        self._take_request(body.take())
        self._drop_body()

    # Answering.

    def _take_request(self, body: bytes) -> None:
        """Answer a request that has arrived completely."""
        state, head, route = self._state, self.head, self._route
        assert route is not None
        self._phase = _ANSWERING
        self.deadline = _NEVER
        try:
            if route.destination is Destination.CONTROL:
                self._hand_over(body)
            elif route.destination is not _TO_ENGINE:
                self._answer_locally(route)
            elif len(body) >= LARGE_FORM_BYTES and is_large(head, len(body)):
                self._read_in_thread(route, body)
            else:
                self._ask_for_model(route, find_model(head, route, body, state.access.names))
        except TooLong:
            self._read_in_thread(route, body)
        except RequestError as error:
            self._answer_error(error)

    def _read_in_thread(self, route: Route, body: bytes) -> None:
        state, received = self._state, self._body
        self._reading = unread = UnreadBody(body, received.release if received is not None else None)
        self._body = None
        names, spool_bytes = state.access.names, state.options.spool_bytes
        reading = state.run_in_thread(read_large, self.head, route, unread, names, spool_bytes)
        reading.add_done_callback(partial(self._large_body_read, route, unread))

    def _large_body_read(self, route: Route, unread: UnreadBody, reading: asyncio.Future[EngineCall]) -> None:
        unread.release()
        if self._reading is not unread:
            _ = reading.cancelled() or reading.exception()  # Else asyncio complains that nobody has asked for it.
            return
        self._reading = None
        try:
            self._ask_for_model(route, reading.result())
        except asyncio.CancelledError:
            self.abort()
        except RequestError as error:
            self._answer_error(error)
        except Exception as error:
            self._fail(error)
        finally:
            del reading  # Its error's traceback has this frame: the future would keep itself and the body alive.

    def _ask_for_model(self, route: Route, call: EngineCall) -> None:
        """Ask for a lease on the model; raises RequestError."""
        state, head = self._state, self.head
        model, body, streams = call
        if route.variants is not None:
            # A head that repeats this one may be for a model whose engine calls the path otherwise.
            route = route.variants.of(model)
            self.request_line = request_line(head, route)
        priority = self._allowed_priority
        if head.priority is not None:
            priority = requested_priority(head.priority, priority)
        # A model named by the path may be removed from the configuration, which the router would have to notice.
        self._repeatable = route.model is None
        self.counts.pending += 1
        request = Request(
            state.new_request_number(),
            model,
            priority=priority,
            streams=streams,
            may_wake=route.may_wake and head.method == b"POST",
            size_bytes=len(body) + len(head.forwarded),
            session=head.session,
        )
        if streams:
            self.deadline = self.started_at + state.options.wait_comments_after_seconds
        exchange = self._exchange = Exchange(state, self, request, body)
        state.access.acquire(request, exchange)
        if self._departure.half_closed:
            self._probe()

    def _answer_locally(self, route: Route) -> None:
        head, keep_alive, cors = self.head, self._may_keep_alive(), self.cors_fields
        answer = answer_locally(head.method, route, self._state.options.local_routes)
        request_id = head.request_id or self._state.new_request_id()
        head_only = head.method == b"HEAD"
        self.write(local_answer(answer, request_id, keep_alive=keep_alive, head_only=head_only, cors_fields=cors))
        self._count(answer.status, len(answer.body))
        self.answered(keep_alive=keep_alive)

    def _answer_preflight(self, fields: bytes) -> None:
        head, keep_alive = self.head, self._may_keep_alive()
        self._phase = _ANSWERING
        self.write(preflight_answer(fields, head.request_id or self._state.new_request_id(), keep_alive=keep_alive))
        self._count(HTTPStatus.NO_CONTENT, 0)
        self.answered(keep_alive=keep_alive)

    def _answer_error(self, error: RequestError) -> None:
        """Refuse a request that has been read completely."""
        self._count(shape_of(error).status, 0)
        self.refused(error, self.head.request_id or self._state.new_request_id())

    def _error_answer(self, error: RequestError, request_id: bytes, *, keep_alive: bool, head_only: bool) -> bytes:
        path, cors_fields = self.head.path, self.cors_fields
        return error_answer(
            error, request_id, keep_alive=keep_alive, head_only=head_only, path=path, cors_fields=cors_fields
        )

    def _refuse_and_close(self, error: RequestError) -> None:
        """Refuse a request that has not been read completely, and close once the client can have read the refusal."""
        transport = self._transport
        assert transport is not None
        if self._phase is _HEAD:
            self.started_at = time.monotonic()
        self._count(shape_of(error).status, 0)
        request_id = self._state.new_request_id()
        self.write(self._error_answer(error, request_id, keep_alive=False, head_only=False))
        # Closing with unread data would make the kernel send a reset, upon which the client may lose the refusal.
        self._phase = _LINGERING
        self._discard_received()
        self.deadline = time.monotonic() + self._state.options.linger_seconds
        if not transport.is_closing() and transport.can_write_eof():
            transport.write_eof()

    def _count(self, status: int, body_bytes: int) -> None:
        counts = self._state.statistics.of(self.head.method, "other" if self._route is None else self._route.endpoint)
        counts.count(status, time.monotonic() - self.started_at, body_bytes)

    def _hand_over(self, body: bytes) -> None:
        """Give the connection to the control plane's HTTP server, with the current request and no other."""
        factory, transport = self._state.options.control_protocol_factory, self._transport
        assert factory is not None and transport is not None
        self._phase = _OVER
        self.deadline = _NEVER
        self.write = write_nowhere
        self._state.forget(self)
        self._discard_received()
        self._flow.clear()
        hand_over(transport, factory(), self._control_head, body, is_full=self.is_full)

    # Ends.

    def _fail(self, error: Exception) -> None:
        """Answer a request in spite of an error in llmux itself."""
        self._advancing = False
        try:
            if self._exchange is not None:
                self._exchange.failed(error)
                return
            log.error("unexpected error while a request was read", exc_info=error, request=self.request_line)
            if self._phase is not _LINGERING and self._phase is not _OVER:
                self._refuse_and_close(InternalError())
        except Exception:
            log.exception("a request could not be answered")
            self.abort()

    def _may_keep_alive(self) -> bool:
        return self.head.keep_alive and not self._state.stopping

    def _await_next_request(self) -> None:
        if self.is_full:
            # The next request is not begun before the client has read its answers: they would pile up here.
            self._phase = _ANSWERING
            self.deadline = time.monotonic() + self._state.options.client_stall_timeout_seconds
            return
        self._phase = _HEAD
        self.deadline = self._state.now + self._state.options.client_keep_alive_seconds
        if not self._advancing:
            self._steps_left = turns.STEPS_PER_TURN
            if self._inbox.pending_bytes or self._departure.half_closed:
                self._go_on()

    def _close(self) -> None:
        """Close when everything written has been sent."""
        self._phase = _OVER
        self._discard_received()
        self.deadline = time.monotonic() + self._state.options.client_stall_timeout_seconds
        if self._transport is not None:
            self._transport.close()

    def _end_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()
