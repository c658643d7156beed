"""Collecting the head of a request, and refusing at once what cannot become one."""

import re

from llmux.gateway.errors import HeadTooLarge
from llmux.gateway.http.chunks import FramingError

_REQUEST_LINE = re.compile(rb"[A-Z-]{1,24} [!-~\x80-\xff]+ HTTP/1\.[01]")
_REQUEST_LINE_BEGINS = re.compile(rb"[A-Z-]{1,24}(?: |\Z)")
_LINE_ENDS = re.compile(rb"[\r\n]*")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_TLS_HANDSHAKE = b"\x16"
_NO_REQUEST = "this is not an HTTP/1.1 request"


class HeadBuffer:
    """Collects a head that arrives in pieces."""

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces: bytearray | None = None
        """None unless a head has begun."""

    def clear(self) -> None:
        """Drop what was collected."""
        self.pieces = None

    def take(self, data: bytes, position: int, limit_bytes: int) -> tuple[bytes, bytes, int]:
        """Take the head that begins at ``position``; returns it with the data, and the offset in it, that follow.

        An incomplete head is kept; then all three are empty. Empty lines before it are skipped (RFC 9112, 2.2). Raises
        HeadTooLarge, or FramingError as soon as no more data could make this a request: a client that speaks something
        else would otherwise wait for an answer.
        """
        if self.pieces is None and data.startswith(b"\r\n", position):
            position = _after_blank_lines(data, position)
        end = data.find(b"\r\n\r\n", position)
        if self.pieces is not None or end < 0:
            data = self._add(data[position:], limit_bytes)
            if not data:
                return b"", b"", 0
            position = 0
            end = data.find(b"\r\n\r\n")
        if not 0 <= end - position <= limit_bytes:
            raise HeadTooLarge(limit_bytes)
        return data[position : end + 4], data, end + 4

    def _add(self, data: bytes, limit_bytes: int) -> bytes:
        """Add a piece; returns everything once the head is complete or exceeds the limit, and nothing before."""
        pieces = bytearray() if self.pieces is None else self.pieces
        searched = max(0, len(pieces) - 3)
        pieces += data
        if not searched:
            del pieces[: _after_blank_lines(pieces, 0)]
        if pieces.find(b"\r\n\r\n", searched) < 0 and len(pieces) <= limit_bytes:
            _require_continuable(pieces, searched)
            self.pieces = pieces or None
            return b""
        self.pieces = None
        return bytes(pieces)


def _after_blank_lines(data: bytes | bytearray, position: int) -> int:
    """The offset after the empty lines that begin at ``position``."""
    match = _LINE_ENDS.match(data, position)
    assert match is not None
    count = (match.end() - position) // 2
    return position + 2 * count if data.startswith(b"\r\n" * count, position) else position


def _require_continuable(data: bytearray, searched: int) -> None:
    """Raise FramingError unless ``data``, an incomplete head, can be continued to one; ``searched`` is the length of
    what was examined before."""
    if not data or data == b"\r":
        return
    line_end = data.find(b"\r\n")
    if line_end < 0:
        require_beginning(data)
    elif line_end >= searched and _REQUEST_LINE.fullmatch(data, 0, line_end) is None:
        raise _no_request(data)
    if _BARE_LINE_FEED.search(data, max(0, searched - 1)):
        raise FramingError("a line of the request's head ends in a bare LF; lines end in CRLF")


def require_beginning(data: bytes | bytearray) -> None:
    """Raise FramingError unless ``data`` begins as a request line does."""
    if _REQUEST_LINE_BEGINS.match(data[:32]) is None:
        raise _no_request(data)


def _no_request(data: bytes | bytearray) -> FramingError:
    if data.startswith(_TLS_HANDSHAKE):
        return FramingError(f"{_NO_REQUEST} but TLS: this port speaks plain HTTP, use http:// instead of https://")
    return FramingError(f"{_NO_REQUEST}: this port speaks plain HTTP/1.1")
