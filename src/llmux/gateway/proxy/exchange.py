"""One request, from the lease to the end of its answer, with everything that can go wrong on the way."""

import math
import time
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Any, Final, ParamSpec
from urllib.parse import quote

import structlog

from llmux.access import Outcome, Progress, Upstream
from llmux.core.request import Request
from llmux.errors import EngineDied, FailureReason, RequestError
from llmux.gateway.answers import CONTINUE, error_event, shape_of, waiting_times
from llmux.gateway.endpoints import ANNOUNCED_STREAMS, EVENT_STREAMS, UPSTREAM
from llmux.gateway.errors import BadGateway, InternalError, OutOfDescriptors
from llmux.gateway.http.bodies import Body
from llmux.gateway.http.engine_addresses import AddressExposed
from llmux.gateway.http.response_head import Framing, ResponseHead
from llmux.gateway.pages import without_cors
from llmux.gateway.proxy.begun_answer import BegunAnswer, accepts_comments, can_be_finished
from llmux.gateway.proxy.engine_connection import EngineConnection
from llmux.gateway.proxy.first_output import OutputFinder
from llmux.gateway.proxy.flow_control import PauseReason
from llmux.gateway.proxy.pool import EnginePool
from llmux.gateway.proxy.requesting_client import RequestingClient
from llmux.gateway.state import GatewayState
from llmux.gateway.statistics import CLIENT_GONE_STATUS
from llmux.observability.access_log import FinishedRequest

P = ParamSpec("P")

log = structlog.get_logger("llmux.gateway")


class _Phase(Enum):
    QUEUED = auto()
    """The lease has been asked for."""
    CONNECTING = auto()
    """There is a lease, and a connection to its engine is being made."""
    AWAITING_THAW = auto()
    """There is a lease, but its engine was frozen before the request could be sent."""
    SENT = auto()
    """The engine has the request; nothing of its answer has been written to the client."""
    RELAYING = auto()
    """The client has at least the answer's head."""
    OVER = auto()


# Bound once, for speed: see the docstring of llmux.gateway.
_now: Final = time.monotonic
_QUEUED: Final = _Phase.QUEUED
_SENT: Final = _Phase.SENT
_RELAYING: Final = _Phase.RELAYING
_OVER: Final = _Phase.OVER
_BY_LENGTH: Final = Framing.LENGTH
_BY_CHUNKS: Final = Framing.CHUNKED
_UNTIL_CLOSE: Final = Framing.UNTIL_CLOSE
_COMPLETED: Final = Outcome.COMPLETED

_NOT_QUEUED: Final = b"\r\nx-llmux-queue-ms: 0\r\n"
_COMMENT: Final = b": keep-alive\n\n"


