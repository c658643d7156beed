"""One connection to an engine: sends a request, follows the framing of its answer, relays the bytes untouched."""

import asyncio
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol, cast

from llmux.gateway.chunks import ChunkReader, FramingError
from llmux.gateway.response_head import Framing, ResponseHead

if TYPE_CHECKING:
    from llmux.gateway.pool import EnginePool

_MAX_HEAD_BYTES = 64 * 1024
_LARGE_REQUEST_BYTES = 64 * 1024


class AnswerReceiver(Protocol):
    """Whose request the connection carries."""

    def answer_began(self, head: ResponseHead) -> None:
        """The head of the final answer is here; the receiver calls ``relay`` now or later, or ``abort``."""

    def answer_ended(self) -> None:
        """The whole answer was relayed; the connection is idle or closed."""

    def engine_lost(self, reason: str) -> None:
        """The connection broke or its bytes make no sense; it is closed."""


class _Phase(Enum):
    IDLE = auto()
    HEAD = auto()
    HELD = auto()
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()
    CLOSED = auto()


class EngineConnection(asyncio.Protocol):
    """Carries one request at a time; ``heard`` tells whether a byte of the present answer has arrived."""

    __slots__ = (
        "_body",
        "_chunks",
        "_head",
        "_large_request",
        "_paused",
        "_phase",
        "_pool",
        "_receiver",
        "_remaining",
        "_to_head_request",
        "_transport",
        "_until_close",
        "_write",
        "body_bytes",
        "heard",
        "idle_since",
        "reused",
    )

    def __init__(self, pool: "EnginePool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._receiver: AnswerReceiver | None = None
        self._phase = _Phase.IDLE
        self._head: ResponseHead | None = None
        self._body = b""
        self._chunks: ChunkReader | None = None
        self._write: Callable[[bytes], None] | None = None
        self._remaining = 0
        self._to_head_request = False
        self._large_request = False
        self._until_close = False
        self._paused = False
        self.body_bytes = 0
        self.heard = False
        self.reused = False
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        """Whether a request can be sent on it."""
        return self._phase is _Phase.IDLE and self._transport is not None and not self._transport.is_closing()

    def frame_event(self, event: bytes) -> bytes:
        """How to write an event into the answer at this point, also after a loss; empty if that is impossible."""
        chunks = self._chunks
        if chunks is None:
            return event if self._until_close else b""
        if chunks.payload is not None:
            return event
        return b"%x\r\n%b\r\n" % (len(event), event) if chunks.between_chunks else b""

    def send(self, receiver: AnswerReceiver, head: bytes, body: bytes, *, to_head_request: bool) -> None:
        """Send a request; the receiver is told about its answer."""
        transport = self._transport
        assert transport is not None
        self._receiver = receiver
        self._phase = _Phase.HEAD
        self._to_head_request = to_head_request
        self.heard = False
        if len(body) < _LARGE_REQUEST_BYTES:
            self._large_request = False
            transport.write(head + body)
        else:
            self._large_request = True
            transport.write(head)
            transport.write(body)

    def relay(self, head: bytes, write: Callable[[bytes], None], *, unchunk: bool) -> None:
        """Write ``head`` and then the answer's body as it comes; ``unchunk`` takes a chunked body apart."""
        assert self._head is not None
        body, self._body = self._body, b""
        self._write = write
        self.body_bytes = 0
        match self._head.framing:
            case Framing.NONE:
                write(head)
                self._complete(clean=not body)
            case Framing.LENGTH:
                self._phase = _Phase.LENGTH
                self._remaining = self._head.content_length
                self._relay_length(body, head)
            case Framing.CHUNKED:
                self._phase = _Phase.CHUNKED
                self._chunks = ChunkReader(collect=unchunk)
                self._relay_chunked(body, head)
            case Framing.UNTIL_CLOSE:
                self._phase = _Phase.UNTIL_CLOSE
                self._until_close = True
                self.body_bytes = len(body)
                write(head + body)

    def pause_reading(self) -> None:
        """Let the engine wait; its closing is not noticed meanwhile."""
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """The opposite."""
        if self._transport is not None and self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once; the receiver hears nothing more."""
        self._receiver = None
        self._write = None
        self._phase = _Phase.CLOSED
        if self._transport is not None:
            self._transport.abort()

    def become_idle(self) -> None:
        """Wait in the pool for the next request."""
        self._phase = _Phase.IDLE
        if self._paused:
            self.resume_reading()
        self.reused = True
        self.idle_since = time.monotonic()
        self._pool.put(self)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pool.open_count += 1

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is _Phase.CHUNKED:
            self._relay_chunked(data)
        elif phase is _Phase.HEAD:
            self.heard = True
            self._take_head(self._body + data if self._body else data)
        elif phase is _Phase.LENGTH:
            self._relay_length(data)
        elif phase is _Phase.UNTIL_CLOSE:
            self.body_bytes += len(data)
            assert self._write is not None
            self._write(data)
        elif phase is _Phase.HELD:
            self._body += data
        elif phase is _Phase.IDLE:
            self._pool.discard(self)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.open_count -= 1
        phase, self._phase = self._phase, _Phase.CLOSED
        receiver, self._receiver = self._receiver, None
        self._write = None
        if phase is _Phase.IDLE:
            self._pool.discard(self)
        elif receiver is None:
            pass
        elif phase is _Phase.UNTIL_CLOSE and exc is None:
            receiver.answer_ended()
        elif self.heard:
            receiver.engine_lost("the engine closed the connection in the middle of its answer")
        else:
            receiver.engine_lost("the engine closed the connection without an answer")

    def _take_head(self, data: bytes) -> None:
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._body = data
                if len(data) > _MAX_HEAD_BYTES:
                    self._break("the head of the engine's answer is too large")
                return
            try:
                head = ResponseHead(data[: end + 4], to_head_request=self._to_head_request)
            except FramingError as error:
                self._break(f"the engine's answer is malformed: {error}")
                return
            data = data[end + 4 :]
            if head.status >= 200:
                break
            if head.status == 101:
                self._break("the engine changed the protocol without being asked to")
                return
        self._head = head
        self._body = data
        self._phase = _Phase.HELD
        assert self._receiver is not None
        self._receiver.answer_began(head)

    def _relay_length(self, data: bytes, head: bytes = b"") -> None:
        length = len(data)
        write = self._write
        assert write is not None
        if length < self._remaining:
            self._remaining -= length
            self.body_bytes += length
            write(head + data)
            return
        self.body_bytes += self._remaining
        clean = length == self._remaining
        write(head + (data if clean else data[: self._remaining]))
        self._complete(clean=clean)

    def _relay_chunked(self, data: bytes, head: bytes = b"") -> None:
        chunks = self._chunks
        write = self._write
        assert chunks is not None
        assert write is not None
        self.body_bytes += len(data)
        try:
            end = chunks.feed(data)
        except FramingError as error:
            self._chunks = None
            if head:
                write(head)
            self._break(f"the engine's answer is malformed: {error}")
            return
        if chunks.payload is not None:
            data = b"".join(chunks.payload)
            chunks.payload.clear()
            if head or data:
                write(head + data)
        elif end < 0 or end == len(data):
            write(head + data if head else data)
        else:
            write(head + data[:end])
        if end >= 0:
            self._complete(clean=end == len(data) or chunks.payload is not None)

    def _complete(self, *, clean: bool) -> None:
        receiver, self._receiver = self._receiver, None
        head, self._head = self._head, None
        self._write = None
        self._chunks = None
        assert receiver is not None
        assert head is not None
        assert self._transport is not None
        unsent = self._large_request and self._transport.get_write_buffer_size() > 0
        if clean and head.reusable and not unsent and not self._transport.is_closing():
            self.become_idle()
        else:
            self.abort()
        receiver.answer_ended()

    def _break(self, reason: str) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        self.abort()
        receiver.engine_lost(reason)
