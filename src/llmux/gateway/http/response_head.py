"""The head of an engine's answer: how its body is framed, and which fields are passed on."""

import re
from enum import Enum, auto
from typing import Final

from llmux.gateway.http import engine_addresses
from llmux.gateway.http.chunks import FramingError
from llmux.gateway.http.repeated_head import RepeatedHead

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_WELL_FORMED = re.compile(
    rb"HTTP/1\.1 [2-5][0-9][0-9] [^\x00-\x08\x0a-\x1f\x7f]*\r\n"
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*\r\n"
)
_UNCOMMON = re.compile(
    rb"\r\n(?=[acklprtux])"
    rb"(?:connection|keep-alive|proxy-|te:|trailer|transfer-encoding|upgrade|x-request-id|x-llmux-|alt-svc"
    rb"|location|content-location|link|refresh)"
)
"""Fields of one hop, of llmux's own, or with addresses: none in most heads, which then pass as they are."""
_COMMON_STATUSES = {b"HTTP/1.1 %d " % status: status for status in range(200, 600) if status not in (204, 304)}
_LENGTH_FIELD = b"\r\ncontent-length:"
_LENGTH_LINE = re.compile(rb"(?:^|(?<=\r\n))content-length:[^\r\n]*\r\n", re.IGNORECASE)
_MAX_LENGTH_DIGITS = 18
_HOP_BY_HOP = frozenset(
    (
        b"alt-svc",  # Of the connection's server, which for a client is llmux.
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
    )
)
_NOT_PASSED_ON = _HOP_BY_HOP | {
    b"x-request-id",
    b"x-llmux-queue-ms",
    b"x-llmux-switch-ms",
    b"x-llmux-forecast-ms",
    b"x-llmux-error",
}


class Framing(Enum):
    """How the end of an answer's body is found."""

    NONE = auto()
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()


# Bound once, for speed: see the docstring of llmux.gateway.
_WITHOUT_BODY: Final = Framing.NONE
_BY_LENGTH: Final = Framing.LENGTH


