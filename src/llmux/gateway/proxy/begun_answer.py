"""An answer whose head the client has, and of whose body it has nothing: what an engine answers later is fitted in.

Either llmux has begun an event stream itself, because its engine had nothing to say yet, and has sent comments since.
Or the head is that of an engine that died before the first byte of its body: engines send the head of a stream at once.
What does not fit becomes an error event; where the client expects no events, nothing can be told.
"""

import math
from collections.abc import Callable
from enum import Enum, auto

from llmux.core.forecast import Outlook
from llmux.errors import RequestError
from llmux.gateway.answers import engine_error_event, error_event
from llmux.gateway.errors import BadGateway
from llmux.gateway.http.response_head import Framing, ResponseHead

ERROR_BODY_BYTES_MAX = 64 * 1024
"""So much of an engine's refusal is kept for the event; engines send a few hundred bytes."""

_EVENT_STREAM = b"text/event-stream"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
_MAX_ACCEPTED = 64
"""Browsers send about ten; 60 KiB of commas would take milliseconds."""
_ACCEPTED = (b"text/event-stream", b"text/*", b"*/*", b"application/json")
"""The last because openai's and anthropic's libraries send it, whatever they ask for."""


def _waiting(outlook: Outlook | None) -> bytes:
    """A comment for a client that waits."""
    if outlook is None:
        return b": waiting\n\n"
    to_go = b"" if outlook.seconds is None else b", about %d s to go" % math.ceil(outlook.seconds)
    return b": waiting, position %d%b\n\n" % (outlook.position, to_go)


def accepts_comments(header_lines: bytes) -> bool:
    """Whether the client, by its Accept headers, takes an event stream; none means that it takes anything.

    ``text/event-stream;q=0`` declines.
    """
    accepted = [line[7:] for line in header_lines.lower().split(b"\r\n") if line.startswith(b"accept:")]
    if not accepted:
        return True
    ranges = [item.replace(b" ", b"").partition(b";") for item in b",".join(accepted).split(b",", _MAX_ACCEPTED)]
    refused = {name for name, _, parameters in ranges if parameters in (b"q=0", b"q=0.0")}
    return b"text/event-stream" not in refused and any(name in _ACCEPTED for name, _, _ in ranges)


class _Body(Enum):
    """How what the engine sends becomes part of the answer."""

    NOTHING = auto()
    """It has not answered."""
    AS_IT_IS = auto()
    """It is chunked, as the client was told: its bytes are passed on untouched, its last chunk included."""
    FRAMED = auto()
    """It is framed otherwise."""
    COLLECTED = auto()
    """It does not fit the head, and is the reason for the error event that will end the stream."""


def can_be_finished(head: ResponseHead) -> bool:
    """Whether the body that this head announces can come from another engine, whose framing and length differ."""
    return head.framing is Framing.CHUNKED or head.framing is Framing.UNTIL_CLOSE


