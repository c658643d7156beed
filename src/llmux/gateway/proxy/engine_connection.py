"""One connection to an engine: sends a request, follows the framing of its answer, relays the bytes untouched."""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Final, Protocol, cast

from llmux.gateway.http.bodies import Body
from llmux.gateway.http.chunks import ChunkReader, FramingError
from llmux.gateway.http.response_head import Framing, ResponseHead, ResponseHeadReader
from llmux.gateway.proxy.flow_control import FlowControl
from llmux.gateway.proxy.turns import Turns

_MAX_HEAD_BYTES: Final = 64 * 1024
_LARGE_REQUEST_BYTES: Final = 64 * 1024
"""Bodies from this size on are written by themselves: copying them behind the head would cost more than a write."""
_HEAD_TOO_LARGE = "the head of the engine's answer is too large"
_MAX_INTERIM_ANSWERS: Final = 16
"""Before one answer. Engines send one, if any; a hundred thousand held up the loop for seconds."""
_TURN_LINES: Final = 512
"""A read with more lines of chunk framing than that is relayed piece by piece, so that other connections get a turn."""
_PIECES_BYTES = (32 * 1024, 8 * 1024, 2 * 1024)
"""The largest without too many lines is taken, or the smallest."""


class AnswerReceiver(Protocol):
    """Receives the answer to the request that a connection carries."""

    def answer_began(self, head: ResponseHead) -> None:
        """The head of the final answer has arrived; the receiver calls ``relay`` now or later, or ``abort``."""

    def first_bytes(self, data: bytes) -> bool:
        """The first bytes of the answer's body have arrived, and are about to be relayed, if ``relay`` asked for that.

        Returns whether to be called with the next ones, too.
        """

    def answer_ended(self) -> None:
        """The whole answer has been relayed; the connection is idle or closed."""

    def engine_lost(self, reason: str) -> None:
        """The connection broke, or what it received is malformed; it is closed."""


class ConnectionOwner(ABC):
    """Keeps the connections to one engine; each reports to it what concerns all of them."""

    __slots__ = ("heads", "turns")

    heads: ResponseHeadReader
    turns: Turns

    @abstractmethod
    def opened(self, engine: "EngineConnection") -> None:
        """A connection was made."""

    @abstractmethod
    def closed(self, engine: "EngineConnection") -> None:
        """A connection was closed, whether idle or in use."""

    @abstractmethod
    def put(self, engine: "EngineConnection") -> None:
        """A connection has become idle."""

    @abstractmethod
    def discard(self, engine: "EngineConnection") -> None:
        """An idle connection cannot be used any more."""


class _Phase(Enum):
    IDLE = auto()
    AWAITING_HEAD = auto()
    HEAD_REPORTED = auto()
    """The receiver has the answer's head and has not called ``relay`` yet; what arrives of the body is kept."""
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()
    CLOSED = auto()


# Bound once, for speed: see the docstring of llmux.gateway.
_IDLE: Final = _Phase.IDLE
_AWAITING_HEAD: Final = _Phase.AWAITING_HEAD
_HEAD_REPORTED: Final = _Phase.HEAD_REPORTED
_LENGTH: Final = _Phase.LENGTH
_CHUNKED: Final = _Phase.CHUNKED
_UNTIL_CLOSE: Final = _Phase.UNTIL_CLOSE
_CLOSED: Final = _Phase.CLOSED
_WITHOUT_BODY: Final = Framing.NONE
_BY_LENGTH: Final = Framing.LENGTH
_BY_CHUNKS: Final = Framing.CHUNKED


def write_nowhere(_data: Body) -> None:
    """Stands in for the ``write`` of a transport that is not open."""


