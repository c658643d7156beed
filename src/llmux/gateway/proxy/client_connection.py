"""One client's connection: reads requests one after the other, and writes their answers."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final, cast

import structlog

from llmux.core.request import Priority, Request
from llmux.errors import QueueFull, RequestError
from llmux.gateway.answers import CONTINUE
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
from llmux.gateway.http.bodies import Body
from llmux.gateway.http.chunks import FramingError
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.keep_alive import requested_keep_alive
from llmux.gateway.keys import requested_priority
from llmux.gateway.large_bodies import LARGE_JSON_BYTES
from llmux.gateway.proxy import own_answers, turns
from llmux.gateway.proxy.client_phase import Phase
from llmux.gateway.proxy.departure import Departure
from llmux.gateway.proxy.engine_connection import write_nowhere
from llmux.gateway.proxy.exchange import Exchange
from llmux.gateway.proxy.flow_control import PauseReason
from llmux.gateway.proxy.handover import hand_over
from llmux.gateway.proxy.intake import Intake
from llmux.gateway.proxy.model_search import ModelSearch, find_at_once
from llmux.gateway.proxy.receiving import ReceivedBody
from llmux.gateway.proxy.requesting_client import RequestingClient
from llmux.gateway.refusals import check_head, find_route
from llmux.gateway.routing import (
    Destination,
    EngineCall,
    Route,
    explain,
    find_in_json,
    is_in_json_alone,
    request_line,
)
from llmux.gateway.state import GatewayState

log = structlog.get_logger("llmux.gateway")

_NEVER: Final = math.inf

# Bound once, for speed: see the docstring of llmux.gateway.
_now: Final = time.monotonic
_HEAD: Final = Phase.HEAD
_BODY: Final = Phase.BODY
_ANSWERING: Final = Phase.ANSWERING
_LINGERING: Final = Phase.LINGERING
_OVER: Final = Phase.OVER
_TO_ENGINE: Final = Destination.ENGINE


class ClientConnection(RequestingClient):
    """Reads requests with keep-alive and bounded pipelining; answers strictly in order."""

    __slots__ = (
        "_allowed_priority",
        "_body",
        "_control_head",
        "_departure",
        "_exchange",
        "_intake",
        "_is_in_json_alone",
        "_phase",
        "_repeatable",
        "_route",
        "_search",
        "_state",
        "_transport",
        "deadline",
    )

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self.head = RequestHead()
        self._phase = _HEAD
        self._transport: asyncio.Transport | None = None
        self.write = write_nowhere
        """The transport's own ``write``."""
        self.is_full = False
        self.deadline = _NEVER
        self._intake = Intake(state)
        self._body: ReceivedBody | None = None
        """That of the current request, until the model in it is known."""
        self._search: ModelSearch | None = None
        """A thread looks for the model in the body of the current request."""
        self._control_head = b""
        """The head of a request for the control plane, as it came."""
        self._departure: Departure | None = None
        """None while the client may send more."""
        self._exchange: Exchange | None = None
        self._route: Route | None = None
        self._allowed_priority = Priority.INTERACTIVE
        """The highest that the key of the current request allows."""
        self._is_in_json_alone = False
        """Whether the current head and route leave it to a JSON body to name the model, as most do."""
        self._repeatable = False
        """Whether a head that repeats the last one leads to the same route, with the same key, and none has begun."""
        self.request_line = b""
        self.cors_fields = b""
        self.counts = state.statistics.of(b"", "other")
        self.started_at = 0.0

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        state = self._state
        self._transport = cast("asyncio.Transport", transport)
        self._intake.flow.attach(self._transport)
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
        self.deadline = _now() + state.options.head_timeout_seconds

    def data_received(self, data: bytes) -> None:
        try:
            if self._repeatable and self._phase is _HEAD and self._take_repeated(data):
                return
            if self._phase is not _LINGERING and self._phase is not _OVER and self._intake.receive(data):
                self._work_off()
        except Exception as error:
            self._fail(error)

    def eof_received(self) -> bool:
        if self._phase is _ANSWERING and not self.head.http10:
            self._departure = Departure()
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
        self.deadline = _now() + self._state.options.client_stall_timeout_seconds
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

    def answered(self, keep_alive: bool) -> None:
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
        keep_alive, head_only = self._may_keep_alive(), self.head.is_head
        own_answers.write_error(self, error, request_id, keep_alive=keep_alive, head_only=head_only)
        self.answered(keep_alive)

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
        if self._phase is _HEAD and not self._intake.has_part_of_head and not self._intake.pending_bytes:
            self._close()

    def time_out(self) -> None:
        options, phase = self._state.options, self._phase
        if PauseReason.OTHERS_TURN in self._intake.flow.reasons:
            # The client has done its part.
            self.deadline = _now() + options.head_timeout_seconds
        elif phase is _HEAD and self._intake.has_part_of_head:
            self._refuse_and_close(RequestStalled(f"its head took longer than {options.head_timeout_seconds:g} s"))
        elif phase is _HEAD:
            self._close()
        elif phase is _ANSWERING and self._departure is not None and self._departure.in_doubt() and not self.is_full:
            self._look()
        elif phase is _BODY and self._body is not None:
            self._refuse_and_close(self._body.stalled())
        elif self._exchange is not None and not self.is_full:
            # A client that cannot take the comment has got another deadline meanwhile.
            self.deadline = max(self._exchange.send_wait_comment(self._state.now), self.deadline)
        else:
            self.abort()

    def _probe(self) -> None:
        if self._departure is not None and self._phase is _ANSWERING and not self.is_full:
            self.write(self._exchange.probe() if self._exchange is not None else CONTINUE)
            self._departure.probed()
            self._state.turns.put_off(self._look)

    def _look(self) -> None:
        departure = self._departure
        if departure is None or self._phase is not _ANSWERING or self._transport is None or self.is_full:
            return
        if not departure.in_doubt():
            return
        if departure.look(self._transport):
            self.abort()
        else:
            # The next look, or the exchange's next comment.
            self.deadline = self._state.now if departure.in_doubt() or self._exchange else _NEVER

    # Reading requests.

    def can_take_more(self) -> bool:
        return self._phase is _HEAD or self._phase is _BODY

    def take_some(self) -> None:
        if self._phase is _HEAD:
            self._take_head()
        else:
            self._take_body()

    def take_turn(self) -> None:
        self._intake.begin_turn()
        self._go_on()

    def _work_off(self) -> None:
        self._intake.work_off(self)
        if self._departure is not None and not self._intake.pending_bytes and self.can_take_more():
            self._close()

    def _go_on(self) -> None:
        """Continue with what has been received, outside ``data_received``."""
        try:
            self._work_off()
        except Exception as error:
            self._fail(error)

    def _discard_received(self) -> None:
        if self._search is not None:
            self._search.give_up()
            self._search = None
        self._intake.clear()
        self._drop_body()

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body.release()
            self._body = None

    def _take_repeated(self, data: bytes) -> bool:
        """Fast path: the head repeats the previous one, and its whole body came in the same read.

        Returns False if that is not so; nothing has been consumed then.
        """
        head_bytes, empty_line, body = data.partition(b"\r\n\r\n")
        if not empty_line:
            return False
        head = self.head
        length = head.repeated.length_of(head_bytes)
        options = self._state.options
        if length != len(body) or len(head_bytes) > options.max_head_bytes or length > options.max_body_bytes:
            return False
        head.content_length = length
        self.started_at = _now()
        # Without ``is_busy``: an answer that is given at once finds nothing in the intake to go on with.
        self._take_request(body)
        return True

    def _take_head(self) -> None:
        options, intake = self._state.options, self._intake
        begins = not intake.has_part_of_head
        try:
            head = intake.take_head(options.max_head_bytes)
        except FramingError as error:
            self._refuse_and_close(MalformedRequest(str(error)))
            return
        except HeadTooLarge as refusal:
            self._refuse_and_close(refusal)
            return
        if head:
            self._repeatable = False
            self._route = None
            self.cors_fields = b""
            self.started_at = _now()
            self._parse_head(head)
        elif begins and intake.has_part_of_head:
            self._repeatable = False
            self.deadline = _now() + options.head_timeout_seconds

    def _parse_head(self, head_bytes: bytes) -> None:
        head = self.head
        self._intake.spend(turns.STEPS_OF_A_HEAD)
        try:
            head.parse(head_bytes)
            self._open_request(head_bytes)
        except FramingError as error:
            self._refuse_and_close(MalformedRequest(str(error)))
        except RequestError as refusal:
            if head.chunked or head.content_length or isinstance(refusal, UpgradeRefused | TooManyHeaders):
                self._refuse_and_close(refusal)
            else:
                self._answer_error(refusal)

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
        self._is_in_json_alone = is_in_json_alone(head, route)
        if route.destination is Destination.CONTROL:
            self._control_head = head_bytes
        if not head.chunked and not head.content_length:
            self._take_request(b"")
            return
        length = None if head.chunked else head.content_length
        self._body = ReceivedBody(state, length, to_engine=route.destination is _TO_ENGINE)
        self._phase = _BODY
        if head.expects_continue and not self._intake.pending_bytes and not head.http10:
            self.write(CONTINUE)
        self.deadline = self._body.deadline

    def _take_body(self) -> None:
        body = self._body
        assert body is not None
        try:
            self._intake.take_body(body)
        except FramingError as error:
            self._refuse_and_close(MalformedRequest(str(error)))
            return
        except (RequestTooLarge, QueueFull) as refusal:
            self._refuse_and_close(refusal)
            return
        if not body.finished:
            self.deadline = body.deadline
            return
        self._intake.spend(turns.steps_of_reading(body.size_bytes, is_form=self.head.is_form))
        self._take_request(body.take())
        self._drop_body()

    # Answering.

    def _take_request(self, body: bytes) -> None:
        """Answer a request that has arrived completely."""
        route = self._route
        assert route is not None
        self._phase = _ANSWERING
        self.deadline = _NEVER
        try:
            if self._is_in_json_alone and 0 < len(body) < LARGE_JSON_BYTES:
                name, edited, streams, keep_alive = find_in_json(body, self._state.access.names)
                self._ask_for_model(route, name.model, edited, streams, keep_alive)
            elif route.destination is _TO_ENGINE:
                call = find_at_once(self.head, route, body, self._state.access.names)
                self._ask_for_model(route, call.model, call.body, call.streams, call.keep_alive)
            elif route.destination is Destination.CONTROL:
                self._hand_over(body)
            else:
                self._answer_locally(route)
        except RequestError as error:
            self._answer_error(error)
        except TooLong:
            self._search_model(route, body)

    def _search_model(self, route: Route, body: bytes) -> None:
        """Have a thread find the model."""
        self._search = ModelSearch(self._state, body, self._body)
        self._search.begin(self, route)
        self._body = None  # The search releases it.

    def search_ended(self, route: Route, result: Callable[[], EngineCall]) -> None:
        self._search = None
        try:
            call = result()
            self._ask_for_model(route, call.model, call.body, call.streams, call.keep_alive)
        except asyncio.CancelledError:
            self.abort()
        except RequestError as refusal:
            self._answer_error(refusal)
        except Exception as error:
            self._fail(error)
        finally:
            del result

    def _ask_for_model(self, route: Route, model: str, body: Body, streams: bool, keep_alive: bytes) -> None:
        """Ask for a lease on the model; raises RequestError."""
        state, head = self._state, self.head
        if route.variants is not None:
            # A head that repeats this one may be for a model whose engine calls the path otherwise.
            route = route.variants.of(model)
            self.request_line = request_line(head, route)
        priority = self._allowed_priority
        if head.priority is not None:
            priority = requested_priority(head.priority, priority)
        keep_alive_seconds = None
        if keep_alive or head.model_keep_alive is not None:
            keep_alive_seconds = requested_keep_alive(head.model_keep_alive, keep_alive)
        # A model named by the path may be removed from the configuration, which the router would have to notice.
        self._repeatable = route.model is None
        self.counts.pending += 1
        may_wake = route.may_wake and head.is_post
        size_bytes = len(body) + len(head.forwarded)
        number = state.new_request_number()
        # By position: names would cost as much as everything else that is done to make it.
        request = Request(number, model, priority, streams, may_wake, size_bytes, head.session, keep_alive_seconds)
        if streams:
            self.deadline = self.started_at + state.options.wait_comments_after_seconds
        exchange = self._exchange = Exchange(state, self, request, body)
        state.access.acquire(request, exchange)
        if self._departure is not None:
            self._probe()

    def _answer_locally(self, route: Route) -> None:
        keep_alive = self._may_keep_alive()
        own_answers.write_local(self._state, self, route, keep_alive=keep_alive)
        self.answered(keep_alive)

    def _answer_preflight(self, fields: bytes) -> None:
        keep_alive = self._may_keep_alive()
        self._phase = _ANSWERING
        own_answers.write_preflight(self._state, self, fields, keep_alive=keep_alive)
        self.answered(keep_alive)

    def _answer_error(self, error: RequestError) -> None:
        """Refuse a request that has been read completely."""
        own_answers.count_error(self._state, self, self._route, error)
        self.refused(error, self.head.request_id or self._state.new_request_id())

    def _refuse_and_close(self, error: RequestError) -> None:
        """Refuse a request that has not been read completely, and close once the client can have read the refusal."""
        assert self._transport is not None
        if self._phase is _HEAD:
            self.started_at = _now()
        own_answers.count_error(self._state, self, self._route, error)
        own_answers.write_error(self, error, self._state.new_request_id(), keep_alive=False, head_only=False)
        # Closing with unread data would make the kernel send a reset, upon which the client may lose the refusal.
        self._phase = _LINGERING
        self._discard_received()
        self.deadline = _now() + self._state.options.linger_seconds
        if not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def _hand_over(self, body: bytes) -> None:
        """Give the connection to the control plane's HTTP server, with the current request and no other."""
        factory, transport = self._state.options.control_protocol_factory, self._transport
        assert factory is not None and transport is not None
        self._phase = _OVER
        self.deadline = _NEVER
        self.write = write_nowhere
        self._state.forget(self)
        self._discard_received()
        self._intake.flow.clear()
        hand_over(transport, factory(), self._control_head, body, is_full=self.is_full)

    # Ends.

    def _fail(self, error: Exception) -> None:
        """Answer a request in spite of an error in llmux itself."""
        self._intake.is_busy = False
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
            self.deadline = _now() + self._state.options.client_stall_timeout_seconds
            return
        self._phase = _HEAD
        self.deadline = self._state.now + self._state.options.client_keep_alive_seconds
        if not self._intake.is_busy and (self._intake.renew_budget() or self._departure is not None):
            self._go_on()

    def _close(self) -> None:
        """Close when everything written has been sent."""
        self._phase = _OVER
        self._discard_received()
        self.deadline = _now() + self._state.options.client_stall_timeout_seconds
        if self._transport is not None:
            self._transport.close()

    def _end_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()