class BegunAnswer:
    """One such answer. Everything is written with the client's ``write``."""

    __slots__ = (
        "_answer",
        "_body",
        "_coding",
        "_collected",
        "_is_chunked",
        "_model",
        "_path",
        "_request_id",
        "_status",
        "_type",
        "_write",
        "takes_events",
    )

    def __init__(
        self,
        write: Callable[[bytes], None],
        model: str,
        path: bytes,
        request_id: bytes,
        *,
        http10: bool,
        head: ResponseHead | None = None,
    ) -> None:
        """``head`` is the engine's that the client has; without it, ``begin`` writes that of an event stream."""
        self._write = write
        self._model = model
        self._path = path
        self._request_id = request_id
        self._is_chunked = not http10 and (head is None or head.framing is Framing.CHUNKED)
        self._status = 200 if head is None else head.status
        self._type = _EVENT_STREAM if head is None else _type_of(head)
        self._coding = b"" if head is None else _coding_of(head)
        self.takes_events = self._type == _EVENT_STREAM and not self._coding
        """Whether the client expects events, of which llmux's own can be some."""
        self._body = _Body.NOTHING
        self._answer: ResponseHead | None = None
        self._collected = b""

    def begin(self, cors_fields: bytes, *, keep_alive: bool) -> None:
        """Write the head."""
        framing = b"transfer-encoding: chunked\r\n" if self._is_chunked else b""
        connection = b"" if keep_alive else b"connection: close\r\n"
        self._write(_HEAD + framing + connection + cors_fields + b"x-request-id: " + self._request_id + b"\r\n\r\n")

    def comment(self, outlook: Outlook | None) -> None:
        """Write a comment; only where events are expected, and before the first byte of an answer's event."""
        self._write(self.frame(_waiting(outlook)))

    def frame(self, data: bytes) -> bytes:
        """The bytes that put some data into the body between two chunks of llmux's own."""
        return b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data

    @property
    def passes_chunks(self) -> bool:
        """Whether the engine's own chunks are passed on: where one ends, the engine's connection knows."""
        return self._body is _Body.AS_IT_IS

    @property
    def passes_nothing(self) -> bool:
        """Whether nothing of what the engine sends reaches the client before its end."""
        return self._body is _Body.COLLECTED

    def is_untouched(self, received_bytes: int) -> bool:
        """Whether nothing of the engine's answer, of which so much has arrived, has reached the client."""
        return self.passes_nothing or not received_bytes

    def fits(self, answer: ResponseHead) -> bool:
        """Whether the head that the client has is true of this answer, too."""
        has_same_body = _type_of(answer) == self._type and _coding_of(answer) == self._coding
        return answer.status == self._status and has_same_body

    def take(self, answer: ResponseHead) -> Callable[[bytes], None]:
        """The engine's answer begins; returns where its body, unchunked unless ``passes_chunks``, is to be written.

        One that does not fit can be taken where events are expected.
        """
        self._answer = answer
        if not self.fits(answer):
            self._body = _Body.COLLECTED
            return self._collect
        if answer.framing is Framing.CHUNKED and self._is_chunked:
            self._body = _Body.AS_IT_IS
            return self._write
        self._body = _Body.FRAMED
        return self._write_framed

    def lose_answer(self) -> None:
        """The engine died before anything of its answer reached the client: another one will answer."""
        self._body = _Body.NOTHING
        self._collected = b""

    def end(self) -> None:
        """The engine's answer is complete: write what the client's lacks."""
        if self._body is _Body.AS_IT_IS:
            return
        if self._body is _Body.COLLECTED:
            assert self._answer is not None
            self._write(self.frame(self._event_for(self._answer)))
        self._write_last_chunk()

    def end_with(self, error: RequestError) -> None:
        """There will be no answer; only where events are expected."""
        self._write(self.frame(error_event(error, self._path, self._request_id)))
        self._write_last_chunk()

    def _event_for(self, answer: ResponseHead) -> bytes:
        if answer.status >= 400:
            return engine_error_event(answer.status, self._collected, self._path)
        reason = f"its engine answered a stream with status {answer.status} and no event stream"
        return error_event(BadGateway(self._model, reason), self._path, self._request_id)

    def _write_last_chunk(self) -> None:
        if self._is_chunked:
            self._write(b"0\r\n\r\n")

    def _write_framed(self, data: bytes) -> None:
        if data:
            self._write(self.frame(data))

    def _collect(self, data: bytes) -> None:
        self._collected += data[: ERROR_BODY_BYTES_MAX - len(self._collected)]


def _type_of(head: ResponseHead) -> bytes:
    """The media type, with its parameters unless it is an event stream's, which is always UTF-8."""
    return _EVENT_STREAM if head.is_event_stream else head.value_of(b"content-type")


def _coding_of(head: ResponseHead) -> bytes:
    return head.value_of(b"content-encoding")
