"""The chunked transfer coding: following it, or decoding it."""

import re
import sys
from enum import Enum, auto
from io import BytesIO
from typing import Final


class FramingError(Exception):
    """Bytes that are not well-formed HTTP/1.1; the text may be shown to a client."""


class _State(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    FINISHED = auto()


# Bound once, for speed: see the docstring of llmux.gateway.
_SIZE: Final = _State.SIZE
_FINISHED: Final = _State.FINISHED

_HEX = frozenset(b"0123456789abcdefABCDEF")
_MAX_SIZE_LINE_BYTES = 1024
_MAX_TRAILER_BYTES = 16 * 1024
_MAX_SIZE_DIGITS: Final = 15
_MAX_CACHED_SIZES: Final = 4096
_SMALL_CHUNK_BYTES: Final = 4096

_TRAILER = re.compile(
    rb"(?!(?i:transfer-encoding|content-length):)[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*"
)
"""A field that would frame the message must not be a trailer (RFC 9110, 6.5.1): clients might believe it."""
_CONTROL_CHARACTER = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_cached_sizes: dict[bytes, int] = {}
"""Size lines already validated, for all connections: engines send few different ones. Bounded by _MAX_CACHED_SIZES."""


def _size_lines_by_length() -> dict[int, bytes]:
    lines = {size: b"%x\r\n" % size for size in range(1, _SMALL_CHUNK_BYTES)}
    return {len(line) + size + 2: line for size, line in lines.items()}


_SIZE_LINES: Final = _size_lines_by_length()
"""From the length of a whole small chunk to its size line, as servers usually write it (lower case, no extension)."""


def _parse_size(line: bytes) -> int:
    digits, _, extension = line.partition(b";")
    digits = digits.rstrip(b" \t") if extension else digits
    if not 0 < len(digits) <= _MAX_SIZE_DIGITS or not _HEX.issuperset(digits):
        raise FramingError("a chunk size is not a hexadecimal number")
    if extension and _CONTROL_CHARACTER.search(extension):
        raise FramingError("a chunk extension contains a control character")
    size = int(digits, 16)
    if not extension and len(_cached_sizes) < _MAX_CACHED_SIZES:
        _cached_sizes[line] = size
    return size


def _skip_whole_chunks(data: bytes) -> int:
    """Skip the leading chunks that are complete and have a cached size line; returns the offset of the rest."""
    position = 0
    while True:
        line_end = data.find(b"\r\n", position, position + _MAX_SIZE_DIGITS + 2)
        size = _cached_sizes.get(data[position:line_end]) if line_end >= 0 else None
        if not size:
            return position
        end = line_end + 2 + size + 2
        if data[end - 2 : end] != b"\r\n":
            return position
        position = end


def _take_whole_chunks(data: bytes, position: int, limit: int, payload: BytesIO) -> tuple[int, int]:
    """Like ``_skip_whole_chunks``, for at most ``limit`` chunks, whose data is written to ``payload``.

    Returns the offset of the rest and the number of chunks.
    """
    find, size_of, write = data.find, _cached_sizes.get, payload.write
    for count in range(limit):
        line_end = find(b"\r\n", position, position + _MAX_SIZE_DIGITS + 2)
        size = size_of(data[position:line_end]) if line_end >= 0 else None
        if not size:
            return position, count
        begin = line_end + 2
        end = begin + size
        if data[end : end + 2] != b"\r\n":
            return position, count
        write(data[begin:end])
        position = end + 2
    return position, limit


class ChunkReader:
    """Incremental reader of one chunked body.

    With ``collect`` the decoded data is written to ``payload``; without, only the framing is followed and ``payload``
    is None. Chunk extensions and trailers are validated and dropped.
    """

    __slots__ = ("_line", "_remaining", "_state", "_trailer_bytes", "between_chunks", "payload")

    def __init__(self, *, collect: bool = False) -> None:
        self._state = _State.SIZE
        self._remaining = 0
        self._line = b""
        """The beginning of a line, or of a chunk's final CRLF, that is not complete yet."""
        self._trailer_bytes = 0
        self.between_chunks = True
        """Whether another chunk could be inserted at this point of the body."""
        # One buffer, since thousands of small pieces would take many times their size.
        self.payload = BytesIO() if collect else None

    @property
    def finished(self) -> bool:
        """Whether the body has ended."""
        return self._state is _FINISHED

    def take_payload(self) -> bytes:
        """What has been collected since the last call."""
        collected, self.payload = self.payload, BytesIO()
        assert collected is not None
        return collected.getvalue()

    def feed(self, data: bytes) -> int:
        """Read on; returns the offset in ``data`` where the body ended, or -1 if it goes on. Raises FramingError."""
        position = 0
        if self.between_chunks and self.payload is None:
            # Almost every read of an event stream is exactly one small chunk.
            size_line = _SIZE_LINES.get(len(data))
            if size_line is not None and data.startswith(size_line) and data.endswith(b"\r\n"):
                return -1
            position = _skip_whole_chunks(data)
        end, _ = self.read(data, position, sys.maxsize)
        return end if self._state is _FINISHED else -1

    def read(self, data: bytes, position: int, limit: int) -> tuple[int, int]:
        """Read on from ``position`` until the body ends or ``limit`` chunks and lines of trailers have been read.

        Returns the offset reached and their number. Raises FramingError.
        """
        length = len(data)
        count = 0
        while position < length and count < limit:
            match self._state:
                case _State.SIZE:
                    if self.payload is not None and not self._line:
                        position, taken = _take_whole_chunks(data, position, limit - count, self.payload)
                        count += taken
                        if position == length or count == limit:
                            break
                    position = self._read_size(data, position)
                    count += 1
                case _State.DATA:
                    position = self._read_data(data, position)
                case _State.DATA_END:
                    position = self._read_data_end(data, position)
                case _State.TRAILER:
                    position = self._read_trailer(data, position)
                    count += 1
                case _State.FINISHED:
                    break
        self.between_chunks = self._state is _SIZE and not self._line
        return position, count

    def _read_line(self, data: bytes, position: int, limit: int) -> tuple[bytes | None, int]:
        """The line without its CRLF (None while it is incomplete) and the offset after it."""
        feed = data.find(b"\n", position)
        piece = data[position : feed + 1] if feed >= 0 else data[position:]
        line = self._line + piece if self._line else piece
        if len(line) > limit:
            raise FramingError("a line of the chunked body is too long")
        if feed < 0:
            if b"\r" in line[:-1]:
                raise FramingError("a line of the chunked body contains a bare CR")
            self._line = line
            return None, len(data)
        self._line = b""
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise FramingError("a line of the chunked body does not end in CRLF")
        return line[:-2], feed + 1

    def _read_size(self, data: bytes, position: int) -> int:
        line, position = self._read_line(data, position, _MAX_SIZE_LINE_BYTES)
        if line is None:
            return position
        size = _cached_sizes.get(line)
        if size is None:
            size = _parse_size(line)
        self._remaining = size
        self._state = _State.DATA if size else _State.TRAILER
        return position

    def _read_data(self, data: bytes, position: int) -> int:
        end = min(len(data), position + self._remaining)
        taken = end - position
        self._remaining -= taken
        if self.payload is not None:
            self.payload.write(data[position:end])
        if not self._remaining:
            self._state = _State.DATA_END
        return end

    def _read_data_end(self, data: bytes, position: int) -> int:
        piece = data[position : position + 2 - len(self._line)]
        self._line += piece
        if not b"\r\n".startswith(self._line):
            raise FramingError("a chunk is longer than its size says")
        if len(self._line) == 2:
            self._line = b""
            self._state = _State.SIZE
        return position + len(piece)

    def _read_trailer(self, data: bytes, position: int) -> int:
        line, after = self._read_line(data, position, _MAX_TRAILER_BYTES)
        self._trailer_bytes += after - position
        if self._trailer_bytes > _MAX_TRAILER_BYTES:
            raise FramingError("the trailers of the chunked body are too long")
        if line == b"":
            self._state = _State.FINISHED
        elif line is not None and _TRAILER.fullmatch(line) is None:
            raise FramingError("a trailer of the chunked body is malformed")
        return after