class ResponseHead:
    """Status and framing of an answer, and the fields to be passed on, as they came.

    ``has_addresses``: some of them may refer to the engine by its address.
    """

    __slots__ = ("content_length", "fields", "framing", "has_addresses", "reusable", "status", "status_line")

    def __init__(
        self,
        head: bytes,
        repeated: "ResponseHead | None" = None,
        content_length: int = 0,
        to_head_request: bool = False,
    ) -> None:
        """Parse a whole head, the empty line included; raises FramingError.

        ``repeated``: one that this head, then without its empty line, differs from in nothing but its
        ``content_length``.
        """
        if repeated is not None:
            self.status: int = repeated.status
            self.reusable = True
            self.has_addresses = False
            self.status_line: bytes = repeated.status_line
            self.fields = head[len(repeated.status_line) :] + b"\r\n"
            self.content_length = content_length
            self.framing = _BY_LENGTH if content_length else _WITHOUT_BODY
            return
        line_end = head.find(b"\r\n") + 2
        status = _COMMON_STATUSES.get(head[:13])
        lower = head.lower()
        is_plain = not _UNCOMMON.search(lower) and _WELL_FORMED.fullmatch(head)
        if is_plain and status is not None and not to_head_request:
            at = lower.find(_LENGTH_FIELD)
            value = head[at + 17 : head.find(b"\r\n", at + 17)].strip()
            if at >= 0 and value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS and lower.rfind(_LENGTH_FIELD) == at:
                self.status = status
                self.reusable = True
                self.has_addresses = False
                self.status_line = head[:line_end]
                self.fields = head[line_end:-2]
                self.content_length = length = int(value)
                self.framing = _BY_LENGTH if length else _WITHOUT_BODY
                return
        self._parse_fully(head, line_end, to_head_request=to_head_request)

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is a stream of server-sent events."""
        return self.value_of(b"content-type").startswith(b"text/event-stream")

    def value_of(self, name: bytes) -> bytes:
        """The value of the first field of a name (lower case), in lower case; empty if there is none."""
        lower = b"\r\n" + self.fields.lower()
        at = lower.find(b"\r\n" + name + b":")
        if at < 0:
            return b""
        at += len(name) + 3
        return lower[at : lower.find(b"\r\n", at)].strip()

    def _parse_fully(self, head: bytes, line_end: int, *, to_head_request: bool) -> None:
        line = _STATUS_LINE.fullmatch(head, 0, line_end - 2)
        if line is None:
            raise FramingError("the status line is malformed")
        self.status = status = int(line[2])
        self.reusable = line[1] == b"1"
        self.status_line = head[:line_end] if self.reusable else b"HTTP/1.1" + head[8:line_end]
        self.fields = head[line_end:-2]
        self.content_length = 0
        chunked, length_at, lower = self._read_fields()
        if to_head_request or status < 200 or status in (204, 304):
            self.framing = Framing.NONE
            if chunked:
                self.fields = self.without_transfer_encoding()
            elif status == 204:
                # RFC 9110, 8.6: it has none, and a client may wait for a body that a length announces.
                self.fields = _LENGTH_LINE.sub(b"", self.fields)
        else:
            self.framing = self._find_framing(lower, chunked, length_at)

    def _find_framing(self, lower: bytes, chunked: bool, length_at: int) -> Framing:
        if chunked:
            at = lower.find(b"\r\ntransfer-encoding:") + 20
            if lower[at : lower.find(b"\r\n", at)].strip() != b"chunked" or lower.find(b"\r\ntransfer-enc", at) >= 0:
                raise FramingError("the transfer encoding is not 'chunked'")
            return Framing.CHUNKED
        if length_at < 0:
            self.reusable = False
            return Framing.UNTIL_CLOSE
        value = lower[length_at + 17 : lower.find(b"\r\n", length_at + 2)].strip()
        if (
            not value.isdigit()
            or len(value) > _MAX_LENGTH_DIGITS
            or lower.find(b"\r\ncontent-length:", length_at + 2) >= 0
        ):
            raise FramingError("the Content-Length is malformed")
        self.content_length = int(value)
        return Framing.LENGTH if self.content_length else Framing.NONE

    def _read_fields(self) -> tuple[bool, int, bytes]:
        """Validate the fields one by one and drop those that are not passed on.

        Returns whether the body is chunked, where in the lower-cased fields Content-Length stands (-1: nowhere), and
        these fields.
        """
        pairs = []
        for line in self.fields.split(b"\r\n")[:-1]:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise FramingError("a header is malformed")
            pairs.append((field[1].lower(), field[2], line))
        connection = b",".join(value for name, value, _ in pairs if name == b"connection").lower()
        tokens = {token.strip() for token in connection.split(b",")}
        if b"close" in tokens:
            self.reusable = False
        dropped = _NOT_PASSED_ON | (tokens - {b"transfer-encoding", b"content-length", b"content-type"})
        chunked = any(name == b"transfer-encoding" for name, _, _ in pairs)
        if chunked and any(name == b"content-length" for name, _, _ in pairs):
            raise FramingError("both Content-Length and Transfer-Encoding are given")
        self.has_addresses = any(name in engine_addresses.FIELDS for name, _, _ in pairs)
        self.fields = b"".join(line + b"\r\n" for name, _, line in pairs if name not in dropped)
        lower = b"\r\n" + self.fields.lower() + b"\r\n"
        return chunked, lower.find(b"\r\ncontent-length:"), lower

    def without_transfer_encoding(self) -> bytes:
        """The fields for an HTTP/1.0 client, which gets a chunked body decoded, and for an answer without a body."""
        lines = self.fields.split(b"\r\n")[:-1]
        return b"".join(line + b"\r\n" for line in lines if not line.lower().startswith(b"transfer-encoding:"))


class ResponseHeadReader:
    """Parses the heads of one engine's answers; one that repeats the last, but for its length, is not parsed again."""

    __slots__ = ("_last", "_last_bytes", "_pattern", "_repeated")

    def __init__(self) -> None:
        self._last_bytes = b""
        self._last: ResponseHead | None = None
        """The parsed form of those bytes. The answers that begin with them share it: a thousand streams keep one."""
        self._repeated = RepeatedHead()
        self._pattern: ResponseHead | None = None
        """The parsed form of the remembered head."""

    def read(self, head: bytes, to_head_request: bool) -> ResponseHead:
        """Parse a head, given without the empty line at its end; raises FramingError."""
        if to_head_request:
            return ResponseHead(head + b"\r\n\r\n", to_head_request=True)
        if head == self._last_bytes and self._last is not None:
            return self._last
        length = self._repeated.length_of(head)
        if length >= 0:
            return ResponseHead(head, self._pattern, length)
        read = ResponseHead(head + b"\r\n\r\n")
        if read.has_addresses:
            return read  # Its fields are going to be changed.
        self._last_bytes, self._last = head, read
        # Only a head that is passed on whole can be rebuilt from its bytes, as above.
        if read.framing is _BY_LENGTH and read.reusable and read.status_line + read.fields == head + b"\r\n":
            self._repeated.remember(head)
            self._pattern = read
        return read
