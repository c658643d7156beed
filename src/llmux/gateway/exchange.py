"""One request's life: from the access to an engine and back, with everything that can go wrong on the way."""

import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from llmux.access import Lease, Outcome, Priority
from llmux.errors import BadGateway, EngineDied, RequestError
from llmux.gateway.engine_connection import EngineConnection
from llmux.gateway.errors import error_event, shape_of
from llmux.gateway.response_head import Framing, ResponseHead
from llmux.gateway.statistics import CLIENT_GONE_STATUS
from llmux.gateway.suspension import Suspension
from llmux.observability.access_log import AccessLog

if TYPE_CHECKING:
    from llmux.gateway.client_connection import ClientConnection
    from llmux.gateway.pool import EnginePool
    from llmux.gateway.state import GatewayState


class _Phase(Enum):
    WAITING = auto()
    """The access has the request."""
    CONNECTING = auto()
    """There is a lease, and no connection yet."""
    PARKED = auto()
    """There is a lease, but its engine was frozen before it was sent the request."""
    SENT = auto()
    """The engine has the request; nothing of its answer has gone to the client."""
    RELAYING = auto()
    """The client has the answer's head."""
    OVER = auto()


# Looking up a member of an Enum costs more than the comparison it is for, and this is the hot path.
_WAITING: Final = _Phase.WAITING
_CONNECTING: Final = _Phase.CONNECTING
_PARKED: Final = _Phase.PARKED
_SENT: Final = _Phase.SENT
_RELAYING: Final = _Phase.RELAYING
_OVER: Final = _Phase.OVER

_UNTIL_CLOSE: Final = Framing.UNTIL_CLOSE
_NO_WAIT = b"\r\nx-llmux-queue-ms: 0\r\n"


def _waiting_times(lease: Lease) -> bytes:
    lines = b"\r\nx-llmux-queue-ms: %d\r\n" % (lease.queue_seconds * 1000)
    if lease.switch_seconds is not None:
        lines += b"x-llmux-switch-ms: %d\r\n" % (lease.switch_seconds * 1000)
    return lines


