"""Receiving a request's body."""

from io import BytesIO

from llmux.gateway.errors import RequestTooLarge
from llmux.gateway.http.chunks import ChunkReader, FramingError

Body = bytes | memoryview
"""A whole request body; one that waits in a file is a view of the file's memory."""

_MAX_FRAMING_BYTES = 100_000
_MAX_FRAMING_PER_BYTE = 4
"""A chunked body with more framing than both allow is refused, as by Go since CVE-2023-39326: it costs far more work
than it brings data."""
_BYTES_PER_STEP = 1024
"""Reading so much from the socket and copying it takes about as long as reading one small chunk."""


class BodyReader:
    """Collects one request body of at most ``limit_bytes``."""

    __slots__ = ("_buffer", "_chunks", "_limit_bytes", "_missing_bytes", "finished", "framing_bytes")

    def __init__(self, length: int | None, limit_bytes: int) -> None:
        """``length`` None: the body is chunked. Raises RequestTooLarge."""
        if length is not None and length > limit_bytes:
            raise RequestTooLarge(limit_bytes)
        self._limit_bytes = limit_bytes
        self._missing_bytes = length or 0
        self._chunks = ChunkReader(collect=True) if length is None else None
        self._buffer = (self._chunks.payload if self._chunks is not None else None) or BytesIO()
        self.framing_bytes = 0
        """What has been received beside the body's own bytes."""
        self.finished = False
        """Whether the body has ended."""

    @property
    def size_bytes(self) -> int:
        """How much of the body has been received, decoded."""
        return self._buffer.tell()

    def take_body(self) -> bytes:
        """The finished body, which is not copied; the reader is of no use afterwards."""
        return self._buffer.getvalue()

    def read(self, data: bytes, position: int, limit: int) -> tuple[int, int]:
        """Read on from ``position`` until the body ends or about ``limit`` steps have been taken.

        A step takes about a microsecond. Returns the offset reached and the number of steps. Raises FramingError or
        RequestTooLarge.
        """
        if self._chunks is not None:
            return self._read_chunks(self._chunks, data, position, limit)
        missing = self._missing_bytes
        end = min(len(data), position + missing)
        taken = end - position
        self._buffer.write(data[position:end])
        self.finished = taken == missing
        self._missing_bytes = missing - taken
        return end, 1 + taken // _BYTES_PER_STEP

    def _read_chunks(self, chunks: ChunkReader, data: bytes, position: int, limit: int) -> tuple[int, int]:
        before = self._buffer.tell()
        end, count = chunks.read(data, position, limit)
        self.finished = chunks.finished
        size = self._buffer.tell()
        if size > self._limit_bytes:
            raise RequestTooLarge(self._limit_bytes)
        self.framing_bytes += end - position - (size - before)
        if self.framing_bytes > max(_MAX_FRAMING_BYTES, _MAX_FRAMING_PER_BYTE * size):
            raise FramingError("the chunked body is mostly framing: send it in larger chunks")
        return end, count + (end - position) // _BYTES_PER_STEP