class Exchange:
    """Holds the lease of one request and joins the client's connection with an engine's."""

    __slots__ = (
        "_answer",
        "_begun",
        "_body",
        "_client",
        "_engine",
        "_keep_alive",
        "_last_comment_at",
        "_output_finder",
        "_phase",
        "_request",
        "_request_id",
        "_retried",
        "_size_bytes",
        "_state",
        "_upstream",
    )

    def __init__(self, state: GatewayState, client: RequestingClient, request: Request, body: Body) -> None:
        self._state = state
        self._client = client
        self._request = request
        self._body: Body = body
        """Kept until the answer's body begins, since until then the request may have to be sent again."""
        self._request_id = client.head.request_id or state.request_id_format % request.id
        self._phase = _QUEUED
        self._upstream: Upstream | None = None
        """The engine that the lease is for; None while there is no lease."""
        self._engine: EngineConnection | None = None
        self._retried = False
        """Whether, under this lease, a pooled connection has turned out to be closed."""
        self._last_comment_at: float | None = None
        """None unless the request is frozen; begins with the time of the freeze."""
        self._begun: BegunAnswer | None = None
        """The answer whose head the client has already, if that is not the current engine's."""
        self._answer: ResponseHead | None = None
        """The head of the current engine's answer, once its body is being relayed."""
        self._output_finder: OutputFinder | None = None
        """Looks for the first token, where it is not the first thing that is sent."""
        self._keep_alive = False
        """Whether the client was told, in the answer's head, that its connection stays open."""
        self._size_bytes = len(body)

    # Called back for the lease.

    def admitted(self, upstream: Upstream) -> None:
        if self._phase is not _QUEUED:
            return
        self._upstream = upstream
        try:  # As ``_guard``, without its cost: this is on the path of every request.
            pool = self._state.pools.of(upstream)
            if pool.idle:
                self._send(pool.idle.pop(), pool)
            else:
                self._connect(pool)
        except Exception as error:
            self.failed(error)

    def rejected(self, error: RequestError) -> None:
        if self._phase is _QUEUED:
            self._refuse(error)

    def revoked(self, error: RequestError) -> None:
        phase = self._phase
        if self._upstream is None or phase is _OVER or phase is _QUEUED:
            return
        self._end_suspension()
        engine = self._drop_engine()
        if phase is _RELAYING and engine is not None and not self._is_untouched(engine):
            self._break_off(error, engine)
        elif isinstance(error, EngineDied):
            self._give_back("the engine died")
        else:
            self._keep_head()
            self._upstream = None
            self._refuse(error)

    def frozen(self) -> None:
        self._last_comment_at = _now()
        self._state.frozen.add(self)

    def held(self) -> None:
        if self._engine is not None:
            self._engine.flow.pause(PauseReason.HELD_UNTIL_THAW)

    def thawed(self) -> None:
        self._end_suspension()
        engine, upstream = self._engine, self._upstream
        if engine is not None:
            engine.flow.resume(PauseReason.HELD_UNTIL_THAW)
            self._guard(self._relay_withheld, engine)
        elif self._phase is _Phase.AWAITING_THAW and upstream is not None:
            # It goes on as one that has just been admitted.
            self._phase = _QUEUED
            self.admitted(upstream)

    def progress(self) -> Progress | None:
        engine = self._engine
        if engine is None or not engine.has_answered:  # the connection still counts the bytes of its last answer
            return False, 0
        return None if engine.flow.reasons else (True, engine.body_bytes)

    # Called by the sweep of the gateway's state.

    def send_freeze_comment(self, now: float) -> None:
        last = self._last_comment_at
        if last is None or self._client.is_full or now - last < self._state.options.keepalive_seconds:
            return
        if comment := self._comment_in_answer():
            self._last_comment_at = now
            self._client.write(comment)

    # Called by the client's connection.

    def send_wait_comment(self, now: float) -> float:
        """Send the client of a stream that has had nothing yet a comment; returns when to be called again."""
        try:
            return self._comment(now)
        except Exception as error:
            self.failed(error)
            return 0.0

    def _comment(self, now: float) -> float:
        begun, engine, answer = self._begun, self._engine, self._answer
        if self._phase is _RELAYING and engine is not None and answer is not None:
            if begun is not None and not begun.is_untouched(engine.body_bytes):
                return math.inf
            if begun is None and (engine.body_bytes or not answer.is_event_stream):
                return math.inf
            if begun is None or begun.passes_chunks:
                self._client.write(engine.frame_event(_COMMENT))
                return now + self._state.options.keepalive_seconds
        if begun is None:
            first_at = self._client.started_at + self._state.options.wait_comments_after_seconds
            if now < first_at:
                return first_at
            begun = self._begin_stream()
        if begun is None or not begun.takes_events:
            return math.inf
        begun.comment(self._state.access.outlook(self._request) if self._phase is _QUEUED else None)
        return now + self._state.options.keepalive_seconds

    def client_gone(self) -> None:
        """The client left, or its connection is being closed."""
        phase = self._phase
        if phase is _OVER:
            return
        self._phase = _OVER
        self._end_suspension()
        self._finish(CLIENT_GONE_STATUS, self._engine.body_bytes if self._engine is not None else 0)
        if phase is _QUEUED:
            self._state.access.cancel(self._request)
        elif self._upstream is not None:
            self._drop_engine()
            self._state.access.end(self._request, Outcome.CLIENT_GONE)

    def client_full(self) -> None:
        """The client reads its answer more slowly than the engine writes it."""
        if self._engine is not None and self._phase is _RELAYING:
            self._engine.flow.pause(PauseReason.CLIENT_FULL)

    def client_drained(self) -> None:
        """The client has caught up."""
        if self._engine is not None:
            self._engine.flow.resume(PauseReason.CLIENT_FULL)

    def probe(self) -> bytes:
        """What may be written to the client now without disturbing it; nothing where anything would."""
        if self._phase is _RELAYING:
            return self._comment_in_answer()
        begun = self._begun
        if begun is None:
            return CONTINUE
        return begun.frame(_COMMENT) if begun.takes_events else b""

    def _comment_in_answer(self) -> bytes:
        """The bytes of a comment between two events of the answer; empty where none may stand."""
        begun, engine, answer = self._begun, self._engine, self._answer
        if engine is None or answer is None or not answer.is_event_stream:
            return b""
        comment = engine.frame_comment(_COMMENT)
        return comment if begun is None or begun.passes_chunks or not comment else begun.frame(comment)

    def failed(self, error: Exception) -> None:
        """An unexpected error in llmux itself: the request ends with an answer all the same."""
        log.error("unexpected error while a request was served", exc_info=error, model=self._request.model)
        phase = self._phase
        if phase is _OVER:
            return
        self._client.head.keep_alive = False
        self._end_suspension()
        engine = self._drop_engine()
        if phase is _RELAYING and engine is not None:
            self._break_off(InternalError(), engine)
        else:
            self._refuse(InternalError())
        if self._upstream is not None:
            self._upstream = None
            self._state.access.end(self._request, Outcome.BROKEN)
        else:
            self._state.access.cancel(self._request)

    # Called by the engine's connection.

    def answer_began(self, head: ResponseHead) -> None:
        if head.status >= 500:
            self._withhold()
            return
        try:  # As in ``admitted``.
            self._relay(head)
        except Exception as error:
            self.failed(error)

    def _withhold(self) -> None:
        """Find out whether the engine is dying before its error is relayed."""
        engine, request = self._engine, self._request
        assert engine is not None
        attempt = request.attempts
        engine.flow.pause(PauseReason.CHECKING_HEALTH)

        def report(alive: bool) -> None:
            if self._engine is not engine or request.attempts != attempt or self._phase is not _SENT:
                return  # Meanwhile the client left, or the lease was revoked.
            if alive:
                engine.flow.resume(PauseReason.CHECKING_HEALTH)
                self._guard(self._relay_withheld, engine)
            else:
                self._drop_engine()
                self._give_back("the engine answered with an error and is dead")

        self._state.access.confirm_alive(request, report)

    def first_bytes(self, data: bytes) -> bool:
        if self._begun is not None and self._begun.passes_nothing:
            return False
        self._body = b""
        if not self._request.streams or self._upstream is None or self._answer is None or self._answer.status >= 400:
            return False
        if self._output_finder is not None and not self._output_finder.find(data):
            return True
        self._state.access.first_token(self._request)
        return False

    def answer_ended(self) -> None:
        engine = self._engine
        assert engine is not None
        self._engine = None
        if self._begun is not None:
            try:
                self._begun.end()
            except Exception as error:
                self.failed(error)
                return
        self._phase = _OVER
        self._upstream = None
        if self._last_comment_at is not None:
            self._end_suspension()
        assert self._answer is not None
        self._finish(self._answer.status, engine.body_bytes)
        # First the lease, so that a pipelined request finds the place in the engine free.
        self._state.access.end(self._request, _COMPLETED)
        self._client.answered(self._keep_alive)

    def engine_lost(self, reason: str) -> None:
        engine, upstream = self._engine, self._upstream
        assert engine is not None
        assert upstream is not None
        if self._phase is _RELAYING and not self._is_untouched(engine):
            # Its exit may be reported in a moment: the same fault must not have two codes, by which came first.
            self._state.access.confirm_alive(self._request, lambda alive: self._lost_in_answer(engine, reason, alive))
            return
        self._engine = None
        if engine.reused and not engine.has_answered and not self._retried:
            # Closed by the engine just as the request was sent, most likely: that is no sign of its death.
            self._retried = True
            self._state.statistics.engine_retries += 1
            if self._last_comment_at is not None:
                self._phase = _Phase.AWAITING_THAW
            else:
                self._connect(self._state.pools.of(upstream))
        else:
            self._give_back(reason)

    def _lost_in_answer(self, engine: EngineConnection, reason: str, alive: bool) -> None:
        """The answer broke off, and whether the engine lives is known now."""
        if self._engine is not engine or self._phase is not _RELAYING:
            return  # Meanwhile the client left, or the lease was revoked.
        self._end_suspension()
        self._engine = None
        self._upstream = None
        model = self._request.model
        error: RequestError
        if alive:
            error = BadGateway(model, f"the answer is incomplete: {reason}")
        else:
            error = EngineDied(model, FailureReason(reason))
        self._break_off(error, engine)
        self._state.access.end(self._request, Outcome.BROKEN)

    # Called by the pool.

    def connected(self, engine: EngineConnection, attempt: int) -> bool:
        upstream = self._upstream
        if self._phase is not _Phase.CONNECTING or self._request.attempts != attempt or upstream is None:
            return False
        if self._last_comment_at is not None:
            self._phase = _Phase.AWAITING_THAW
            return False
        self._guard(self._send, engine, self._state.pools.of(upstream))
        return True

    def connect_failed(self, reason: str, attempt: int) -> None:
        if self._phase is _Phase.CONNECTING and self._request.attempts == attempt:
            self._give_back(reason)

    def connect_shortage(self, reason: str, attempt: int) -> None:
        if self._phase is not _Phase.CONNECTING or self._request.attempts != attempt:
            return
        if self._last_comment_at is not None:
            self._phase = _Phase.AWAITING_THAW
            return
        self._end_lease()
        self._refuse(OutOfDescriptors(reason))

    # Steps.

    def _guard(self, step: Callable[P, None], *arguments: P.args, **options: P.kwargs) -> None:
        """Take a step that nobody who calls the exchange could answer for if it raised."""
        try:
            step(*arguments, **options)
        except Exception as error:
            self.failed(error)

    def _connect(self, pool: EnginePool) -> None:
        self._phase = _Phase.CONNECTING
        self._state.spawn(self._run(pool.connect(self, self._request.attempts)))

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task of the server's on behalf of the request: an error in it must not end the server."""
        try:
            await work
        except Exception as error:
            self.failed(error)

    def _send(self, engine: EngineConnection, pool: EnginePool) -> None:
        self._phase = _SENT
        self._engine = engine
        client, body = self._client, self._body
        head = client.head
        tail = b"\r\n\r\n"
        if body or head.content_length is not None or head.chunked:
            tail = b"\r\ncontent-length: %d\r\n\r\n" % len(body)
        head_bytes = b"".join(
            (client.request_line, pool.fixed_headers, head.forwarded, b"x-request-id: ", self._request_id, tail)
        )
        has_waited = self._request.queue_seconds > 0.0
        engine.send(self, head_bytes, body, head.is_head, has_waited)

    def _relay_withheld(self, engine: EngineConnection) -> None:
        """Relay an answer whose head has been withheld, if there is one and no reason to withhold it is left."""
        head = engine.withheld_head
        if head is not None and not engine.flow.reasons:
            self._relay(head)

    def _begin_stream(self) -> BegunAnswer | None:
        """Send the head of an event stream before there is an answer, if the request allows that."""
        client, state = self._client, self._state
        head, endpoint = client.head, client.counts.endpoint
        is_stream = self._request.streams and head.is_post and endpoint in EVENT_STREAMS
        if not is_stream or not accepts_comments(head.forwarded):
            return None
        self._keep_alive = head.keep_alive and not state.stopping
        self._begun = begun = self._begun_answer(None)
        begun.begin(client.cors_fields, keep_alive=self._keep_alive)
        return begun

    def _begun_answer(self, head: ResponseHead | None) -> BegunAnswer:
        client = self._client
        path, http10 = client.head.path, client.head.http10
        return BegunAnswer(client.write, self._request.model, path, self._request_id, http10=http10, head=head)

    def _is_untouched(self, engine: EngineConnection) -> bool:
        """Whether an answer that is being relayed can still be another engine's: the client has nothing of its body."""
        if self._begun is not None:
            return self._begun.is_untouched(engine.body_bytes)
        return not engine.body_bytes and self._answer is not None and can_be_finished(self._answer)

    def _keep_head(self) -> None:
        """The answer is lost; if the client has its head, the next one has to fit it."""
        if self._begun is not None:
            self._begun.lose_answer()
        elif self._answer is not None:
            self._begun = self._begun_answer(self._answer)
        self._answer = None

    def _relay(self, head: ResponseHead) -> None:
        engine, request, client = self._engine, self._request, self._client
        assert engine is not None
        self._phase = _RELAYING
        self._answer = head
        if request.streams and client.counts.endpoint in ANNOUNCED_STREAMS and head.is_event_stream:
            self._output_finder = OutputFinder(is_chunked=head.framing is _BY_CHUNKS)
        begun = self._begun
        if begun is not None:
            if not begun.takes_events and not begun.fits(head):
                self._refuse_answer("it differs from the one whose head has been sent, and whose engine died")
                return
            if client.is_full:
                engine.flow.pause(PauseReason.CLIENT_FULL)
            write = begun.take(head)
            engine.relay(b"", write, unchunk=not begun.passes_chunks)
            return
        if head.has_addresses and not self._hide_addresses(head):
            return
        fields, framing = head.fields, head.framing
        keep_alive = client.head.keep_alive and framing is not _UNTIL_CLOSE and not self._state.stopping
        unchunk = client.head.http10 and framing is _BY_CHUNKS
        if unchunk:
            fields = head.without_transfer_encoding()
        times = _NOT_QUEUED
        if request.queue_seconds or request.switch_seconds is not None:
            times = waiting_times(request)
        if not keep_alive:
            times += b"connection: close\r\n"
        self._keep_alive = keep_alive
        if client.is_full:
            engine.flow.pause(PauseReason.CLIENT_FULL)
        if cors_fields := client.cors_fields:
            fields = without_cors(fields)
        reports_first_bytes = request.streams or framing is not _BY_LENGTH
        if not reports_first_bytes:  # It will not be sent again.
            self._body = b""
        head_bytes = b"".join(
            (head.status_line, b"x-request-id: ", self._request_id, times, cors_fields, fields, b"\r\n")
        )
        engine.relay(head_bytes, client.write, unchunk, reports_first_bytes)

    def _hide_addresses(self, head: ResponseHead) -> bool:
        """Make the engine's references to itself lead through llmux; the answer is refused where that cannot be."""
        upstream, model = self._upstream, self._request.model
        assert upstream is not None
        by_upstream = self._client.head.path.startswith(UPSTREAM)
        prefix = UPSTREAM + quote(model, safe="").encode() if by_upstream else b""
        try:
            head.fields = self._state.pools.of(upstream).address.hide(head.fields, prefix)
        except AddressExposed as exposed:
            self._refuse_answer(str(exposed))
            return False
        return True

    def _refuse_answer(self, reason: str) -> None:
        """The engine has answered, and the client cannot get that answer."""
        model = self._request.model
        self._drop_engine()
        self._end_suspension()
        self._answer = None
        self._end_lease()
        self._refuse(BadGateway(model, f"the answer of the engine of '{model}' is not passed on: {reason}"))

    def _end_lease(self) -> None:
        """End it without an answer, before the client is refused, as in ``answer_ended``."""
        self._upstream = None
        self._state.access.end(self._request, Outcome.BROKEN)

    def _give_back(self, reason: str) -> None:
        self._end_suspension()
        self._keep_head()
        self._phase = _QUEUED
        self._upstream = None
        self._retried = False
        self._state.access.give_back(self._request, self, reason)

    def _refuse(self, error: RequestError) -> None:
        error = self._client.explained(error)
        self._phase = _OVER
        self._finish(shape_of(error).status)
        if self._begun is None:
            self._client.refused(error, self._request_id)
        elif self._begun.takes_events:
            self._begun.end_with(error)
            self._client.answered(self._keep_alive)
        else:
            self._client.cut_off(b"")

    def _break_off(self, error: RequestError, engine: EngineConnection) -> None:
        """End a stream visibly: with an error event where one can be inserted, and never with a clean end."""
        assert self._answer is not None
        self._phase = _OVER
        self._finish(self._answer.status, engine.body_bytes)
        begun = self._begun
        event = error_event(error, self._client.head.path, self._request_id)
        if begun is not None and not begun.passes_chunks:
            self._client.cut_off(begun.frame(event))
        else:
            self._client.cut_off(engine.frame_event(event) if self._answer.is_event_stream else b"")

    def _drop_engine(self) -> EngineConnection | None:
        """Close the connection to the engine, which ends its work; returns the connection."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.abort()
        return engine

    def _end_suspension(self) -> None:
        self._last_comment_at = None
        self._state.frozen.discard(self)

    def _finish(self, status: int, body_bytes: int = 0) -> None:
        """Count and log the request."""
        client = self._client
        seconds = _now() - client.started_at
        client.counts.finish(status, seconds, body_bytes)
        access_log = self._state.options.access_log
        if access_log is not None:
            access_log.add(
                FinishedRequest(
                    request_id=self._request_id,
                    model=self._request.model,
                    endpoint=client.counts.endpoint,
                    status=status,
                    request_bytes=self._size_bytes,
                    response_bytes=body_bytes,
                    is_stream=self._answer is not None and self._answer.is_event_stream,
                    queue_seconds=self._request.queue_seconds,
                    seconds=seconds,
                    session=self._request.session,
                )
            )
