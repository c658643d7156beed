"""One connection to an engine: sends a request, follows the framing of its answer, relays the bytes untouched."""

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Protocol, cast

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

    def first_bytes(self) -> None:
        """The answer's body begins: of a stream, the first token."""

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


# Looking up a member of an Enum costs more than the comparison it is for, and this is the hot path.
_IDLE: Final = _Phase.IDLE
_HEAD: Final = _Phase.HEAD
_HELD: Final = _Phase.HELD
_LENGTH: Final = _Phase.LENGTH
_CHUNKED: Final = _Phase.CHUNKED
_UNTIL_CLOSE: Final = _Phase.UNTIL_CLOSE
_CLOSED: Final = _Phase.CLOSED
_BY_LENGTH: Final = Framing.LENGTH
_BY_CHUNKS: Final = Framing.CHUNKED
_WITHOUT_BODY: Final = Framing.NONE


def _nowhere(_data: bytes) -> None:
    """Where a connection writes that is not open."""


class EngineConnection(asyncio.Protocol):
    """Carries one request at a time; ``heard`` tells whether a byte of the present answer has arrived."""

    __slots__ = (
        "_body",
        "_chunks",
        "_head",
        "_large_request",
        "_last_piece",
        "_paused",
        "_phase",
        "_pool",
        "_receiver",
        "_remaining",
        "_send_bytes",
        "_silent",
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
        self._send_bytes: Callable[[bytes], None] = _nowhere
        self._receiver: AnswerReceiver | None = None
        self._phase: _Phase = _IDLE
        self._head: ResponseHead | None = None
        self._body = b""
        self._last_piece = b""
        self._chunks: ChunkReader | None = None
        self._write: Callable[[bytes], None] | None = None
        self._remaining = 0
        self._to_head_request = False
        self._large_request = False
        self._until_close = False
        self._paused = False
        self._silent = False
        self.body_bytes = 0
        self.heard = False
        self.reused = False
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        """Whether a request can be sent on it."""
        return self._phase is _IDLE and self._transport is not None and not self._transport.is_closing()

    def frame_event(self, event: bytes) -> bytes:
        """How to write an event into the answer at this point, also after a loss; empty if that is impossible."""
        chunks = self._chunks
        if chunks is None:
            return event if self._until_close else b""
        if chunks.payload is not None:
            return event
        return b"%x\r\n%b\r\n" % (len(event), event) if chunks.between_chunks else b""

    def frame_comment(self, comment: bytes) -> bytes:
        """How to write a comment between two events of the answer; empty where it would stand in the middle of one."""
        piece = self._last_piece.removesuffix(b"\r\n") if self._chunks is not None else self._last_piece
        return self.frame_event(comment) if piece.endswith((b"\n\n", b"\r\n\r\n")) else b""

    def send(self, receiver: AnswerReceiver, head: bytes, body: bytes, *, to_head_request: bool) -> None:
        """Send a request; the receiver is told about its answer."""
        self._receiver = receiver
        self._phase = _HEAD
        self._to_head_request = to_head_request
        self._silent = True
        self.heard = False
        if len(body) < _LARGE_REQUEST_BYTES:
            self._large_request = False
            self._send_bytes(head + body)
        else:
            self._large_request = True
            self._send_bytes(head)
            self._send_bytes(body)

    def relay(self, head: bytes, write: Callable[[bytes], None], *, unchunk: bool) -> None:
        """Write ``head`` and then the answer's body as it comes; ``unchunk`` takes a chunked body apart."""
        assert self._head is not None
        answer = self._head
        framing = answer.framing
        body, self._body = self._body, b""
        if framing is _BY_LENGTH:
            self._write = write
            self.body_bytes = 0
            self._remaining = answer.content_length
            self._phase = _LENGTH
            self._relay_length(body, head)
        elif framing is _BY_CHUNKS:
            self._write = write
            self.body_bytes = 0
            self._phase = _CHUNKED
            self._chunks = ChunkReader(collect=unchunk)
            self._relay_chunked(body, head)
        elif framing is _WITHOUT_BODY:
            self.body_bytes = 0
            write(head)
            self._complete(clean=not body)
        else:
            self._write = write
            self._phase = _UNTIL_CLOSE
            self._until_close = True
            self.body_bytes = len(body)
            if body:
                self._speaks()
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
        self._phase = _CLOSED
        if self._transport is not None:
            self._transport.abort()

    def become_idle(self) -> None:
        """Wait in the pool for the next request."""
        self._phase = _IDLE
        if self._paused:
            self.resume_reading()
        self.reused = True
        self._pool.put(self)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # uvloop would write at the end of the loop's turn, and to many connections in any order: what has waited
        # together for a model has to reach it in the order in which it was admitted.
        self._transport.set_write_buffer_limits(high=0)
        self._send_bytes = self._transport.write
        self._pool.open_count += 1

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is _CHUNKED:
            self._relay_chunked(data)
        elif phase is _HEAD:
            self.heard = True
            self._take_head(self._body + data if self._body else data)
        elif phase is _LENGTH:
            self._relay_length(data)
        elif phase is _UNTIL_CLOSE:
            if self._silent:
                self._speaks()
            self.body_bytes += len(data)
            self._last_piece = data
            assert self._write is not None
            self._write(data)
        elif phase is _HELD:
            self._body += data
        elif phase is _IDLE:
            self._pool.discard(self)
            self.abort()

    def eof_received(self) -> None:
        if self._phase is _IDLE:
            self._phase = _CLOSED
            self._pool.discard(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.open_count -= 1
        phase, self._phase = self._phase, _CLOSED
        receiver, self._receiver = self._receiver, None
        self._write = None
        if phase is _IDLE:
            self._pool.discard(self)
        elif receiver is None:
            pass
        elif phase is _UNTIL_CLOSE and exc is None:
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
                head = self._pool.heads.read(data[: end + 4], to_head_request=self._to_head_request)
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
        self._phase = _HELD
        assert self._receiver is not None
        self._receiver.answer_began(head)

    def _relay_length(self, data: bytes, head: bytes = b"") -> None:
        length = len(data)
        write = self._write
        assert write is not None
        if self._silent and data:
            self._speaks()
        remaining = self._remaining
        if length < remaining:
            self._remaining = remaining - length
            self.body_bytes += length
            write(head + data)
            return
        self.body_bytes += remaining
        if length == remaining:
            write(head + data)
            self._complete(clean=True)
        else:
            write(head + data[:remaining])
            self._complete(clean=False)

    def _relay_chunked(self, data: bytes, head: bytes = b"") -> None:
        chunks = self._chunks
        write = self._write
        assert chunks is not None
        assert write is not None
        if self._silent and data:
            self._speaks()
        self.body_bytes += len(data)
        self._last_piece = data
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

    def _speaks(self) -> None:
        self._silent = False
        assert self._receiver is not None
        self._receiver.first_bytes()

    def _complete(self, *, clean: bool) -> None:
        receiver, self._receiver = self._receiver, None
        head, self._head = self._head, None
        self._write = None
        self._chunks = None
        self._last_piece = b""
        assert receiver is not None
        assert head is not None
        assert self._transport is not None
        unsent = self._large_request and self._transport.get_write_buffer_size() > 0
        if clean and head.reusable and not unsent:
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
