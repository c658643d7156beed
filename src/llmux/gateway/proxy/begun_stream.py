"""An event stream that llmux has begun itself, because its engine has nothing to say yet.

Its head and some comments have been sent; what the engine answers then is fitted into it. Only events can follow, so
that an answer which is none becomes an error event.
"""

from collections.abc import Callable
from enum import Enum, auto

from llmux.errors import RequestError
from llmux.gateway.answers import engine_error_event, error_event
from llmux.gateway.errors import BadGateway
from llmux.gateway.http.response_head import Framing, ResponseHead

ERROR_BODY_BYTES_MAX = 64 * 1024
"""So much of an engine's refusal is kept for the event; engines send a few hundred bytes."""

_WAITING = b": waiting\n\n"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
_MAX_ACCEPTED = 64
"""Browsers send about ten; 60 KiB of commas would take milliseconds."""
_ACCEPTED = (b"text/event-stream", b"text/*", b"*/*", b"application/json")
"""The last because openai's and anthropic's libraries send it, whatever they ask for."""


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
    """How what the engine sends becomes part of the stream."""

    NOTHING = auto()
    """It has not answered."""
    AS_IT_IS = auto()
    """It is chunked, as the stream is: its bytes are passed on untouched, its last chunk included."""
    FRAMED = auto()
    """It is an event stream that is framed otherwise."""
    COLLECTED = auto()
    """It is no event stream, and the reason for the error event that will end the stream."""


class BegunStream:
    """One such stream. Everything is written with the client's ``write``."""

    __slots__ = ("_answer", "_body", "_collected", "_http10", "_model", "_path", "_request_id", "_write")

    def __init__(
        self, write: Callable[[bytes], None], model: str, path: bytes, request_id: bytes, *, http10: bool
    ) -> None:
        self._write = write
        self._model = model
        self._path = path
        self._request_id = request_id
        self._http10 = http10
        self._body = _Body.NOTHING
        self._answer: ResponseHead | None = None
        self._collected = b""

    def begin(self, cors_fields: bytes, *, keep_alive: bool) -> None:
        """Write the head."""
        framing = b"" if self._http10 else b"transfer-encoding: chunked\r\n"
        connection = b"" if keep_alive else b"connection: close\r\n"
        self._write(_HEAD + framing + connection + cors_fields + b"x-request-id: " + self._request_id + b"\r\n\r\n")

    def comment(self) -> None:
        """Write a comment; only before the first byte of an answer's event."""
        self._write(self.frame(_WAITING))

    def frame(self, data: bytes) -> bytes:
        """The bytes that put some data into the stream between two chunks of llmux's own."""
        return data if self._http10 else b"%x\r\n%b\r\n" % (len(data), data)

    @property
    def passes_chunks(self) -> bool:
        """Whether the engine's own chunks are passed on: where one ends, the engine's connection knows."""
        return self._body is _Body.AS_IT_IS

    def is_untouched(self, received_bytes: int) -> bool:
        """Whether nothing of the engine's answer, of which so much has arrived, has reached the client."""
        return self._body is _Body.COLLECTED or not received_bytes

    def take(self, answer: ResponseHead) -> Callable[[bytes], None]:
        """The engine's answer begins; returns where its body, unchunked unless ``passes_chunks``, is to be written."""
        self._answer = answer
        # The head that was sent names no coding.
        if answer.status != 200 or not answer.is_event_stream or b"\r\ncontent-encoding:" in answer.fields.lower():
            self._body = _Body.COLLECTED
            return self._collect
        if answer.framing is Framing.CHUNKED and not self._http10:
            self._body = _Body.AS_IT_IS
            return self._write
        self._body = _Body.FRAMED
        return self._write_framed

    def lose_answer(self) -> None:
        """The engine died before anything of its answer reached the client: another one will answer."""
        self._body = _Body.NOTHING
        self._collected = b""

    def end(self) -> None:
        """The engine's answer is complete: write what the stream lacks."""
        if self._body is _Body.AS_IT_IS:
            return
        if self._body is _Body.COLLECTED:
            assert self._answer is not None
            self._write(self.frame(self._event_for(self._answer)))
        self._write_last_chunk()

    def end_with(self, error: RequestError) -> None:
        """There will be no answer."""
        self._write(self.frame(error_event(error, self._path, self._request_id)))
        self._write_last_chunk()

    def _event_for(self, answer: ResponseHead) -> bytes:
        if answer.status >= 400:
            return engine_error_event(answer.status, self._collected, self._path)
        reason = f"its engine answered a stream with status {answer.status} and no event stream"
        return error_event(BadGateway(self._model, reason), self._path, self._request_id)

    def _write_last_chunk(self) -> None:
        if not self._http10:
            self._write(b"0\r\n\r\n")

    def _write_framed(self, data: bytes) -> None:
        if data:
            self._write(self.frame(data))

    def _collect(self, data: bytes) -> None:
        self._collected += data[: ERROR_BODY_BYTES_MAX - len(self._collected)]