class Exchange:
    """Holds the lease of one request; ends with exactly one ``answered``, ``refused`` or ``cut_off`` of its client.

    The client's connection ends it from its side by ``client_gone``.
    """

    __slots__ = (
        "_answer",
        "_body",
        "_client",
        "_engine",
        "_keep_alive",
        "_lease",
        "_model",
        "_phase",
        "_queue_seconds",
        "_request",
        "_request_id",
        "_retried",
        "_size_bytes",
        "_state",
        "_suspension",
    )

    def __init__(self, state: "GatewayState", client: "ClientConnection", model: str, body: bytes) -> None:
        self._state = state
        self._client = client
        self._model = model
        self._body = body
        self._request_id = client.head.request_id or state.new_request_id()
        self._phase: _Phase = _WAITING
        self._request = 0
        self._lease: Lease | None = None
        self._engine: EngineConnection | None = None
        self._retried = False
        self._suspension: Suspension | None = None
        self._answer: ResponseHead | None = None
        self._queue_seconds = 0.0
        self._size_bytes = len(body)

    def start(self, *, may_wake: bool, priority: Priority, streams: bool) -> None:
        """Ask the access for a lease."""
        size_bytes = len(self._body) + len(self._client.head.forwarded)
        self._request = self._state.access.acquire(
            self._model, self, size_bytes=size_bytes, may_wake=may_wake, priority=priority, streams=streams
        )

    # Called by the access.

    def lease_granted(self, lease: Lease) -> None:
        if self._phase is not _WAITING:
            return
        self._lease = lease
        self._queue_seconds = lease.queue_seconds
        self._retried = False
        self._begin(lease)

    def lease_refused(self, error: RequestError) -> None:
        if self._phase is _WAITING:
            self._refuse(error)

    def lease_revoked(self, error: RequestError) -> None:
        lease, phase = self._lease, self._phase
        if lease is None or phase is _OVER or phase is _WAITING:
            return
        self._end_suspension()
        engine = self._drop_engine()
        if phase is _RELAYING and engine is not None:
            self._break_off(error, engine)
        elif isinstance(error, EngineDied):
            self._give_back(lease, "the engine died")
        else:
            self._lease = None
            self._refuse(error)

    def lease_frozen(self) -> None:
        self._suspension = Suspension(time.monotonic())
        self._state.frozen.add(self)

    def lease_held(self) -> None:
        if self._suspension is not None:
            self._suspension.held = True
        if self._engine is not None:
            self._engine.pause_reading()

    def lease_thawed(self) -> None:
        head = self._suspension.head if self._suspension is not None else None
        self._end_suspension()
        lease, engine = self._lease, self._engine
        if engine is None:
            if self._phase is _PARKED and lease is not None:
                self._begin(lease)
        elif head is not None:
            engine.resume_reading()
            self._relay(head)
        elif not self._client.is_full or self._phase is not _RELAYING:
            engine.resume_reading()

    # Called by the gateway's sweep.

    def keep_alive(self, now: float) -> None:
        """Let the client of a frozen event stream know that it is not forgotten."""
        engine, answer, suspension = self._engine, self._answer, self._suspension
        if engine is None or answer is None or suspension is None or not answer.event_stream or self._client.is_full:
            return
        comment = suspension.comment_due(engine, now, self._state.options.keepalive_seconds)
        if comment:
            self._client.write(comment)

    # Called by the client's connection.

    def client_gone(self) -> None:
        """The client left, or its connection is being closed."""
        phase, lease = self._phase, self._lease
        if phase is _OVER:
            return
        self._phase = _OVER
        self._end_suspension()
        self._finish(CLIENT_GONE_STATUS, self._engine.body_bytes if self._engine is not None else 0)
        if phase is _WAITING:
            self._state.access.cancel(self._request)
        elif lease is not None:
            self._drop_engine()
            self._state.access.end(lease, Outcome.CLIENT_GONE)

    def client_is_full(self) -> None:
        """The client reads more slowly than the engine writes."""
        if self._engine is not None and self._phase is _RELAYING:
            self._engine.pause_reading()

    def client_has_room(self) -> None:
        """The opposite."""
        if self._engine is not None and self._phase is _RELAYING and not self._is_held:
            self._engine.resume_reading()

    # Called by the engine's connection.

    def answer_began(self, head: ResponseHead) -> None:
        engine, lease = self._engine, self._lease
        assert engine is not None
        assert lease is not None
        if head.status < 500:
            self._relay(head)
            return
        engine.pause_reading()

        def report(alive: bool) -> None:
            if self._engine is not engine or self._lease is not lease or self._phase is not _SENT:
                return
            if alive and self._suspension is not None and self._suspension.held:
                self._suspension.head = head
            elif alive:
                engine.resume_reading()
                self._relay(head)
            else:
                self._drop_engine()
                self._give_back(lease, "the engine answered with an error and is dead")

        self._state.access.confirm_alive(lease, report)

    def first_bytes(self) -> None:
        if self._lease is not None and self._answer is not None and self._answer.status < 400:
            self._state.access.answered(self._lease)

    def answer_ended(self) -> None:
        engine, lease = self._engine, self._lease
        assert engine is not None
        assert lease is not None
        self._phase = _OVER
        self._engine = None
        self._lease = None
        if self._suspension is not None:
            self._end_suspension()
        assert self._answer is not None
        self._finish(self._answer.status, engine.body_bytes)
        self._state.access.end(lease, Outcome.COMPLETED)
        self._client.answered(keep_alive=self._keep_alive)

    def engine_lost(self, reason: str) -> None:
        engine, lease = self._engine, self._lease
        assert engine is not None
        assert lease is not None
        self._engine = None
        is_frozen = self._suspension is not None
        self._end_suspension()
        if self._phase is _RELAYING:
            self._break_off(BadGateway(self._model, f"the answer is incomplete: {reason}"), engine)
            self._lease = None
            self._state.access.end(lease, Outcome.BROKEN)
        elif engine.reused and not engine.heard and not self._retried:
            self._retried = True
            self._state.statistics.engine_retries += 1
            if is_frozen:
                self._park()
            else:
                self._connect(self._state.pools.of(lease.upstream))
        else:
            self._give_back(lease, reason)

    # Its own steps.

    def use(self, engine: EngineConnection, lease: Lease | None) -> bool:
        """A connection was made for this lease; False if it is not wanted any more."""
        if self._phase is not _CONNECTING or self._lease is not lease:
            return False
        assert lease is not None
        if self._suspension is not None:
            self._park()
            return False
        self._send(engine, self._state.pools.of(lease.upstream))
        return True

    def could_not_connect(self, reason: str, lease: Lease | None) -> None:
        """No connection could be made for this lease."""
        if self._phase is _CONNECTING and self._lease is lease and lease is not None:
            self._give_back(lease, reason)

    @property
    def lease(self) -> Lease | None:
        """What the exchange holds now."""
        return self._lease

    def _begin(self, lease: Lease) -> None:
        """Send the request by an idle connection, or make one for it."""
        pool = self._state.pools.of(lease.upstream)
        engine = pool.take()
        if engine is not None:
            self._send(engine, pool)
        else:
            self._connect(pool)

    def _park(self) -> None:
        """Wait for the thaw with a request that no engine has got."""
        self.lease_frozen()
        self._phase = _PARKED

    @property
    def _is_held(self) -> bool:
        return self._suspension is not None and self._suspension.held

    def _end_suspension(self) -> None:
        self._suspension = None
        self._state.frozen.discard(self)

    def _connect(self, pool: "EnginePool") -> None:
        self._phase = _CONNECTING
        self._state.spawn(pool.connect(_Attempt(self)))

    def _send(self, engine: EngineConnection, pool: "EnginePool") -> None:
        self._phase = _SENT
        self._engine = engine
        client, body = self._client, self._body
        head = client.head
        if body or head.content_length is not None or head.chunked:
            tail = b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (self._request_id, len(body))
        else:
            tail = b"x-request-id: %b\r\n\r\n" % self._request_id
        head_bytes = client.request_line + pool.fixed_headers + head.forwarded + tail
        engine.send(self, head_bytes, body, to_head_request=head.method == b"HEAD")

    def _relay(self, head: ResponseHead) -> None:
        engine, lease, client = self._engine, self._lease, self._client
        assert engine is not None
        assert lease is not None
        self._phase = _RELAYING
        self._answer = head
        self._body = b""
        fields = head.fields
        keep_alive = client.head.keep_alive and head.framing is not _UNTIL_CLOSE and not self._state.stopping
        unchunk = client.head.http10 and head.framing is Framing.CHUNKED
        if unchunk:
            fields = head.without_transfer_encoding()
        waited = _NO_WAIT
        if lease.queue_seconds or lease.switch_seconds is not None:
            waited = _waiting_times(lease)
        if not keep_alive:
            waited += b"connection: close\r\n"
        self._keep_alive = keep_alive
        if client.is_full:
            engine.pause_reading()
        own = b"x-request-id: " + self._request_id + waited
        engine.relay(head.status_line + own + fields + b"\r\n", client.write, unchunk=unchunk)

    def _give_back(self, lease: Lease, reason: str) -> None:
        self._end_suspension()
        self._phase = _WAITING
        self._lease = None
        self._request = lease.request
        self._state.access.give_back(lease, reason)

    def _refuse(self, error: RequestError) -> None:
        self._phase = _OVER
        self._finish(shape_of(error).status)
        self._client.refused(error, self._request_id)

    def _break_off(self, error: RequestError, engine: EngineConnection) -> None:
        """End a stream visibly: with an error event where that can be said, and never with a clean end."""
        assert self._answer is not None
        self._phase = _OVER
        self._finish(self._answer.status, engine.body_bytes)
        self._client.cut_off(engine.frame_event(error_event(error)) if self._answer.event_stream else b"")

    def _drop_engine(self) -> EngineConnection | None:
        """Close the engine's connection and forget it."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.abort()
        return engine

    def _finish(self, status: int, body_bytes: int = 0) -> None:
        client = self._client
        seconds = time.monotonic() - client.started_at
        client.counts.finish(status, seconds, body_bytes)
        if self._state.options.access_log is not None:
            self._note(self._state.options.access_log, status, body_bytes, seconds)

    def _note(self, access_log: AccessLog, status: int, body_bytes: int, seconds: float) -> None:
        access_log.add(
            request_id=self._request_id,
            model=self._model,
            endpoint=self._client.counts.endpoint,
            status=status,
            request_bytes=self._size_bytes,
            response_bytes=body_bytes,
            is_stream=self._answer is not None and self._answer.event_stream,
            queue_seconds=self._queue_seconds,
            seconds=seconds,
        )


class _Attempt:
    """One wish for a connection, which the exchange may have dropped when the connection is there."""

    __slots__ = ("_exchange", "_lease")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._lease = exchange.lease

    def connected(self, engine: EngineConnection) -> bool:
        return self._exchange.use(engine, self._lease)

    def connect_failed(self, reason: str) -> None:
        self._exchange.could_not_connect(reason, self._lease)
