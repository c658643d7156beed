"""Receiving a request's body."""

from llmux.gateway.errors import RequestTooLarge
from llmux.gateway.http.chunks import ChunkReader


class BodyReader:
    """Collects one request body of at most ``limit_bytes``."""

    __slots__ = ("_chunks", "_limit_bytes", "_missing_bytes", "_parts")

    def __init__(self, length: int | None, limit_bytes: int) -> None:
        """``length`` None: the body is chunked. Raises RequestTooLarge."""
        if length is not None and length > limit_bytes:
            raise RequestTooLarge(limit_bytes)
        self._limit_bytes = limit_bytes
        self._missing_bytes = length or 0
        self._parts: list[bytes] = []
        self._chunks = ChunkReader(collect=True) if length is None else None

    @property
    def body(self) -> bytes:
        """What has been received, decoded."""
        parts = self._parts if self._chunks is None else self._chunks.payload
        return b"".join(parts or ())

    def feed(self, data: bytes) -> int:
        """Read on; returns the offset in ``data`` where the body ended, or -1 if it goes on.

        Raises FramingError or RequestTooLarge.
        """
        if self._chunks is not None:
            end = self._chunks.feed(data)
            if self._chunks.collected_bytes > self._limit_bytes:
                raise RequestTooLarge(self._limit_bytes)
            return end
        missing = self._missing_bytes
        if len(data) < missing:
            self._parts.append(data)
            self._missing_bytes = missing - len(data)
            return -1
        self._parts.append(data[:missing])
        return missing


def is_form(content_type: bytes) -> bool:
    """Whether a Content-Type is that of a multipart form."""
    return content_type[:20].lower().startswith(b"multipart/form-data")