class EngineConnection(asyncio.Protocol):
    """Carries one request at a time; between two of them it is idle and belongs to its owner."""

    __slots__ = (
        "_awaits_first_bytes",
        "_backlog",
        "_chunks",
        "_head",
        "_interim_answers",
        "_is_backlog_scheduled",
        "_is_large_request",
        "_last_piece",
        "_owner",
        "_partial_head",
        "_phase",
        "_receiver",
        "_remaining",
        "_send_bytes",
        "_to_head_request",
        "_transport",
        "_unread",
        "_until_close",
        "_write",
        "body_bytes",
        "flow",
        "has_answered",
        "idle_since",
        "reused",
    )

    def __init__(self, owner: ConnectionOwner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._send_bytes: Callable[[Body], None] = write_nowhere
        self._receiver: AnswerReceiver | None = None
        self._phase = _IDLE
        self._head: ResponseHead | None = None
        self._partial_head: bytearray | None = None
        """The beginning of a head; None while there is none."""
        self._interim_answers = 0
        """How many 1xx answers have come before the current one."""
        self._unread = b""
        """What has arrived of the body before ``relay`` was called."""
        self._backlog = b""
        """What has been read of a chunked body and is left for later turns of the event loop."""
        self._is_backlog_scheduled = False
        self._last_piece = b""
        """The data relayed last, where a comment may have to be inserted after it."""
        self._chunks: ChunkReader | None = None
        self._write: Callable[[bytes], None] | None = None
        self._remaining = 0
        self._to_head_request = False
        self._is_large_request = False
        self._until_close = False
        self._awaits_first_bytes = False
        self.flow = FlowControl()
        """When the engine is read from."""
        self.body_bytes = 0
        self.has_answered = False
        """Whether a byte of the current answer has arrived."""
        self.reused = False
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        """Whether a request can be sent on it."""
        return self._phase is _IDLE and self._transport is not None and not self._transport.is_closing()

    @property
    def withheld_head(self) -> ResponseHead | None:
        """The head of an answer that the receiver knows of and has not had relayed yet."""
        return self._head if self._phase is _HEAD_REPORTED else None

    def frame_event(self, event: bytes) -> bytes:
        """The bytes that insert an event into the answer at this point, also after a loss; empty if none can."""
        chunks = self._chunks
        if chunks is None:
            return event if self._until_close else b""
        if chunks.payload is not None:
            return event
        return b"%x\r\n%b\r\n" % (len(event), event) if chunks.between_chunks else b""

    def frame_comment(self, comment: bytes) -> bytes:
        """The bytes that insert a comment between two events of the answer; empty in the middle of an event."""
        piece = self._last_piece.removesuffix(b"\r\n") if self._chunks is not None else self._last_piece
        return self.frame_event(comment) if piece.endswith((b"\n\n", b"\r\n\r\n")) else b""

    def send(self, receiver: AnswerReceiver, head: bytes, body: Body, to_head_request: bool, has_waited: bool) -> None:
        """Send a request; ``receiver`` is called back with its answer.

        One that ``has_waited`` is written at once. uvloop writes others at the end of the loop's turn, which costs
        less, but to several connections in any order: those that waited together would not reach the engine in theirs.
        """
        self._receiver = receiver
        self._phase = _AWAITING_HEAD
        self._to_head_request = to_head_request
        self.has_answered = False
        if has_waited:
            # uvloop writes at once what does not fit into its buffer.
            self._limit_write_buffer(0)
        if len(body) < _LARGE_REQUEST_BYTES:
            self._is_large_request = False
            self._send_bytes(head + body)
        else:
            self._is_large_request = True
            self._send_bytes(head)
            self._send_bytes(body)
        if has_waited:
            self._limit_write_buffer(None)

    def _limit_write_buffer(self, size_bytes: int | None) -> None:
        """Let the transport hold back so much; None for as much as it does by default."""
        assert self._transport is not None
        self._transport.set_write_buffer_limits(high=size_bytes)

    def relay(
        self, head: bytes, write: Callable[[bytes], None], unchunk: bool = False, reports_first_bytes: bool = True
    ) -> None:
        """Write ``head`` and then the answer's body as it arrives; ``unchunk`` decodes a chunked body."""
        answer = self._head
        assert answer is not None
        framing = answer.framing
        body, self._unread = self._unread, b""
        if framing is _BY_LENGTH and len(body) == answer.content_length and not reports_first_bytes:
            # Most answers have come whole, and nothing of them needs to be followed.
            self.body_bytes = answer.content_length
            write(head + body)
            self._complete(True)
            return
        self._awaits_first_bytes = reports_first_bytes
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
            self._complete(not body)
        else:
            self._write = write
            self._phase = _UNTIL_CLOSE
            self._until_close = True
            self.body_bytes = len(body)
            if body:
                self._report_first_bytes(body)
            write(head + body)

    def abort(self) -> None:
        """Close at once, without any further call of the receiver."""
        self._receiver = None
        self._write = None
        self._backlog = b""
        self._phase = _CLOSED
        if self._transport is not None:
            self._transport.abort()

    def become_idle(self) -> None:
        """Go back to the owner until the next request."""
        self._phase = _IDLE
        if self.flow.reasons:
            self.flow.clear()
        self.reused = True
        self._owner.put(self)

    # Called by the flow control.

    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._backlog:
            self._schedule_backlog()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send_bytes = self._transport.write
        self.flow.attach(self)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is _CHUNKED:
            self._relay_chunked(data)
        elif phase is _AWAITING_HEAD:
            self.has_answered = True
            self._take_head(data)
        elif phase is _LENGTH:
            self._relay_length(data)
        elif phase is _UNTIL_CLOSE:
            if self._awaits_first_bytes:
                self._report_first_bytes(data)
            self.body_bytes += len(data)
            self._last_piece = data
            assert self._write is not None
            self._write(data)
        elif phase is _HEAD_REPORTED:
            self._unread += data
        elif phase is _IDLE:
            # An answer to no request.
            self._owner.discard(self)
            self.abort()

    def eof_received(self) -> None:
        if self._phase is _IDLE:
            self._phase = _CLOSED
            self._owner.discard(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.closed(self)
        phase, self._phase = self._phase, _CLOSED
        receiver, self._receiver = self._receiver, None
        self._write = None
        self._backlog = b""
        if phase is _IDLE:
            self._owner.discard(self)
        elif receiver is None:
            pass
        elif phase is _UNTIL_CLOSE and exc is None and not self._lacks_events:
            receiver.answer_ended()
        elif self.has_answered:
            receiver.engine_lost("the engine closed the connection in the middle of its answer")
        else:
            receiver.engine_lost("the engine closed the connection without an answer")

    # The answer.

    @property
    def _lacks_events(self) -> bool:
        """Whether the answer is an event stream of which nothing has come."""
        return not self.body_bytes and self._head is not None and self._head.is_event_stream

    def _take_head(self, data: bytes) -> None:
        partial = self._partial_head
        if partial is not None:
            # Offsets instead of joined pieces: a head that comes byte by byte must not cost the square of its size.
            searched_bytes = max(len(partial) - 3, 0)
            partial += data
            if partial.find(b"\r\n\r\n", searched_bytes) < 0:
                self._keep_partial_head(partial)
                return
            data = bytes(partial)
            self._partial_head = None
        while True:
            head_bytes, empty_line, rest = data.partition(b"\r\n\r\n")
            if not empty_line:
                self._keep_partial_head(bytearray(data))
                return
            if len(head_bytes) > _MAX_HEAD_BYTES:
                self._break(_HEAD_TOO_LARGE)
                return
            try:
                head = self._owner.heads.read(head_bytes, self._to_head_request)
            except FramingError as error:
                self._break(f"the engine's answer is malformed: {error}")
                return
            data = rest
            if head.status >= 200:
                break
            if head.status == 101:
                self._break("the engine changed the protocol without being asked to")
                return
            self._interim_answers += 1
            if self._interim_answers > _MAX_INTERIM_ANSWERS:
                self._break(f"the engine sent more than {_MAX_INTERIM_ANSWERS} interim answers (1xx)")
                return
        self._interim_answers = 0
        self._head = head
        self._unread = data
        self._phase = _HEAD_REPORTED
        assert self._receiver is not None
        self._receiver.answer_began(head)

    def _keep_partial_head(self, partial: bytearray) -> None:
        self._partial_head = partial
        if len(partial) > _MAX_HEAD_BYTES:
            self._break(_HEAD_TOO_LARGE)

    def _relay_length(self, data: bytes, head: bytes = b"") -> None:
        length = len(data)
        write = self._write
        assert write is not None
        if self._awaits_first_bytes and data:
            self._report_first_bytes(data)
        remaining = self._remaining
        if length < remaining:
            self._remaining = remaining - length
            self.body_bytes += length
            write(head + data)
            return
        self.body_bytes += remaining
        is_clean = length == remaining
        write(head + data if is_clean else head + data[:remaining])
        self._complete(is_clean)

    def _relay_chunked(self, data: bytes, head: bytes = b"") -> None:
        chunks = self._chunks
        write = self._write
        assert chunks is not None
        assert write is not None
        if len(data) > _PIECES_BYTES[-1] and data.count(b"\r\n") > _TURN_LINES:
            data = self._leave_for_later(data)
        self.body_bytes += len(data)
        self._last_piece = data
        try:
            end = chunks.feed(data)
        except FramingError as error:
            self._chunks = None  # An error event cannot be framed any more.
            if head:
                write(head)
            self._break(f"the engine's answer is malformed: {error}")
            return
        if self._awaits_first_bytes and data:
            self._report_first_bytes(data)
        is_clean = end == len(data) and not self._backlog
        if chunks.payload is not None:
            data = chunks.take_payload()
            if head or data:
                write(head + data)
        elif end < 0 or end == len(data):
            write(head + data if head else data)
        else:
            write(head + data[:end])
        if end >= 0:
            self._complete(is_clean)

    def _leave_for_later(self, data: bytes) -> bytes:
        """Keep all but the first part for later turns, without reading on meanwhile; returns that part."""
        turns = self._owner.turns
        size = 0
        if turns.steps_left > 0:
            fitting = (size for size in _PIECES_BYTES if data.count(b"\r\n", 0, size) <= _TURN_LINES)
            size = next(fitting, _PIECES_BYTES[-1])
            turns.spend(_TURN_LINES)
        self._backlog = data[size:]
        self.pause_reading()
        self._schedule_backlog()
        return data[:size]

    def _schedule_backlog(self) -> None:
        if not self._is_backlog_scheduled:
            self._is_backlog_scheduled = True
            self._owner.turns.put_off(self._relay_backlog)

    def _relay_backlog(self) -> None:
        self._is_backlog_scheduled = False
        data = self._backlog
        # Where there is a reason to pause, ``resume_reading`` will follow.
        if data and not self.flow.reasons:
            self._backlog = b""
            self.resume_reading()
            self._relay_chunked(data)

    def _report_first_bytes(self, data: bytes) -> None:
        assert self._receiver is not None
        self._awaits_first_bytes = self._receiver.first_bytes(data)

    def _complete(self, is_clean: bool) -> None:
        """End the answer. ``is_clean``: the engine sent no bytes beyond it."""
        receiver, self._receiver = self._receiver, None
        head, self._head = self._head, None
        self._write = None
        if self._chunks is not None:
            self._chunks = None
            self._last_piece = b""
        assert receiver is not None
        assert head is not None
        if is_clean and head.reusable and not (self._is_large_request and self._has_unsent()):
            self.become_idle()
        else:
            self.abort()
        receiver.answer_ended()

    def _has_unsent(self) -> bool:
        """Whether a part of the request waits to be written: it would stand before the next one.

        An engine may answer before it has read a large request.
        """
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    def _break(self, reason: str) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        self.abort()
        receiver.engine_lost(reason)


class SievingConnection(EngineConnection):
    """Leaves out header fields that the engine must not get.

    A class of its own, so that the requests to all other engines do not pay for it. What is left out is looked for
    when a request is sent, not when its head is parsed: a head that repeats the last one may be for another engine.
    """

    __slots__ = ("_removed",)

    def __init__(self, owner: ConnectionOwner, names: Iterable[str]) -> None:
        """``names`` are in lower case."""
        super().__init__(owner)
        alternatives = b"|".join(re.escape(name.encode()) for name in sorted(names))
        self._removed = re.compile(rb"(?<=\r\n)(?:%b):[^\r\n]*\r\n" % alternatives, re.IGNORECASE)

    def send(self, receiver: AnswerReceiver, head: bytes, body: Body, to_head_request: bool, has_waited: bool) -> None:
        super().send(receiver, self._removed.sub(b"", head), body, to_head_request, has_waited)
